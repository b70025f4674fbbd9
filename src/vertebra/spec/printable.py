"""Other people's text, made safe to show: names of files and classes, records of checkpoints, words of a server."""

import unicodedata

_JOINERS = "\u200c\u200d"
"""Of letters in Persian and Hindi, and of emoji: invisible, and harmless."""


def printable(text: str) -> str:
    r"""The same in one line, with all that would act on a terminal or hide (control characters, changes of direction,
    bytes that are no UTF-8) spelt out, as `\x1b`. Doing so twice changes nothing.
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_spelt, text))


def _spelt(char: str) -> str:
    if char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs":
        return char
    if "\udc80" <= char <= "\udcff":  # how Python carries a byte of a name that is no UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
