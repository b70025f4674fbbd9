"""What the user named -> the photos meant: folders walked, patterns expanded, nothing twice."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vertebra.spec import PHOTO, is_litter


def expand(named: Iterable[str]) -> tuple[list[Path], dict[str, str]]:
    """The photos, in the order named and sorted within a folder or pattern; and for each name that gave none, why."""
    photos: dict[str, Path] = {}
    failures: dict[str, str] = {}
    for name in named:
        found, failure = _expand_one(name)
        if failure:
            failures[name] = failure
        for path in found:
            photos.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - resolve() would merge a link and its target
    return list(photos.values()), failures


def _expand_one(name: str) -> tuple[list[Path], str]:
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
