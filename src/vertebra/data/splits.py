"""Which names say train, val or test: of folders, archives, a table's cells and columns, a hub dataset's splits."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vertebra.spec.errors import unknown_name

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ENDINGS = ("set", "data", "images", "imgs")


def split_of(name: str, *, alone: bool = False) -> str | None:
    """`train-0`, `validation_003`, `TestSet`, `imagenet1k-val-12` -> the split; what names none, or several, does not
    say.

    `alone`: there is no other to be told from, so that only a first word is meant to say it.
    """
    first, *others = [_said(word) for word in _words(name)] or [None]
    named = {split for split in others if split is not None}
    return first or (named.pop() if len(named) == 1 and not alone else None)


def split_named(name: str, where: str = "") -> str:
    """train, val or test, whichever of their usual names it is. Raises `UnknownNameError`."""
    split = split_of(name)
    if split is None:
        raise unknown_name("split", name, dict.fromkeys(SPLITS.values()), where=where)
    return split


def shared_out(names: Iterable[str]) -> dict[str, str]:
    """Which of the folders that lie side by side are splits; none, where they are classes by all that their names say.

    They are splits if one is called just so (`val`), if each says one and not all the same, or if two differ in nothing
    but the split (`seg_train`, `seg_test`): `bullet_train` and `test_tube` are classes.
    """
    names = list(names)
    said = {name: split for name in names if (split := split_of(name)) is not None}
    if any(name.lower() in SPLITS for name in names) or (len(said) == len(names) and len(set(said.values())) > 1):
        return said
    rests = {name: tuple(word for word in _words(name) if _said(word) is None) for name in said}
    twins = {rest for name, rest in rests.items() if any(r == rest and said[n] != said[name] for n, r in rests.items())}
    return {name: split for name, split in said.items() if rests[name] in twins}


def _words(name: str) -> list[str]:
    return _WORD.findall(name)


def _said(word: str) -> str | None:
    word = word.lower()
    return SPLITS.get(word) or next(
        (SPLITS.get(word.removesuffix(end)) for end in _ENDINGS if word.endswith(end)), None
    )
