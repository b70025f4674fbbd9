"""What the user named -> the photos meant: folders walked, patterns expanded, archives listed, nothing twice."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vertebra.spec import PHOTO, is_litter

STDIN = "-"
LARGEST = 256 << 20
"""Bytes of standard input that are read."""

if TYPE_CHECKING:
    from vertebra.data.members import Member
    from vertebra.data.remote import Remote

    Photo = Path | Member | Remote | bytes
    """A file, a member of a zip, an address, or what standard input held."""


def expand(named: Iterable[str]) -> "tuple[dict[str, Photo], dict[str, str]]":
    """The photos by their names, in the order named and sorted within a folder, an archive or a pattern; and for each
    name that gave none, why.
    """
    photos: dict[str, Photo] = {}
    failures: dict[str, str] = {}
    seen = set[str]()
    for name in named:
        found, failure = _expand_one(name)
        if failure:
            failures[name] = failure
        for shown, photo in found:
            place = os.path.abspath(photo) if isinstance(photo, Path) else shown  # noqa: PTH100 - a link is not its target
            if place not in seen:
                seen.add(place)
                photos[shown] = photo
    return photos, failures


def _expand_one(name: str) -> "tuple[list[tuple[str, Photo]], str]":
    if name == STDIN:
        return _standard_input()
    if name.lower().startswith(("http://", "https://")):
        from vertebra.data.remote import Remote

        return [(name, Remote(name))], ""
    if name.lower().endswith(".zip") and Path(name).expanduser().is_file():
        return _in_zip(Path(name).expanduser())
    files, failure = _files(name)
    return [(str(path), path) for path in files], failure


def _standard_input() -> "tuple[list[tuple[str, Photo]], str]":
    content = sys.stdin.buffer.read(LARGEST + 1)
    if len(content) > LARGEST:
        return [], f"standard input is larger than {LARGEST >> 20} MiB"
    return ([(STDIN, content)], "") if content else ([], "standard input is empty; pipe an image into it")


def _in_zip(path: Path) -> "tuple[list[tuple[str, Photo]], str]":
    from vertebra.engine.sources import zipped
    from vertebra.spec import VertebraError

    try:
        found = zipped(path)
    except VertebraError as error:
        return [], str(error)
    return [
        (member.name, member) for member in found
    ], "" if found else "no images in this zip, by the ends of their names"


def _files(name: str) -> tuple[list[Path], str]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return [path], ""
    if not glob.has_magic(name):
        return [], "no such file"
    found: list[Path] = []
    for match in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        found += _in_folder(Path(match))[0] if Path(match).is_dir() else [Path(match)]
    return found, "" if found else "no file matches this pattern"


def _in_folder(folder: Path) -> tuple[list[Path], str]:
    unreadable: list[OSError] = []
    found = sorted(_walk(folder, unreadable))
    if unreadable:
        return found, f"cannot be read: {unreadable[0].filename}: {unreadable[0].strerror}"
    return found, "" if found else "no images in this folder, by the ends of their names (.jpg, .png, .webp ...)"


def _walk(folder: Path, unreadable: list[OSError]) -> Iterator[Path]:
    for where, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = [name for name in folders if not is_litter(name)]
        yield from (Path(where, name) for name in files if PHOTO.search(name) and not is_litter(name))
