"""DATA as it lies there: folders of classes, zips and tars of such, shards; each image with its class and split."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from vertebra.data.boundary import refuse_large
from vertebra.data.members import Member, list_folder, list_tar, list_zip
from vertebra.data.splits import SPLITS, shared_out, split_of
from vertebra.data.tables import Label
from vertebra.spec.errors import VertebraError
from vertebra.spec.photo import PHOTO, is_litter

_LONGEST = 2**16
"""Bytes of a label in a shard."""

Photo = tuple[Member, list[str]]
"""A file, and the folders that lead to it and its name, as far as they matter."""


class Sample(Protocol):
    """Something with a name, a size in bytes (0: unknown) and content."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Row:
    """An image as DATA lists it."""

    sample: Sample
    label: Label
    split: str | None
    """None: DATA does not say."""


@dataclass(frozen=True, slots=True)
class Listing:
    """DATA as it lies there."""

    rows: list[Row]
    classes: tuple[str, ...] | None = None
    """In their order, where DATA says it."""
    left_out: tuple[str, ...] = ()
    unlabelled: int = 0
    empty: tuple[str, ...] = ()


def from_files(source: str) -> Listing:
    """Images in class folders. What is no split, beside a train split, is left out: folders and archives."""
    paths = expand(source)
    if len(paths) == 1 and paths[0].is_dir():
        members = list(list_folder(paths[0]))
        paths = _archives(paths[0], members)
        if not paths:
            return replace(_from_members([(members, None)]), empty=_empty(Path(source).expanduser(), members))
    splits = {path: split_of(path.stem, alone=len(paths) == 1) for path in paths}
    beside = [path for path in paths if splits[path] is None] if "train" in splits.values() else []
    read = [path for path in paths if path not in beside]
    listed = (
        (list(list_zip(path) if path.suffix.lower() == ".zip" else list_tar(path)), splits[path]) for path in read
    )
    found = _from_members(listed)
    return replace(found, left_out=(*(path.name for path in beside), *found.left_out))


def _empty(root: Path, members: Sequence[Member]) -> tuple[str, ...]:
    """Folders beside those of classes in which no photo lies."""
    held = set[str]()
    for member in members:
        folder = member.inner.rpartition("/")[0]
        if folder not in held and PHOTO.search(member.inner):
            held.add(folder)
    held |= {folder[:at] for folder in held for at, sign in enumerate(folder) if sign == "/"}
    found = list[str]()
    for level in ("", *sorted(shared_out(name for name in held if "/" not in name))):
        with os.scandir(root / level) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not is_litter(entry.name))
        found += [inner for name in names if (inner := f"{level}/{name}".lstrip("/")) not in held]
    return tuple(found)


def _archives(root: Path, members: Iterable[Member]) -> list[Path]:
    """Those in the folder itself. Raises where there are photos beside them: one of both would be left out."""
    found = [Path(m.container) for m in members if "/" not in m.inner and m.inner.lower().endswith((".zip", ".tar"))]
    photo = next((m.inner for m in members if PHOTO.search(m.inner)), None)
    if found and photo is not None:
        raise VertebraError(
            f"{root} holds archives ({found[0].name}) and photos ({photo}), and only one of both can be the data: "
            "move the other elsewhere"
        )
    return found


