"""DATA -> a table of images and classes, split: what `vertebra train DATA` and `vertebra validate DATA` read.

A class-folder tree (with or without train/val/test), zips of such, WebDataset shards (.tar), CSV/TSV/Parquet of path
and label, or `hf:NAME`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from vertebra.data.members import Member, list_folder, list_tar, list_zip
from vertebra.data.tables import Label, check_names, read_table
from vertebra.spec.errors import VertebraError, unknown_name
from vertebra.spec.photo import PHOTO

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


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

    @property
    def note(self) -> str:
        """What to say of the data: which splits are left out, and why; "" where there is nothing to say."""
        if not self.left_out:
            return ""
        names = ", ".join(map(repr, self.left_out))
        return f"{self.source}: split {names} left out; only train, val and test are read"

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
    rows, ordered, left_out = _rows(source, separator, columns)
    if not rows:
        raise VertebraError(
            f"{source} holds no images in class folders; give a folder of class folders, or a table of path,label"
        )
    found = {name for row in rows for name in ((row.label,) if isinstance(row.label, str) else row.label)}
    names = tuple(ordered or sorted(found, key=_by_number))
    if len(names) < 2:
        raise VertebraError(f"{source}: only one class ({', '.join(found)}); there must be two or more to tell apart")
    index = {name: number for number, name in enumerate(names)}
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row.split or "train"].append(row)
    order = [split for split in ("train", "val", "test") if split in grouped]
    return Dataset(source, names, {split: _part(grouped[split], index) for split in order}, left_out)


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


def with_validation(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The same with a "val" split: where there is none, `share` of each class's training images, drawn by `seed`.

    Each class of two images or more gives at least one and keeps at least one. Images with several classes are drawn
    class by class, the rarest first (Sechidis et al., ECML 2011), as far as their classes' shares allow.
    """
    if "val" in dataset.parts:
        return dataset
    whole = dataset.part("train")
    by_class: dict[int, list[int]] = defaultdict(list)
    for position in range(len(whole)):
        for label in whole.classes_of(position) or (-1,):  # -1: images of no class are shared out, too
            by_class[label].append(position)
    held: set[int] = set()
    if dataset.multi_label:
        held = _spread(by_class, share, seed)
    else:
        for label, positions in sorted(by_class.items()):
            held.update(random.Random(f"{seed}/{label}").sample(positions, _count(share, positions)))
    if not held:
        raise VertebraError(f"{dataset.source}: one image a class leaves none to validate on; add images, or a split")
    train = whole.choose([i for i in range(len(whole)) if i not in held])
    return replace(dataset, parts={**dataset.parts, "train": train, "val": whole.choose(sorted(held))})


def _count(share: float, positions: Sequence[int]) -> int:
    return min(max(1, round(share * len(positions))), len(positions) - 1)


def _spread(by_class: Mapping[int, Sequence[int]], share: float, seed: int) -> set[int]:
    """Images to hold out, such that every class has its share of them and none loses its last image."""
    left = {label: len(positions) for label, positions in by_class.items()}
    own: dict[int, list[int]] = defaultdict(list)
    for label, positions in by_class.items():
        for position in positions:
            own[position].append(label)
    held, decided = set[int](), set[int]()
    for label, positions in sorted(by_class.items(), key=lambda item: (len(item[1]), item[0])):
        missing = _count(share, positions) - sum(position in held for position in positions)
        drawn = random.Random(f"{seed}/{label}").sample(positions, len(positions))
        for position in sorted(drawn, key=lambda p: p in decided):  # what rarer classes chose to keep, last
            if missing < 1 or (position in decided and any(p in held for p in positions)):
                break
            if position not in held and all(left[other] > 1 for other in own[position]):
                held.add(position)
                left.update({other: left[other] - 1 for other in own[position]})
                missing -= 1
        decided.update(positions)
    return held


def class_counts(part: Part, classes: Sequence[str]) -> dict[str, int]:
    """Images of each class, by name; 0 where a class has none."""
    counts = Counter(label for own in _sets(part) for label in own)
    return {name: counts[number] for number, name in enumerate(classes)}


