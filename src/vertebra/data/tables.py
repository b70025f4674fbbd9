"""CSV, TSV and Parquet tables of path and label (and split)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vertebra.spec.errors import VertebraError

_PATH = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
_LABEL = ("label", "class", "target", "category", "class_name", "label_name")
_SPLIT = ("split", "subset", "set", "partition")


def read_table(path: Path) -> Iterator[tuple[str, str, str]]:
    """(path, label, split; "" where the table does not say) of each line."""
    header, lines = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    names = [name.strip().lower() for name in header]
    image, label, split = (_column(names, wanted) for wanted in (_PATH, _LABEL, _SPLIT))
    if image is None or label is None:
        raise VertebraError(
            f"{path}: its first line must name the columns, one of {', '.join(_PATH[:3])} and one of "
            f"{', '.join(_LABEL[:3])} among them; it is {','.join(header)!r}"
        )
    for number, line in enumerate(lines, start=2):
        if len(line) <= max(image, label) or not line[image] or line[label] in ("", None):
            raise VertebraError(f"{path}: line {number} has no path or no label")
        yield str(line[image]), str(line[label]).strip(), "" if split is None else str(line[split] or "").strip()


def _column(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _text(path: Path) -> tuple[list[str], Iterator[list[Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise VertebraError(f"{path}: must be UTF-8 text; save the file as UTF-8") from error
    lines = csv.reader(text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    rows = (line for line in lines if any(line))
    return next(rows, []), rows


def _parquet(path: Path) -> tuple[list[str], Iterator[list[Any]]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_table as read
    except ImportError as error:
        raise VertebraError(f"{path}: Parquet needs pyarrow: pip install pyarrow, or save the table as .csv") from error
    try:
        table = read(path)
    except (ArrowInvalid, OSError) as error:
        raise VertebraError(f"{path}: cannot be read as Parquet: {error}") from error
    columns = [column.to_pylist() for column in table.columns]
    return list(table.column_names), (list(line) for line in zip(*columns, strict=True))
