"""DATA -> a table of images and classes, split: what `vertebra train DATA` and `vertebra validate DATA` read.

A class-folder tree (with or without train/val/test), zips of such, WebDataset shards (.tar), CSV/TSV/Parquet of path
and label, or `hf:NAME`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from vertebra.data.boundary import refuse_large
from vertebra.data.members import Member, list_folder, list_tar, list_zip
from vertebra.data.tables import Label, check_names, read_table
from vertebra.spec.errors import VertebraError, unknown_name
from vertebra.spec.photo import PHOTO

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_LONGEST = 2**16
"""Bytes of a label in a shard."""


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
class _Listing:
    """DATA as it lies there."""

    rows: list[Row]
    classes: tuple[str, ...] | None = None
    """In their order, where DATA says it."""
    left_out: tuple[str, ...] = ()
    unlabelled: int = 0
    empty: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One split: images and class indices, in parallel; tuples of indices, where an image may have any number."""

    samples: tuple[Sample, ...]
    labels: tuple[int, ...] | tuple[tuple[int, ...], ...]
    classes: int | None = None
    """How many classes there are, where an image may have any number of them; None: each image has one."""

    def classes_of(self, position: int) -> tuple[int, ...]:
        """An image's class or classes."""
        label = self.labels[position]
        return label if isinstance(label, tuple) else (label,)

    def __len__(self) -> int:
        return len(self.labels)

    def choose(self, positions: Sequence[int]) -> Part:
        """Some of the images, in that order."""
        labels: Any = tuple(self.labels[i] for i in positions)
        return Part(tuple(self.samples[i] for i in positions), labels, self.classes)

    def fingerprint(self) -> str:
        """Of names (without the folders above the data), sizes and labels, in order."""
        digest = hashlib.sha256()
        for sample, label in zip(self.samples, self.labels, strict=True):
            inner = sample.inner if isinstance(sample, Member) else sample.name
            digest.update(f"{inner}\0{sample.size}\0{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Class names in the order of their indices, and the splits there are."""

    source: str
    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    left_out: tuple[str, ...] = ()
    """What stands beside train, val and test, and is none of `SPLITS`, as SVHN's `extra`."""
    unlabelled: int = 0
    """Photos of a test split that lie in no class folder, as contests hand them out."""
    empty: tuple[str, ...] = ()
    """Folders without a photo where others are classes; they are none."""

    @property
    def note(self) -> str:
        """What to say of the data: which splits are left out, and why; "" where there is nothing to say."""
        names = ", ".join(map(repr, self.left_out))
        said = [f"split {names} left out; only train, val and test are read"] if names else []
        if self.unlabelled:
            said.append(f"{self.unlabelled} photos of the test split left out; they lie in no class folder")
        if self.empty:
            more = f" and {len(self.empty) - 3} more" if len(self.empty) > 3 else ""
            said.append(f"no photo in {', '.join(self.empty[:3])}{more}; a folder without is no class")
        return f"{self.source}: {'; '.join(said)}" if said else ""

    def part(self, name: str) -> Part:
        """A split by name. Raises `VertebraError` where there is none."""
        if name not in self.parts:
            raise VertebraError(f"{self.source} has no split {name!r}; it has {', '.join(self.parts)}")
        return self.parts[name]

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of classes."""
        return next(iter(self.parts.values())).classes is not None

    def fingerprint(self) -> dict[str, Any]:
        """What tells one dataset from another: class names, and each split's number of images and hash."""
        parts = {name: {"images": len(part), "sha256": part.fingerprint()} for name, part in self.parts.items()}
        return {"classes": list(self.classes), "parts": parts}


def open_dataset(
    source: str | Path,
    *,
    separator: str | None = None,
    columns: Sequence[str] = (),
) -> Dataset:
    """List DATA; its classes in the order of a table's columns, else sorted, numbers by value.

    Tables only: `separator` stands between an image's classes, or `columns` of 0 and 1 say which it has.
    """
    source = str(source)
    listing = _listing(source, separator, columns)
    rows = listing.rows
    if not rows:
        raise VertebraError(f"{source} holds no images; give a folder of class folders, or a table of path,label")
    found = {name for row in rows for name in ((row.label,) if isinstance(row.label, str) else row.label)}
    names = tuple(listing.classes or sorted(found, key=_by_number))
    if len(names) < 2:
        raise VertebraError(f"{source}: only one class ({', '.join(found)}); there must be two or more to tell apart")
    index = {name: number for number, name in enumerate(names)}
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row.split or "train"].append(row)
    order = [split for split in ("train", "val", "test") if split in grouped]
    parts = {split: _part(grouped[split], index) for split in order}
    return Dataset(source, names, parts, listing.left_out, listing.unlabelled, listing.empty)


def _part(rows: Sequence[Row], index: Mapping[str, int]) -> Part:
    samples, first = tuple(row.sample for row in rows), rows[0].label
    if isinstance(first, str):
        return Part(samples, tuple(index[cast("str", row.label)] for row in rows))
    several = tuple(tuple(sorted(index[name] for name in row.label)) for row in rows)
    return Part(samples, several, len(index))


def one_each(dataset: Dataset) -> Dataset:
    """The same with one class an image, where each has just that; else as it is."""
    if not dataset.multi_label or any(len(own) != 1 for part in dataset.parts.values() for own in _sets(part)):
        return dataset
    parts = {name: Part(part.samples, tuple(own[0] for own in _sets(part))) for name, part in dataset.parts.items()}
    return replace(dataset, parts=parts)


def any_number(part: Part, classes: int) -> Part:
    """The same, its images' classes as sets."""
    return Part(part.samples, tuple(_sets(part)), classes)


