"""What is wrong with a data set, before hours of training find out: `vertebra doctor`.

An error spoils the model or what is measured of it; a warning costs accuracy or surprises.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vertebra.data.datasets import Dataset, Part, class_counts
from vertebra.data.loader import Loader, Order
from vertebra.data.look import LOOK, look
from vertebra.data.members import list_folder
from vertebra.data.near import alike, groups
from vertebra.spec.photo import PHOTO

TINY = 32
"""Shorter sides below this many pixels are tiny."""
GIANT = 50_000_000
"""More pixels than these take seconds to decode, in every epoch."""
LONG = 4
"""Longer to shorter side: above this, the middle that a model sees is less than a quarter."""
UNEVEN = 10
"""Classes are uneven where the largest has this many times the images of another."""
SUFFIXES = {
    "JPEG": ("jp", "jpg", "jpe", "jpeg", "jfif"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif",),
    "HEIF": ("heic", "heif", "hif"),
    "JPEG2000": ("jp2", "j2k"),
    "PPM": ("pbm", "pgm", "ppm", "pnm"),
    "ICO": ("ico",),
    "QOI": ("qoi",),
    "DDS": ("dds",),
    "SGI": ("sgi",),
}
PASSED_OVER = ("jxl", "tga", "psd", "svg", "eps", "raw", "dng", "cr2", "cr3", "nef", "arw", "pcx", "")
"""Suffixes of pictures that nothing here reads."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One case of a finding."""

    files: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Every case of one kind."""

    kind: str
    level: Literal["error", "warning"]
    title: str
    advice: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """`findings`: errors first."""

    data: str
    images: int
    unreadable: int
    splits: dict[str, int]
    """Readable images, by split."""
    counts: dict[str, dict[str, int]]
    """The same by split and class; an image counts in each of its classes."""
    findings: tuple[Finding, ...]

    def of(self, level: str) -> list[Finding]:
        """The errors, or the warnings."""
        return [finding for finding in self.findings if finding.level == level]

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        record = asdict(self)
        for finding in record["findings"]:
            finding["count"] = len(finding["entries"])
        return {**record, "errors": len(self.of("error")), "warnings": len(self.of("warning"))}


@dataclass(frozen=True, slots=True)
class _Seen:
    """All readable images of a data set, in parallel lists."""

    classes: tuple[str, ...]
    names: list[str]
    labels: list[tuple[int, ...]]
    """One class each, or any number."""
    splits: list[str]
    looks: NDArray[np.void]

    def where(self, kind: str, title: str, advice: str, chosen: Iterable[Any], note: Callable[[Any], str]) -> Finding:
        """A warning about single images: those that `chosen` is true for."""
        positions = [i for i, is_one in enumerate(chosen) if is_one]
        entries = tuple(Entry((self.names[i],), note(self.looks[i])) for i in positions)
        return Finding(kind, "warning", title, advice, entries)


def examine(dataset: Dataset, *, workers: int = 0, seen: Callable[[int], None] | None = None) -> Report:
    """Look at every image of every split once. `seen` is told how many so far."""
    read, bad = list[tuple[str, str, tuple[int, ...], NDArray[np.void]]](), list[Entry]()
    done = 0
    for split, part in dataset.parts.items():
        loader = Loader(part, look, Order(images=len(part), batch_size=64, shuffle=False), workers=workers)
        try:
            for batch in loader.epoch(0):
                looks = np.frombuffer(batch.images.numpy().tobytes(), LOOK)
                at = zip(batch.indices.tolist(), looks, strict=True)
                read += [(part.samples[i].name, split, part.classes_of(i), one) for i, one in at]
                bad += [Entry((part.samples[i].name,), _why(why, part.samples[i].name)) for i, why in batch.skipped]
                done += len(looks) + len(batch.skipped)
                if seen is not None:
                    seen(done)
        finally:
            loader.close()
    looks = np.array([one for *_, one in read], LOOK)
    found = _Seen(dataset.classes, [r[0] for r in read], [r[2] for r in read], [r[1] for r in read], looks)
    splits = {split: found.splits.count(split) for split in dataset.parts}
    counts = _counts(dataset, found)
    findings = [
        Finding("unreadable", "error", "cannot be read", "delete them, or get them again", tuple(bad)),
        *_classes(counts),
        *_copies(found),
        *_sizes(found),
        *_modes(found),
        _passed_over(dataset.source),
    ]
    ordered = sorted((f for f in findings if f.entries), key=lambda f: f.level)
    return Report(dataset.source, done, len(bad), splits, counts, tuple(ordered))


def _why(why: str, name: str) -> str:
    return why.removeprefix(f"{name}: ")


def _counts(dataset: Dataset, seen: _Seen) -> dict[str, dict[str, int]]:
    labels: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for split, label in zip(seen.splits, seen.labels, strict=True):
        labels[split].append(label)
    parts = {split: Part((), tuple(labels[split])) for split in dataset.parts}
    return {split: class_counts(part, dataset.classes) for split, part in parts.items()}


def _classes(counts: dict[str, dict[str, int]]) -> list[Finding]:
    missing = [Entry((), f"{name}: none in {split}") for split, of in counts.items() for name, n in of.items() if not n]
    main = "train" if "train" in counts else next(iter(counts))
    of = counts[main]
    single = [Entry((), f"{name}: 1 in {main}") for name, n in of.items() if n == 1 and main == "train"]
    most = max(of, key=lambda name: of[name])
    rare = [Entry((), f"{name}: {n:,} in {main}, {most} has {of[most]:,}") for name, n in of.items() if n]
    few = [entry for entry, n in zip(rare, filter(None, of.values()), strict=True) if n * UNEVEN < of[most]]
    fill = "add images, or take the class out of every split"
    weigh = "add images, or train with --set loss.balance=true; look at macro F1, not at top-1"
    return [
        Finding("class-missing", "error", "class missing from a split", fill, tuple(missing)),
        Finding("class-single", "error", "class with a single image", fill, tuple(single)),
        Finding("imbalance", "warning", f"class under 1/{UNEVEN} of the largest", weigh, tuple(few)),
    ]


def _copies(seen: _Seen) -> list[Finding]:
    """Groups of images that are the same, or look the same, by where they lie."""
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for i, digest in enumerate(seen.looks["digest"]):
        by_content[digest.tobytes()].append(i)
    exact = [group for group in by_content.values() if len(group) > 1]
    firsts = np.array([group[0] for group in by_content.values()], np.intp)
    kinds = seen.looks[firsts]
    pairs = alike(kinds["hash"], kinds["thumb"], kinds["contrast"])
    of_first = {group[0]: group for group in by_content.values()}
    near = [sorted(i for a in joined for i in of_first[int(firsts[a])]) for joined in groups(pairs)]
    leak = "keep each picture in one split only: what is measured on it is too good"
    conflict = "decide which is right, and delete the other file"
    again = "keep one; a validation split drawn from them would hold copies of training images"
    look_at = "look at them: if they are one picture, one of them is wrong"
    return [
        _group(seen, "leak", "error", "same file in several splits", leak, exact, seen.splits),
        _group(seen, "near-leak", "error", "near copy in another split", leak, near, seen.splits),
        _group(seen, "conflict", "error", "same file, other classes", conflict, exact, seen.labels),
        _group(seen, "near-conflict", "warning", "near copy, other classes", look_at, near, seen.labels),
        _group(seen, "duplicate", "warning", "same file again", again, exact, None),
        _group(seen, "near-duplicate", "warning", "near copy", again, near, None),
    ]


def _group(
    seen: _Seen,
    kind: str,
    level: Literal["error", "warning"],
    title: str,
    advice: str,
    found: Sequence[Sequence[int]],
    apart: Sequence[str] | Sequence[tuple[int, ...]] | None,
) -> Finding:
    """Those groups that differ in `apart`; None: those of one split and the same classes."""

    def is_one(group: Sequence[int]) -> bool:
        if apart is None:
            return len({(seen.splits[i], seen.labels[i]) for i in group}) == 1
        return len({apart[i] for i in group}) > 1

    def note(group: Sequence[int]) -> str:
        names = list(dict.fromkeys((seen.splits if apart is seen.splits else _labels(seen))[i] for i in group))
        return "" if apart is None else ", ".join(names)

    return Finding(
        kind, level, title, advice, tuple(Entry(tuple(seen.names[i] for i in g), note(g)) for g in found if is_one(g))
    )


def _labels(seen: _Seen) -> list[str]:
    return ["|".join(seen.classes[label] for label in own) or "no class" for own in seen.labels]


def _sizes(seen: _Seen) -> list[Finding]:
    looks = seen.looks
    short = np.minimum(looks["width"], looks["height"])
    pixels = looks["width"].astype(np.int64) * looks["height"]

    def size(one: Any) -> str:
        return f"{one['width']} x {one['height']}"

    scale = "make them smaller: they slow every epoch down"
    return [
        seen.where("tiny", f"shorter side under {TINY} pixels", "are they thumbnails?", short < TINY, size),
        seen.where("giant", f"over {GIANT // 1_000_000} million pixels", scale, pixels > GIANT, size),
        seen.where(
            "aspect",
            f"longer than {LONG} to 1",
            "crop them: a model sees the middle only",
            np.maximum(looks["width"], looks["height"]) > LONG * short,
            size,
        ),
        seen.where("blank", "shows nothing", "are they empty scans or placeholders?", looks["contrast"] < 1, size),
    ]


def _modes(seen: _Seen) -> list[Finding]:
    looks = seen.looks
    first = "only the first frame or page is used"
    white = "what is transparent becomes white; alike in every class?"
    eight = "the upper 8 bits are used: check that they are not black"
    turned = "turned upright here; other programs may show them lying"
    rename = "read by content here; rename them for other programs"
    other = ~np.isin(looks["mode"], (b"RGB", b"RGBA", b"L", b"LA", b"P", b"PA", b"1", b"CMYK")) & ~looks["deep"]

    def mode(one: Any) -> str:
        return one["mode"].decode()

    return [
        seen.where("cmyk", "CMYK, made for print", "colours may be off", looks["mode"] == b"CMYK", mode),
        seen.where("deep", "more than 8 bits a channel", eight, looks["deep"], mode),
        seen.where("alpha", "transparent, or could be", white, looks["alpha"], mode),
        seen.where("other-mode", "of a rare colour mode", "colours may be off", other, mode),
        seen.where("frames", "several frames or pages", first, looks["frames"] > 1, lambda o: f"{o['frames']} frames"),
        seen.where("rotated", "turned by EXIF", turned, looks["orientation"] > 1, lambda o: f"code {o['orientation']}"),
        seen.where(
            "suffix",
            "suffix of another format",
            rename,
            (_lies(name, one) for name, one in zip(seen.names, looks, strict=True)),
            lambda one: f"is {one['format'].decode()}",
        ),
    ]


def _lies(name: str, one: Any) -> bool:
    suffix = _suffix(name)
    return PHOTO.search(name) is not None and suffix not in SUFFIXES.get(one["format"].decode(), (suffix,))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower().removeprefix(".")


def _passed_over(source: str) -> Finding:
    """In a folder, pictures that the listing does not take for any."""
    root = Path(source).expanduser()
    files = list_folder(root) if root.is_dir() else ()
    left = [m.name for m in files if not PHOTO.search(m.inner) and _suffix(m.inner) in PASSED_OVER]
    kinds = Counter(_suffix(name) or "no suffix" for name in left)
    advice = f"not read ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common(3))}): save them as JPEG or PNG"
    entries = tuple(Entry((name,)) for name in left)
    return Finding("passed-over", "warning", "passed over", advice, entries)
