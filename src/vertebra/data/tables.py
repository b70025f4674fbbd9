"""CSV, TSV and Parquet tables of path and label or labels (and split)."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vertebra.data.boundary import open_regular, read_regular, refuse_large
from vertebra.data.splits import split_of
from vertebra.spec.errors import VertebraError, did_you_mean

_PATH = (
    *(
        "path",
        "file",
        "filename",
        "filepath",
        "image",
        "imagepath",
        "imagefile",
        "imagename",
        "img",
        "imgpath",
        "fname",
    ),
    *("paths", "files", "filenames", "filepaths", "images", "imageid", "name"),
)
_LABEL = ("label", "class", "target", "category", "classname", "labelname", "labels", "classes", "tags")
_SPLIT = ("split", "subset", "set", "partition", "dataset", "phase")
_FLAG = re.compile(r"is[\s_-]+", re.IGNORECASE)
"""Begins the name of a column that marks a split by 1, as `is_valid`."""
_MARKS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_SEPARATORS = ("|", ";", ",")
TABLES = (".csv", ".tsv", ".parquet")
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


@dataclass(frozen=True, slots=True)
class Columns:
    """What is what in a table whose header does not say so; nothing: what its usual names say."""

    path: str | None = None
    labels: tuple[str, ...] = ()
    """One: the column of labels. Several: columns of 0 and 1, each a class."""
    split: str | None = None
    separator: str | None = None
    """What stands between an image's labels, where it may have several or none."""


@dataclass(frozen=True, slots=True)
class _Header:
    """Where a table has what."""

    path: int
    label: int | None
    classes: dict[str, int]
    split: int | None
    flags: dict[int, str]
    """Columns of 0 and 1 that mark a split each."""

    def split_of(self, line: Sequence[Any], where: str) -> str:
        """As the table calls it; "" where it does not say."""
        if self.split is not None:
            return _text_of(line[self.split]) if self.split < len(line) else ""  # a short line: empty
        marked = dict[str, bool]()
        for column, split in self.flags.items():
            text = _text_of(line[column]) if column < len(line) else ""
            mark = _MARKS.get(text.lower())
            if mark is None and split_of(text) is not None:
                return text
            if mark is None and text:
                raise VertebraError(f"{where}: the column that marks split {split!r} holds {text!r}; it takes 1 and 0")
            if mark is not None:
                marked[split] = mark
        if marked.get("train") is False and not any(marked.values()):
            return "val"
        return next((split for split, is_one in marked.items() if is_one), "train" if marked else "")


def is_table(source: str | Path) -> bool:
    """By the end of its name."""
    return str(source).lower().endswith(TABLES)


def read_table(path: Path, columns: Columns) -> Table:
    """A label is one class; several, where a separator stands between them or Parquet holds lists.

    Without a column of labels, each further column is a class, marked by 1 or 0; or only those that `columns` names.
    """
    if columns.separator == "":
        raise VertebraError("the separator of labels is empty; give what stands between two, as '|'")
    if len(columns.labels) > 1 and columns.separator:
        raise VertebraError("labels stand in one column, parted by a separator, or in columns of 0 and 1; give one")
    names, lines = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    header = _header(path, names, columns)
    at = -1 if header.label is None else header.label
    several = columns.separator is not None or any(isinstance(line[at], list) for _, line in lines if at < len(line))
    found: list[tuple[str, Label, str]] = []
    for number, line in lines:
        where = f"{path}: line {number}"
        if len(line) <= max(header.path, *header.classes.values(), header.label or 0) or not line[header.path]:
            raise VertebraError(f"{where} has no path or no label")
        if isinstance(line[header.path], dict):
            raise VertebraError(f"{path}: holds the images themselves, not their paths; give hf:{path.parent}")
        if header.classes:
            cell = tuple(name for name, column in header.classes.items() if _marked(line[column], name, where))
        else:
            cell = _classes(line[at], columns.separator, several, where)
        found.append((str(line[header.path]), cell, header.split_of(line, where)))
    return Table(found, tuple(header.classes) or None)


def _header(path: Path, names: Sequence[str], columns: Columns) -> _Header:
    image = _column(names, _PATH) if columns.path is None else _asked(path, names, columns.path, "paths")
    split = _column(names, _SPLIT) if columns.split is None else _asked(path, names, columns.split, "splits")
    flags = {number: said for number, name in enumerate(names) if _FLAG.match(name) and (said := split_of(name))}
    if columns.split is not None and split is not None:
        flags = {split: said} if (said := split_of(columns.split)) else {}  # called as one split, it marks that
        split = None if flags else split
    elif split is not None and flags:
        raise VertebraError(
            f"{path}: columns {names[split]!r} and {names[next(iter(flags))]!r} both say which split an image is in; "
            "choose one (data.split_column; on a command line --split-column)"
        )
    label = _column(names, _LABEL)
    if len(columns.labels) == 1:
        label = _asked(path, names, columns.labels[0], "labels")
    classes = dict[str, int]()
    if len(columns.labels) > 1:
        classes = {name: _asked(path, names, name, "classes") for name in columns.labels}
    elif label is None:
        free = {name.strip(): n for n, name in enumerate(names) if n not in {image, split, *flags} and name.strip()}
        classes = free if len(free) > 1 else {}
    if image is None or (label is None and not classes):
        raise VertebraError(
            f"{path}: its first line must name the columns, one of {', '.join(_PATH[:3])} and one of "
            f"{', '.join(_LABEL[:3])} among them, or you do (--path-column, --label-column; data.path_column, "
            f"data.label_columns); it is {','.join(names)!r}"
        )
    return _Header(image, label, classes, split, flags)


def _text_of(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _asked(path: Path, names: Sequence[str], name: str, what: str) -> int:
    """Where the column is that somebody named."""
    known = {known.strip(): number for number, known in enumerate(names)}
    if name.strip() not in known:
        hint = did_you_mean(name, known) or f"; it has {', '.join(known)}"
        raise VertebraError(f"{path} has no column of {what} {name!r}{hint}")
    return known[name.strip()]


def _classes(cell: Any, separator: str | None, several: bool, where: str) -> Label:
    if not several:
        if cell in ("", None):
            raise VertebraError(
                f"{where} has no path or no label; where images may have none or several, give what stands between two "
                "(data.label_separator='|'; on a command line --label-separator '|')"
            )
        return str(cell).strip()
    parts: list[Any] = cast("list[Any]", cell) if isinstance(cell, list) else str(cell or "").split(separator)
    return tuple(dict.fromkeys(name for name in (str(part).strip() for part in parts) if name))


def _marked(cell: Any, name: str, where: str) -> bool:
    mark = _MARKS.get(str(cell).strip().lower())
    if mark is None:
        raise VertebraError(
            f"{where}: column {name!r} holds {str(cell)!r}, where a column a class holds 0 and 1; name those that are "
            "classes (data.label_columns=[a, b]; on a command line --label-column a --label-column b), or call the one "
            "that holds labels 'label'"
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
                    f"data.label_separator='{separator}' and loss.kind=bce (on a command line --label-separator "
                    f"'{separator}'); if not, call it something else"
                )


def _column(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    plain = [re.sub(r"[\s_-]", "", name).lower() for name in names]
    return next((plain.index(name) for name in wanted if name in plain), None)


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