def _by_number(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


def _rows(
    source: str, separator: str | None, columns: Sequence[str]
) -> tuple[list[Row], tuple[str, ...] | None, tuple[str, ...]]:
    """What there is, the classes' order where DATA says it, and splits that are left out."""
    hub = source.startswith("hf:")
    if not hub:
        paths = _expand(source)
        if paths[0].suffix.lower() in (".csv", ".tsv", ".parquet"):
            return (*_from_table(paths[0], separator, columns), ())
    if separator is not None or columns:
        raise VertebraError(
            f"{source}: label_separator and label_columns are for tables (.csv, .tsv, .parquet); leave them out"
        )
    if hub:
        rows, left_out = _from_hub(source.removeprefix("hf:"))
        return rows, None, left_out
    rows, left_out = _from_files(source)
    return rows, None, left_out


def _from_hub(name: str) -> tuple[list[Row], tuple[str, ...]]:
    """Its rows, and the splits left out: whoever put it there named them, and nobody here can name them anew."""
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
    return rows, tuple(left_out)


def _from_files(source: str) -> tuple[list[Row], tuple[str, ...]]:
    """Images in class folders, and the folders beside train, val and test that are left out."""
    paths = _expand(source)
    if len(paths) == 1 and paths[0].is_dir():
        members = list(list_folder(paths[0]))
        paths = _archives(paths[0], members)
        if not paths:
            return _from_members([members], [None])
    listed = [list(list_zip(path) if path.suffix.lower() == ".zip" else list_tar(path)) for path in paths]
    return _from_members(listed, [_split_of_name(path.stem) for path in paths])


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
        if path.is_file() and path.suffix.lower() not in (".zip", ".tar", ".csv", ".tsv", ".parquet"):
            raise VertebraError(f"{path}: data is a folder, .zip, .tar, .csv, .tsv, .parquet or hf:NAME")
    return paths


def _split_of_name(stem: str) -> str | None:
    """`train-0`, `validation_003`, `test` -> the split; anything else does not say."""
    return SPLITS.get(re.split(r"[-_.]", stem.lower())[0])


def split_named(name: str) -> str:
    """train, val or test, whichever of their usual names it is. Raises `UnknownNameError`."""
    split = SPLITS.get(name.lower())
    if split is None:
        raise unknown_name("split", name, dict.fromkeys(SPLITS.values()))
    return split


def _from_members(listed: Iterable[list[Member]], splits: Iterable[str | None]) -> tuple[list[Row], tuple[str, ...]]:
    rows, left_out = list[Row](), dict[str, None]()
    for members, split in zip(listed, splits, strict=True):
        labels = [m for m in members if m.inner.endswith(".cls")]
        if labels:
            rows += _from_shard(members, labels, split)
            continue
        photos = [(member, member.inner.split("/")) for member in members if PHOTO.search(member.inner)]
        tops = {parts[0] for _, parts in photos}
        splits_named = {top.lower() for top in tops} & set(SPLITS)
        if len(tops) == 1 and all(len(parts) > 2 for _, parts in photos) and not splits_named:  # all in one folder
            photos = [(member, parts[1:]) for member, parts in photos]
        shared_out = any(len(parts) > 2 and SPLITS.get(parts[0].lower()) == "train" for _, parts in photos)
        for member, parts in photos:
            known = SPLITS.get(parts[0].lower()) if len(parts) > 2 else None
            if shared_out and known is None and len(parts) > 1:
                left_out[parts[0]] = None
                continue
            inner = parts[1:] if known else parts
            if len(inner) < 2:
                raise VertebraError(
                    f"{member.name} lies in no class folder; photos belong into a folder named after their class"
                )
            rows.append(Row(member, inner[0], known or split))
    return rows, tuple(left_out)


def _from_shard(members: Iterable[Member], labels: Iterable[Member], split: str | None) -> Iterator[Row]:
    """WebDataset: `key.jpg` beside `key.cls` (an index or a name)."""
    by_key = {member.inner.removesuffix(".cls"): member for member in labels}
    for member in members:
        if not PHOTO.search(member.inner):
            continue
        folder, _, file = member.inner.rpartition("/")
        key = f"{folder}/{file.partition('.')[0]}" if folder else file.partition(".")[0]
        if key not in by_key:
            raise VertebraError(f"{member.name} has no label: there is no {key}.cls beside it")
        yield Row(member, by_key[key].read().decode().strip(), split)


def _from_table(path: Path, separator: str | None, columns: Sequence[str]) -> tuple[list[Row], tuple[str, ...] | None]:
    """Paths are relative to the table's own folder."""
    table = read_table(path, separator, columns)
    rows: list[Row] = []
    for name, label, split in table.lines:
        file = path.parent / Path(name).expanduser()
        if not file.is_file():
            raise VertebraError(f"{path}: no image at {file}; paths in it are relative to {path.parent}")
        member = Member(str(file), name, file.stat().st_size)
        rows.append(Row(member, label, split_named(split) if split else None))
    check_names(
        str(path), sorted({name for row in rows for name in ([row.label] if isinstance(row.label, str) else row.label)})
    )
    return rows, table.classes
