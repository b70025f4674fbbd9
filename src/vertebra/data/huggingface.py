"""`hf:NAME`: a dataset of the Hugging Face hub, or a folder that its library reads, through the library `datasets`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vertebra.spec.errors import VertebraError


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
        stored = self.table[self.index][self.column]
        if stored["bytes"] is not None:
            return stored["bytes"]
        return Path(stored["path"]).read_bytes()


def rows(name: str) -> Iterator[tuple[HubSample, str, str]]:
    """(image, class name, split) of every row. `name` may carry a configuration: `owner/name:config`."""
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise VertebraError(f"hf:{name} needs the library datasets: pip install datasets") from error
    repository, _, config = name.partition(":")
    splits: Any = library.load_dataset(repository, config or None)
    for split, table in splits.items():
        features = table.features
        images = [key for key, kind in features.items() if isinstance(kind, library.Image)]
        labels = [key for key, kind in features.items() if isinstance(kind, library.ClassLabel)]
        if not images or not labels:
            raise VertebraError(
                f"hf:{name}: its columns {', '.join(features)} hold no image, or no class label, to train on"
            )
        names: list[str] = features[labels[0]].names
        encoded = table.cast_column(images[0], library.Image(decode=False))
        for index, label in enumerate(encoded[labels[0]]):
            yield HubSample(encoded, images[0], index, split), names[label], split