def _sets(part: Part) -> list[tuple[int, ...]]:
    return [part.classes_of(position) for position in range(len(part))]


def class_counts(part: Part, classes: Sequence[str]) -> dict[str, int]:
    """Images of each class, by name; 0 where a class has none."""
    counts = Counter(label for own in _sets(part) for label in own)
    return {name: counts[number] for number, name in enumerate(classes)}


def _by_number(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


def _listing(source: str, separator: str | None, columns: Sequence[str]) -> _Listing:
    hub = source.startswith("hf:")
    if not hub:
        paths = _expand(source)
        if paths[0].suffix.lower() in (".csv", ".tsv", ".parquet"):
            return _from_table(paths[0], separator, columns)
    if separator is not None or columns:
        raise VertebraError(
            f"{source}: label_separator and label_columns are for tables (.csv, .tsv, .parquet); leave them out"
        )
    return _from_hub(source.removeprefix("hf:")) if hub else _from_files(source)


def _from_hub(name: str) -> _Listing:
    """Splits are left out by their names: whoever put it there named them, and nobody here can name them anew."""
    from vertebra.data.huggingface import splits

    rows, left_out = list[Row](), list[str]()
    for split, found in splits(name):
        known = SPLITS.get(split.lower())
        if known is None:
            left_out.append(split)
        else:
            rows += [Row(sample, label, known) for sample, label in found]
    if left_out and not rows:
        raise VertebraError(
            f"hf:{name}: split {left_out[0]!r} is none of train, val and test, and there is no other to read; "
            "save its images as class folders, or as a table of path and label"
        )
    return _Listing(rows, left_out=tuple(left_out))


def _from_files(source: str) -> _Listing:
    """Images in class folders. What is no split, beside a train split, is left out: folders and archives."""
    paths = _expand(source)
    if len(paths) == 1 and paths[0].is_dir():
        members = list(list_folder(paths[0]))
        paths = _archives(paths[0], members)
        if not paths:
            return replace(_from_members([(members, None)]), empty=_empty(Path(source).expanduser(), members))
    splits = {path: _split_of_name(path.stem, alone=len(paths) == 1) for path in paths}
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
    for level in ("", *sorted(name for name in held if name.lower() in SPLITS)):
        with os.scandir(root / level) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))
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


def _expand(source: str) -> list[Path]:
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


def _split_of_name(stem: str, *, alone: bool) -> str | None:
    """`train-0`, `validation_003`, `imagenet1k-val-12` -> the split; what names none, or several, does not say.

    `alone`: there is no other archive to be told from, so that only a first word is meant to say it.
    """
    first, *others = (SPLITS.get(word) for word in re.split(r"[-_.]", stem.lower()))
    named = {split for split in others if split is not None}
    return first or (named.pop() if len(named) == 1 and not alone else None)


def split_named(name: str, where: str = "") -> str:
    """train, val or test, whichever of their usual names it is. Raises `UnknownNameError`."""
    split = SPLITS.get(name.lower())
    if split is None:
        raise unknown_name("split", name, dict.fromkeys(SPLITS.values()), where=where)
    return split


def _from_members(listed: Iterable[tuple[list[Member], str | None]]) -> _Listing:
    """Of folders or archives, each with the split that its name says."""
    rows, left_out, unlabelled = list[Row](), dict[str, None](), 0
    for members, split in listed:
        labels = [m for m in members if m.inner.endswith(".cls")]
        if labels:
            rows += _from_shard(members, labels, split)
            continue
        photos = [(member, member.inner.split("/")) for member in members if PHOTO.search(member.inner)]
        tops = {parts[0] for _, parts in photos}
        splits_named = {top.lower() for top in tops} & set(SPLITS)
        if len(tops) == 1 and all(len(parts) > 2 for _, parts in photos) and not splits_named:  # all in one folder
            photos = [(member, parts[1:]) for member, parts in photos]
        divided = {parts[0]: SPLITS[parts[0].lower()] for _, parts in photos if _in_split(parts)}
        shared_out = "train" in divided.values()
        for member, parts in photos:
            known = divided.get(parts[0])
            loose = SPLITS.get(parts[0].lower()) if len(parts) == 2 and (shared_out or known) else None
            if loose == "test" and not known:
                unlabelled += 1
                continue
            if shared_out and not known and not loose and len(parts) > 1:
                left_out[parts[0]] = None
                continue
            inner = parts[1:] if known or loose else parts
            if len(inner) < 2:
                raise VertebraError(
                    f"{member.name} lies in no class folder; photos belong into a folder named after their class"
                )
            rows.append(Row(member, inner[0], known or split))
    return _Listing(rows, left_out=tuple(left_out), unlabelled=unlabelled)


def _in_split(parts: list[str]) -> bool:
    """Whether a path is that of a photo in a class folder of a split's folder."""
    return len(parts) > 2 and parts[0].lower() in SPLITS


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


def _from_table(path: Path, separator: str | None, columns: Sequence[str]) -> _Listing:
    """Paths are relative to the table's own folder."""
    table = read_table(path, separator, columns)
    rows: list[Row] = []
    for name, label, split in table.lines:
        file = path.parent / Path(name).expanduser()
        if not file.is_file():
            raise VertebraError(f"{path}: no image at {file}; paths in it are relative to {path.absolute().parent}")
        member = Member(str(file), name, file.stat().st_size)
        rows.append(Row(member, label, split_named(split, f"{name} in {path}") if split else None))
    check_names(
        str(path), sorted({name for row in rows for name in ([row.label] if isinstance(row.label, str) else row.label)})
    )
    return _Listing(rows, table.classes)
