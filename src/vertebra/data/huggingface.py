"""`hf:NAME`: a dataset of the Hugging Face hub, or a folder that its library reads, through the library `datasets`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vertebra.data.boundary import read_regular, refuse_large
from vertebra.spec.errors import VertebraError

_WEIGHED = 64
"""Images of a split whose size is found out, evenly spread: it tells datasets apart, as names do elsewhere."""


@dataclass(frozen=True, slots=True)
class HubSample:
    """One row of a split; its image is kept encoded until it is read."""

    table: Any
    column: str
    index: int
    split: str
    size: int = 0

    @property
    def name(self) -> str:
        return f"{self.split}[{self.index}]"

    def read(self) -> bytes:
        """The image's bytes. Raises `VertebraError` where they cannot be had."""
        try:
            stored = self.table[self.index][self.column] or {}
            if stored.get("bytes") is not None:
                refuse_large(self.name, len(stored["bytes"]))
                return stored["bytes"]
            if stored.get("path") is not None:
                return read_regular(stored["path"])
        except VertebraError as error:
            raise VertebraError(f"{self.name}: {error}") from error
        except OSError as error:
            raise VertebraError(f"{self.name}: cannot be read: {error.strerror or error}") from error
        raise VertebraError(f"{self.name}: cannot be read: there is no image in this row")


def splits(name: str) -> Iterator[tuple[str, Iterator[tuple[HubSample, str]]]]:
    """Each split and its rows, (image, class name), which nothing reads before they are asked for.

    `name` may carry a configuration: `owner/name:config`.
    """
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise VertebraError(f"hf:{name} needs the library datasets: pip install datasets") from error
    repository, _, config = name.partition(":")
    loaded: Any = library.load_dataset(repository, config or None)
    for split, table in loaded.items():
        yield split, _rows(library, table, split, f"hf:{name}")


def _rows(library: Any, table: Any, split: str, where: str) -> Iterator[tuple[HubSample, str]]:
    features = table.features
    images = [key for key, kind in features.items() if isinstance(kind, library.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, library.ClassLabel)]
    if not images or not labels:
        raise VertebraError(f"{where}: its columns {', '.join(features)} hold no image, or no class label, to train on")
    names: list[str] = features[labels[0]].names
    encoded = table.cast_column(images[0], library.Image(decode=False))
    known = _labelled(encoded[labels[0]], f"{where}: {split}")
    every = max(1, len(known) // _WEIGHED)
    for index, label in enumerate(known):
        sample = HubSample(encoded, images[0], index, split)
        yield sample if index % every else replace(sample, size=_bytes_of(sample)), names[label]


def _bytes_of(sample: HubSample) -> int:
    """0 where it cannot be read, which is told when it is to be used."""
    try:
        return len(sample.read())
    except VertebraError:
        return 0


def _labelled(labels: Sequence[int | None], where: str) -> Sequence[int]:
    """The labels of a split; none of one that has none, as contests' test splits. Raises where some are missing."""
    known = [label for label in labels if label is not None and label >= 0]
    if known and len(known) < len(labels):
        first = next(index for index, label in enumerate(labels) if label is None or label < 0)
        raise VertebraError(
            f"{where}[{first}] has no label, and {len(labels) - len(known):,} of its {len(labels):,} rows have none; "
            "save those that have one as class folders, or as a table of path and label"
        )
    return known
