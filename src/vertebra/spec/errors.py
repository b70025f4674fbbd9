"""Errors that a user can act on. Each message is one line: what was given, what is allowed, what to do."""

import difflib
from collections.abc import Iterable


class VertebraError(ValueError):
    """Base of every error that the caller's input, files or network can cause."""


class UnknownNameError(VertebraError, RuntimeError):
    """A model, tag, option or layer name that does not exist. Code of this field expects a RuntimeError for these."""


class UnknownOptionError(UnknownNameError, TypeError):
    """An option that does not exist; a TypeError, too, as Python's own error for an unexpected keyword is."""


class SettingError(VertebraError):
    """A setting whose value cannot be: at all, beside the others, or with this data; as wrong usage of a command."""


class UnknownStageError(VertebraError, IndexError):
    """A stage that a model does not have."""


class WeightsError(VertebraError, RuntimeError):
    """A checkpoint that cannot be read, or does not fit the model it was meant for; as torch's, a RuntimeError."""


class MissingFileError(WeightsError, FileNotFoundError):
    """A checkpoint, or a folder of one, that is not there."""


class WeightsUnavailableError(WeightsError):
    """A checkpoint that exists but cannot be had now: no network, no cached copy, no such repository."""

    def __init__(self, reason: str, advice: str = "") -> None:
        """`advice`: how to go on, where no command knows it better."""
        super().__init__(f"{reason}; {advice}" if advice else reason)
        self.reason = reason


def did_you_mean(name: str, allowed: Iterable[str], *, limit: int = 3) -> str:
    """`"; did you mean 'a' or 'b'?"`, or `""` when nothing allowed resembles `name`."""
    close = difflib.get_close_matches(name, list(allowed), n=3 * limit, cutoff=0.6)
    # Among those as near, what begins alike: typing errors come late in a word.
    close.sort(key=lambda c: _likeness(name, c), reverse=True)
    if not close:
        return ""
    return "; did you mean " + " or ".join(repr(c) for c in close[:limit]) + "?"


def _likeness(name: str, other: str) -> tuple[float, int]:
    alike = [a == b for a, b in zip(name, other, strict=False)]
    return difflib.SequenceMatcher(None, other, name).ratio(), [*alike, False].index(False)


def unknown_name(what: str, name: str, allowed: Iterable[str], *, where: str = "") -> UnknownNameError:
    """The error for a name nobody declared: it names the closest one, or lists them all."""
    kind = UnknownOptionError if what == "option" else UnknownNameError
    names = list(allowed)
    listed = ", ".join(each or repr(each) for each in names)
    place = f" for {where}" if where else ""
    return kind(f"unknown {what} {name!r}{place}{did_you_mean(name, names) or f'; allowed: {listed}'}")
