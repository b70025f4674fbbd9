"""DATA -> a table of images and classes, split: what `vertebra train DATA` and `vertebra validate DATA` read.

A class-folder tree (with or without train/val/test), zips of such, WebDataset shards (.tar), CSV/TSV/Parquet of path
and label, or `hf:NAME`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from vertebra.data.labels import check_written
from vertebra.data.listing import Listing, Row, Sample, expand, from_files
from vertebra.data.members import Member
from vertebra.data.splits import split_named, split_of
from vertebra.data.tables import Columns, check_names, is_table, read_table
from vertebra.spec.errors import SettingError, VertebraError

_NUMBER = re.compile(r"-?\d+(\.\d*)?", re.ASCII)
_ALL = Columns()


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


def open_dataset(source: str | Path, columns: Columns = _ALL) -> Dataset:
    """List DATA; its classes in the order of a table's columns, else sorted, numbers by value.

    `columns`: of a table, where its header does not say by itself what is what.
    """
    source = str(source)
    listing = _listing(source, columns)
    rows = listing.rows
    if not rows:
        raise VertebraError(f"{source} holds no images; give a folder of class folders, or a table of path,label")
    found = {name for row in rows for name in ((row.label,) if isinstance(row.label, str) else row.label)}
    names = tuple(listing.classes or sorted(found, key=_by_number))
    check_written(source, names)
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


def _by_number(name: str) -> tuple[int, float, str]:
    if not _NUMBER.fullmatch(name):
        return (1, 0, name)
    return (0, float(name) if "." in name else int(name), name)


def _listing(source: str, columns: Columns) -> Listing:
    hub = source.startswith("hf:")
    if not hub:
        paths = expand(source)
        if is_table(paths[0]):
            return _from_table(paths[0], columns)
    if columns != _ALL:
        raise SettingError(
            f"{source}: path_column, label_columns, split_column and label_separator are for tables (.csv, .tsv, "
            ".parquet); leave them out"
        )
    return _from_hub(source.removeprefix("hf:")) if hub else from_files(source)


def _from_hub(name: str) -> Listing:
    """Splits are left out by their names: whoever put it there named them, and nobody here can name them anew."""
    from vertebra.data.huggingface import splits

    rows, left_out = list[Row](), list[str]()
    for split, found in splits(name):
        known = split_of(split)
        if known is None:
            left_out.append(split)
        else:
            rows += [Row(sample, label, known) for sample, label in found]
    if left_out and not rows:
        raise VertebraError(
            f"hf:{name}: split {left_out[0]!r} is none of train, val and test, and there is no other to read; "
            "save its images as class folders, or as a table of path and label"
        )
    return Listing(rows, left_out=tuple(left_out))


def _from_table(path: Path, columns: Columns) -> Listing:
    """Paths are relative to the table's own folder."""
    table = read_table(path, columns)
    rows: list[Row] = []
    for name, label, split in table.lines:
        file = path.parent / Path(name).expanduser()
        if not file.is_file() and "\\" in name:  # written on Windows
            file = path.parent / name.replace("\\", "/")
        if not file.is_file():
            raise VertebraError(f"{path}: no image at {file}; paths in it are relative to {path.absolute().parent}")
        member = Member(str(file), name, file.stat().st_size)
        rows.append(Row(member, label, split_named(split, f"{name} in {path}") if split else None))
    check_names(
        str(path), sorted({name for row in rows for name in ([row.label] if isinstance(row.label, str) else row.label)})
    )
    return Listing(rows, table.classes)
