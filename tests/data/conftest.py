"""Three classes of one colour each, as folders and packed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image

from vertebra.data.datasets import Dataset

COLOURS = {"cat": "red", "dog": "green", "eel": "blue"}


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def tree(root: Path, splits: tuple[str, ...] = ("",), each: int = 3) -> Path:
    for split in splits:
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(each):
                (folder / f"{i}.png").write_bytes(png(colour))
    return root


def pack(root: Path, path: Path, prefix: str = "", packing: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", packing) as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, prefix + file.relative_to(root).as_posix())
    return path


def sizes(dataset: Dataset) -> dict[str, int]:
    return {name: len(part) for name, part in dataset.parts.items()}


def check_content(dataset: Dataset) -> None:
    """Every image is that of its class, whatever it was read from."""
    for part in dataset.parts.values():
        for sample, label in zip(part.samples, part.labels, strict=True):
            assert sample.read() == png(COLOURS[dataset.classes[label]]), sample.name
