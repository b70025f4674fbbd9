"""What the classes are called."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

from vertebra.spec.errors import VertebraError
from vertebra.spec.record import parse_json

_IMAGENET1K = Path(__file__).parent / "imagenet1k_classes.txt"
"""A file of our own, which a test compares: importing torchvision for its list takes a second."""


@cache
def imagenet1k_labels() -> tuple[str, ...]:
    """The 1,000 names of ImageNet-1k in the order of its classes, as torchvision's weights carry them too."""
    return tuple(_IMAGENET1K.read_text(encoding="utf-8").splitlines())


def load_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names in class order from a .txt (one a line), .json (list, {index: name} or {name: index}) or .csv (index,name).

    A .csv may open with a header line, and may have further columns between or after those two when it does. Indices
    must be 0, 1, 2, ... without gaps, in any order. Raises `VertebraError`.
    """
    file = Path(path)
    readers = {".txt": _from_text, ".json": _from_json, ".csv": _from_csv}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        own = f"not {file.suffix!r}" if file.suffix else "and this name has no ending"
        raise VertebraError(f"{file}: labels are read from {', '.join(readers)} files, {own}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise VertebraError(f"{file}: labels must be UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise VertebraError(f"{file}: labels cannot be read: {error.strerror}") from error
    labels = reader(text, file)
    if not labels:
        raise VertebraError(f"{file}: holds no labels")
    if "" in labels:
        raise VertebraError(f"{file}: class {labels.index('')} has an empty name")
    return labels


def labels_for(num_classes: int, pretrained_cfg: Mapping[str, object] | None) -> tuple[str, ...] | None:
    """Names of a model's classes, or None when nothing says what they are.

    The configuration's own `label_names` come first; ImageNet's names only for 1,000 classes of a checkpoint whose tag
    says that ImageNet-1k is what it was trained on last.
    """
    config = pretrained_cfg or {}
    own = config.get("label_names")
    if isinstance(own, Mapping):
        own = _from_pairs(cast("Mapping[object, object]", own), "label_names")
    if isinstance(own, (list, tuple)) and len(cast("Sequence[object]", own)) == num_classes:
        return tuple(str(name) for name in cast("Sequence[object]", own))
    if num_classes == 1000 and config.get("num_classes", 1000) == 1000 and not own and _is_imagenet1k(config):
        return imagenet1k_labels()
    return None


def check_written(source: str, classes: Iterable[str]) -> None:
    """Raise for a name that could not be read back from a list of one name a line in UTF-8, which a run leaves."""
    for name in classes:
        line_break = any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in name)
        if line_break or any("\ud800" <= char <= "\udfff" for char in name):
            kind = "holds a line break or another control character" if line_break else "is no UTF-8"
            raise VertebraError(f"{source}: class {name!r} {kind}, and could not be written down; call it otherwise")


def places(classes: Sequence[str], known: Sequence[str]) -> tuple[list[int], list[str]]:
    """Where classes stand among those that a model knows, by name (the first of equals), and which it does not know."""
    where = {name: index for index, name in reversed(list(enumerate(known)))}
    return [where[name] for name in classes if name in where], [name for name in classes if name not in where]


def _is_imagenet1k(config: Mapping[str, object]) -> bool:
    """Tags list data sets in the order of training: `fb_in22k_ft_in1k` ends on ImageNet-1k, `in1k_ft_cars` does not."""
    tag = config.get("tag")
    if not isinstance(tag, str):
        return False
    head, _, last = tag.rpartition("_ft_")
    datasets = re.findall(r"(?:^|_)(in\d+k)(?=_|$)", last if head else tag)
    return bool(datasets) and datasets[-1] == "in1k"


def _from_text(text: str, _file: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _from_json(text: str, file: Path) -> tuple[str, ...]:
    content: object = parse_json(text, str(file))
    if isinstance(content, dict):
        return _from_pairs(cast("dict[object, object]", content), str(file))
    if isinstance(content, list) and all(isinstance(name, str) for name in cast("list[object]", content)):
        return tuple(cast("list[str]", content))
    raise VertebraError(f"{file}: give a JSON list of names, {{index: name}} or {{name: index}}")


def _from_pairs(pairs: Mapping[object, object], where: str) -> tuple[str, ...]:
    """{index: name} or {name: index}; JSON's keys are always strings, so digits count as an index."""
    if pairs and all(isinstance(value, int) for value in pairs.values()):
        return _in_order([(str(index), str(name)) for name, index in pairs.items()], where)
    return _in_order([(str(index), str(name)) for index, name in pairs.items()], where)


def _from_csv(text: str, file: Path) -> tuple[str, ...]:
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
    except csv.Error as error:  # a cell of more than 128 kB
        raise VertebraError(f"{file}: is no table of classes: {error}") from error
    index, name = 0, 1
    if rows and not rows[0][0].isdigit():
        header = [cell.lower() for cell in rows.pop(0)]
        if "index" not in header or "name" not in header:
            raise VertebraError(
                f"{file}: its first line must be index,name or the first class; it is {','.join(header)}"
            )
        index, name = header.index("index"), header.index("name")
    for row in rows:
        if len(row) <= max(index, name):
            raise VertebraError(f"{file}: the line {','.join(row)!r} has no index and name")
    return _in_order([(row[index], row[name]) for row in rows], str(file))


def _in_order(pairs: list[tuple[str, str]], where: str) -> tuple[str, ...]:
    wrong = [index for index, _ in pairs if not (index.isascii() and index.isdigit())]
    if wrong:
        raise VertebraError(f"{where}: {wrong[0]!r} is not a class index; indices are 0, 1, 2, ...")
    names: dict[int, str] = {}
    for index, name in pairs:
        if int(index) in names:
            raise VertebraError(f"{where}: index {index} stands there twice")
        names[int(index)] = name
    missing = next((index for index in range(len(names)) if index not in names), None)
    if missing is not None:
        raise VertebraError(f"{where}: index {missing} is missing; indices are 0, 1, 2, ... without gaps")
    return tuple(names[index] for index in range(len(names)))
