"""CSV, TSV and Parquet tables of path and label or labels (and split)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vertebra.data.boundary import open_regular, read_regular, refuse_large
from vertebra.spec.errors import VertebraError, did_you_mean

_PATH = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
_LABEL = ("label", "class", "target", "category", "class_name", "label_name", "labels", "classes", "tags")
_SPLIT = ("split", "subset", "set", "partition")
_MARKS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_SEPARATORS = ("|", ";", ",")
_MOST, _LINES = 2**31, 2**25
"""Bytes of a table, unpacked, and lines of a packed one."""

Label = str | tuple[str, ...]
"""A class, or any number of them."""


@dataclass(frozen=True, slots=True)
class Table:
    """(path, label, split; "" where the table does not say) of each line."""

    lines: list[tuple[str, Label, str]]
    classes: tuple[str, ...] | None
    """In the order of their columns, where each has one of 0 and 1."""


def read_table(path: Path, separator: str | None = None, columns: Sequence[str] = ()) -> Table:
    """A label is one class; several, where `separator` stands between them or Parquet holds lists.

    Without a column of labels, each further column is a class, marked by 1 or 0; or only those called `columns`.
    """
    header, lines = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    names = [name.strip().lower() for name in header]
    image, label, split = (_column(names, wanted) for wanted in (_PATH, _LABEL, _SPLIT))
    if separator == "":
        raise VertebraError("the separator of labels is empty; give what stands between two, as '|'")
    if columns and separator:
        raise VertebraError("labels stand in one column, parted by a separator, or in columns of 0 and 1; give one")
    classes = _class_columns(path, header, columns, {image, split}) if columns or label is None else {}
    if image is None or (label is None and not classes):
        raise VertebraError(
            f"{path}: its first line must name the columns, one of {', '.join(_PATH[:3])} and one of "
            f"{', '.join(_LABEL[:3])} among them; it is {','.join(header)!r}"
        )
    at = -1 if label is None else label
    several = separator is not None or any(isinstance(line[at], list) for _, line in lines if at < len(line))
    found: list[tuple[str, Label, str]] = []
    for number, line in lines:
        where = f"{path}: line {number}"
        if len(line) <= max(image, *classes.values(), label or 0) or not line[image]:
            raise VertebraError(f"{where} has no path or no label")
        if classes:
            cell = tuple(name for name, column in classes.items() if _marked(line[column], name, where))
        else:
            cell = _classes(line[at], separator, several, where)
        named = "" if split is None or split >= len(line) else str(line[split] or "").strip()  # a short line: empty
        found.append((str(line[image]), cell, named))
    return Table(found, tuple(classes) or None)


def _classes(cell: Any, separator: str | None, several: bool, where: str) -> Label:
    if not several:
        if cell in ("", None):
            raise VertebraError(
                f"{where} has no path or no label; where images may have none or several, give what stands between two "
                "(data.label_separator='|'; doctor and validate: --label-separator '|')"
            )
        return str(cell).strip()
    parts: list[Any] = cast("list[Any]", cell) if isinstance(cell, list) else str(cell or "").split(separator)
    return tuple(dict.fromkeys(name for name in (str(part).strip() for part in parts) if name))


def _class_columns(path: Path, header: Sequence[str], asked: Sequence[str], taken: set[int | None]) -> dict[str, int]:
    """Class -> its column: those asked for, or all that nothing else is known of, two or more."""
    free = {name.strip(): number for number, name in enumerate(header) if number not in taken and name.strip()}
    for name in asked:
        if name not in free:
            hint = did_you_mean(name, free) or f"; it has {', '.join(free)}"
            raise VertebraError(f"{path} has no column of classes {name!r}{hint}")
    return {name: free[name] for name in asked} or (free if len(free) > 1 else {})


def _marked(cell: Any, name: str, where: str) -> bool:
    mark = _MARKS.get(str(cell).strip().lower())
    if mark is None:
        raise VertebraError(
            f"{where}: column {name!r} holds {str(cell)!r}, where a column a class holds 0 and 1; name those that are "
            "classes (data.label_columns=[a, b]; doctor: --label-column a --label-column b), or call the one that "
            "holds labels 'label'"
        )
    return mark


def check_names(source: str, names: Sequence[str]) -> None:
    """Raise where classes look like several at once: all parts of one, as cat|dog, are among the others, too."""
    for separator in _SEPARATORS:
        parts = {name: {part.strip() for part in name.split(separator)} for name in names}
        occurs = Counter(part for several in parts.values() for part in several)
        for name, several in parts.items():
            if len(several) > 1 and all(occurs[part] > 1 for part in several):
                raise VertebraError(
                    f"{source}: label {name!r} looks like {len(several)} classes at once; if it is, set "
                    f"data.label_separator='{separator}' and loss.kind=bce (doctor and validate: --label-separator "
                    f"'{separator}'); if not, call it something else"
                )


def _column(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _text(path: Path) -> tuple[list[str], list[tuple[int, list[Any]]]]:
    """Its first line, and the others with their numbers."""
    try:
        text = read_regular(path, _MOST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VertebraError(f"{path}: must be UTF-8 text; save the file as UTF-8") from error
    first = text.partition("\n")[0]
    # Spreadsheets write semicolons where the comma is the decimal point, and tabs when asked for text.
    comma = next((other for other in ";\t" if other in first and "," not in first), ",")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else comma
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = list[tuple[int, list[Any]]]()
    try:
        rows += [(lines.line_num, line) for line in lines if any(line)]
    except csv.Error as error:
        raise VertebraError(
            f'{path}: line {lines.line_num}: {error}; is there a quote (") that has no second?'
        ) from error
    return (rows[0][1], rows[1:]) if rows else ([], [])


def _parquet(path: Path) -> tuple[list[str], list[tuple[int, list[Any]]]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise VertebraError(f"{path}: Parquet needs pyarrow: pip install pyarrow, or save the table as .csv") from error
    try:
        with open_regular(path) as opened, ParquetFile(opened) as file:
            said = file.metadata
            refuse_large(str(path), sum(said.row_group(i).total_byte_size for i in range(said.num_row_groups)), _MOST)
            if said.num_rows > _LINES:
                raise VertebraError(f"{path}: has {said.num_rows:,} lines, and at most {_LINES:,} are read")
            table = file.read()
    except VertebraError:
        raise
    except (ArrowInvalid, OSError) as error:
        raise VertebraError(f"{path}: cannot be read as Parquet: {error}") from error
    columns = [column.to_pylist() for column in table.columns]
    return list(table.column_names), [(n, list(line)) for n, line in enumerate(zip(*columns, strict=True), start=1)]