def expand(source: str) -> list[Path]:
    """`train-{000..004}.tar` and plain paths; each must exist."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", source)
    if braces:
        low, high = braces.groups()
        numbers = (str(n).zfill(len(low)) for n in range(int(low), int(high) + 1))
        paths = [Path(source[: braces.start()] + n + source[braces.end() :]).expanduser() for n in numbers]
    else:
        paths = [Path(source).expanduser()]
    for path in paths:
        if not path.exists():
            raise VertebraError(f"no data at {path}; give a folder, .zip, .tar, .csv, .tsv, .parquet or hf:NAME")
        if not path.is_dir() and path.suffix.lower() not in (".zip", ".tar", ".csv", ".tsv", ".parquet"):
            raise VertebraError(f"{path}: data is a folder, .zip, .tar, .csv, .tsv, .parquet or hf:NAME")
    return paths


def _from_members(listed: Iterable[tuple[list[Member], str | None]]) -> Listing:
    """Of folders or archives, each with the split that its name says."""
    rows, left_out, unlabelled = list[Row](), dict[str, None](), 0
    for members, split in listed:
        labels = [m for m in members if m.inner.endswith(".cls")]
        found = Listing(list(_from_shard(members, labels, split))) if labels else _from_folders(members, split)
        rows += found.rows
        left_out |= dict.fromkeys(found.left_out)
        unlabelled += found.unlabelled
    return Listing(rows, left_out=tuple(left_out), unlabelled=unlabelled)


def _from_folders(members: Iterable[Member], split: str | None) -> Listing:
    """Photos in class folders, which may lie in folders of splits. What is no split, beside a train split, is left out;
    so are loose photos of a test split.
    """
    photos = _unwrapped([(member, member.inner.split("/")) for member in members if PHOTO.search(member.inner)])
    held, flat = _folders_of_splits(photos)
    tops = {parts[0]: None for _, parts in photos if len(parts) > 1} if "train" in held.values() else {}
    out = {top: None for top in tops if top not in held and top not in flat}
    rows, unlabelled = list[Row](), 0
    for member, parts in _unwrapped_alike(photos, held):
        top = parts[0]
        if top in out:
            continue
        if flat.get(top) == "test":
            unlabelled += 1
            continue
        inner = parts[1:] if top in held or top in flat else parts
        if len(inner) < 2:
            raise VertebraError(
                f"{member.name} lies in no class folder; photos belong into a folder named after their class"
            )
        rows.append(Row(member, inner[0], held.get(top) or split))
    return Listing(rows, left_out=tuple(out), unlabelled=unlabelled)


def _unwrapped(photos: list[Photo]) -> list[Photo]:
    """Without the folders around everything."""
    while photos and len({parts[0] for _, parts in photos}) == 1 and all(len(parts) > 2 for _, parts in photos):
        if photos[0][1][0].lower() in SPLITS:
            break
        photos = [(member, parts[1:]) for member, parts in photos]
    return photos


def _unwrapped_alike(photos: list[Photo], held: Mapping[str, object]) -> list[Photo]:
    """Without the one folder around the classes of each split (`train/images/cat`, `seg_test/seg_test/sea`)."""
    around = defaultdict[str, set[str]](set)
    for _, parts in photos:
        if parts[0] in held:
            around[parts[0]].add(parts[1] if len(parts) > 3 else "")
    if not around or any(len(names) > 1 or "" in names for names in around.values()):
        return photos
    return [(member, [parts[0], *parts[2:]] if parts[0] in held else parts) for member, parts in photos]


def _folders_of_splits(photos: list[Photo]) -> tuple[dict[str, str | None], dict[str, str]]:
    """The outermost folders in which those of classes lie, and the split that each is of (None: it does not say); and
    those that are called as splits, but hold photos alone.
    """
    inner = defaultdict[str, set[str]](set)
    for _, parts in photos:
        if len(parts) > 1:
            inner[parts[0]].update(parts[1:-1][:1])
    said = shared_out(inner)
    held: dict[str, str | None] = {top: split for top, split in said.items() if inner[top]}
    if not held:
        return {}, {}
    classes = {name for top in held for name in inner[top]}
    more = {top for top, names in inner.items() if top not in said and top not in classes and names & classes}
    if "train" not in held.values():  # where it is there, what else there is is left out
        held |= dict.fromkeys(more)
    return held, {top: split for top, split in said.items() if top not in held}


def _from_shard(members: Iterable[Member], labels: Iterable[Member], split: str | None) -> Iterator[Row]:
    """WebDataset: `key.jpg` beside `key.cls` (an index or a name). Beside it, `key.mask.png` is something else."""
    by_key = {member.inner.removesuffix(".cls"): member for member in labels}
    photos = defaultdict[str, list[tuple[Member, str]]](list)
    for member in members:
        if PHOTO.search(member.inner):
            folder, _, file = member.inner.rpartition("/")
            name, _, kind = file.partition(".")
            photos[f"{folder}/{name}" if folder else name].append((member, kind))
    for key, found in photos.items():
        if key not in by_key:
            raise VertebraError(f"{found[0][0].name} has no label: there is no {key}.cls beside it")
        plain = [member for member, kind in found if "." not in kind] or [member for member, _ in found]
        if len(plain) > 1:
            raise VertebraError(
                f"{plain[0].name} and {plain[1].name} share one label, and either could be its image; keep one"
            )
        yield Row(plain[0], _label_in(by_key[key]), split)


def _label_in(member: Member) -> str:
    refuse_large(member.name, max(member.size, member.unpacked), _LONGEST)
    try:
        return member.read().decode().strip()
    except UnicodeDecodeError as error:
        raise VertebraError(f"{member.name}: a label is a class's name or number in UTF-8; this is neither") from error
