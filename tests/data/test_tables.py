"""Tables in which an image has any number of classes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from vertebra.data.datasets import Part, class_counts, open_dataset
from vertebra.data.holdout import with_validation
from vertebra.data.loader import Loader, Order, target
from vertebra.data.tables import Columns
from vertebra.spec import VertebraError

CELLS = ("cat|dog", "dog", "", "eel | cat", "dog|dog|")
SETS = ((0, 1), (1,), (), (0, 2), (1,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(len(CELLS)):
        (tmp_path / f"{i}.png").write_bytes(b"no image, but a file")
    return tmp_path


def write(folder: Path, name: str, header: str, cells: list[str]) -> Path:
    path = folder / name
    comma = "\t" if path.suffix == ".tsv" else ","
    lines = [f"{i}.png{comma}{cell}" for i, cell in enumerate(cells)]
    path.write_text("\n".join([header.replace(",", comma), *lines]) + "\n")
    return path


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv"])
def test_a_separator_parts_a_cell_and_an_empty_one_means_none(folder: Path, name: str) -> None:
    dataset = open_dataset(write(folder, name, "path,labels", list(CELLS)), Columns(separator="|"))
    assert dataset.multi_label
    assert dataset.classes == ("cat", "dog", "eel")
    assert dataset.parts["train"].labels == SETS
    assert class_counts(dataset.parts["train"], dataset.classes) == {"cat": 2, "dog": 3, "eel": 1}


def test_semicolons_part_what_a_spreadsheet_saved(folder: Path) -> None:
    (folder / "excel.csv").write_text(
        '\ufeffpath;label\r\n0.png;cat, small\r\n1.png;"dog; large"\r\n', encoding="utf-8"
    )
    assert open_dataset(folder / "excel.csv").classes == ("cat, small", "dog; large")
    (folder / "tabs.csv").write_text("path\tlabel\n0.png\tcat\n1.png\tdog, large\n")
    assert open_dataset(folder / "tabs.csv").classes == ("cat", "dog, large")


def test_what_is_wrong_in_a_table_is_named_with_its_place(folder: Path) -> None:
    for line, message in (
        ("0.png,cat,bar", f"unknown split 'bar' for 0.png in {folder / 't.csv'}"),
        ("gone.png,cat,train", f"no image at {folder / 'gone.png'}; paths in it are relative to {folder}"),
    ):
        (folder / "t.csv").write_text(f"path,label,split\n{line}\n1.png,dog,train\n")
        with pytest.raises(VertebraError, match=re.escape(message)):
            open_dataset(folder / "t.csv")


def test_parquet_lists_need_no_separator(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    lists = [["cat", "dog"], ["dog"], None, ["eel", "cat"], ["dog"]]
    parquet.write_table(pa.table({"path": [f"{i}.png" for i in range(5)], "label": lists}), folder / "t.parquet")
    dataset = open_dataset(folder / "t.parquet")
    assert dataset.classes == ("cat", "dog", "eel")
    assert dataset.parts["train"].labels == SETS


def test_columns_of_zero_and_one_are_classes_in_their_order(folder: Path) -> None:
    cells = ["train,0,1,1.0", "train,0,1,0", "val,0,0,0", "val,true,0,1", "train,0,1,0"]
    dataset = open_dataset(write(folder, "t.csv", "path,split,eel,dog,cat", cells))
    assert dataset.classes == ("eel", "dog", "cat")
    assert dataset.parts["train"].labels == ((1, 2), (1,), (1,))
    assert dataset.parts["val"].labels == ((), (0, 2))
    chosen = open_dataset(folder / "t.csv", Columns(labels=("cat", "dog")))
    assert chosen.classes == ("cat", "dog")
    assert chosen.parts["val"].labels == ((), (0,))


def test_what_is_unclear_is_refused_with_the_setting_that_helps(folder: Path) -> None:
    labels = write(folder, "labels.csv", "path,label", list(CELLS))
    full = write(folder, "full.csv", "path,label", ["cat|dog", "dog", "cat", "eel", "eel"])
    ages = write(folder, "ages.csv", "path,cat,age", ["1,43"] * 5)
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (full, {}, r"'cat\|dog' looks like 2 classes at once; .*data.label_separator='\|' and loss.kind=bce"),
        (full, {"separator": ";"}, r"'cat\|dog' looks like 2 classes"),
        (labels, {}, r"line 4 has no path or no label; .*data.label_separator"),
        (ages, {}, r"column 'age' holds '43'.*data.label_columns=\[a, b\]"),
        (ages, {"labels": ("cat", "agee")}, "no column of classes 'agee'.*did you mean 'age'"),
        (ages, {"labels": ("cat",)}, "only one class"),
        (labels, {"separator": "|", "labels": ("cat", "dog")}, "give one"),
        (labels, {"separator": ""}, "separator of labels is empty"),
        (folder, {"separator": "|"}, "are for tables"),
    ]
    for source, options, message in cases:
        with pytest.raises(VertebraError, match=message):
            open_dataset(source, Columns(**options))


def test_a_line_that_ends_before_its_split_has_none(folder: Path) -> None:
    dataset = open_dataset(write(folder, "t.csv", "path,label,split", ["cat,train", "dog", "cat,val", "dog,"]))
    assert {name: part.labels for name, part in dataset.parts.items()} == {"train": (0, 1, 1), "val": (0,)}


def test_a_quote_without_a_second_is_named_with_its_line(folder: Path) -> None:
    table = write(folder, "t.csv", "path,label", ["cat", "", '"dog', "eel", "cat"])
    with pytest.raises(VertebraError, match=r'line \d+: unexpected end of data; is there a quote \("\) that'):
        open_dataset(table)


def test_lines_are_numbered_as_an_editor_does(folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text("path,label\n\n0.png,cat\n\n1.png\n")
    with pytest.raises(VertebraError, match="line 5 has no path or no label"):
        open_dataset(table)


def test_names_with_commas_that_are_no_lists_stay(folder: Path) -> None:
    cells = ['"crane, bird"', '"maillot, tank suit"', "maillot", "crane", "missile"]
    assert len(open_dataset(write(folder, "t.csv", "path,label", cells)).classes) == 5


def test_rows_reach_the_batch(folder: Path) -> None:
    part = open_dataset(write(folder, "t.csv", "path,label", list(CELLS)), Columns(separator="|")).parts["train"]
    assert target(part, 3).tolist() == [1, 0, 1]
    assert target(part, 2).tolist() == [0, 0, 0]
    loader = Loader(part, lambda _: torch.zeros(3, 2, 2), Order(images=5, batch_size=5, shuffle=False))
    (batch,) = loader.epoch(0)
    assert batch.labels.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert part.fingerprint() != Part(part.samples, (*SETS[:4], (0,)), 3).fingerprint()


def test_a_split_gives_each_class_its_share_and_leaves_it_one(folder: Path) -> None:
    numbers = torch.Generator().manual_seed(1)
    drawn = torch.rand(400, 6, generator=numbers) < torch.tensor([0.5, 0.3, 0.1, 0.05, 0.01, 0.01])
    cells = ["|".join("abcdef"[i] for i in row.nonzero().flatten()) for row in drawn]
    cells += ["x|y", "x|y", "z"]  # x and y only together
    for i in range(len(cells)):
        (folder / f"{i}.png").write_bytes(b"a")
    whole = open_dataset(write(folder, "t.csv", "path,label", cells), Columns(separator="|"))
    split = with_validation(whole, 0.2, 0)
    counts = {name: class_counts(part, whole.classes) for name, part in split.parts.items()}
    for name, total in class_counts(whole.parts["train"], whole.classes).items():
        held = counts["val"][name]
        assert counts["train"][name] >= 1
        assert held >= (total > 1)
        assert abs(held - 0.2 * total) <= 1 + 0.02 * total, (name, held, total)
    none = [Counter(part.labels)[()] for part in split.parts.values()]
    assert none[1] == round(0.2 * sum(none))
    assert split.fingerprint() == with_validation(whole, 0.2, 0).fingerprint()
    assert split.fingerprint() != with_validation(whole, 0.2, 1).fingerprint()


def test_no_class_loses_its_last_image_to_a_split(folder: Path) -> None:
    whole = open_dataset(write(folder, "t.csv", "path,label", ["a|b", "a|c", "b|c"]), Columns(separator="|"))
    for seed in range(8):
        train = with_validation(whole, 0.1, seed).parts["train"]
        assert min(class_counts(train, whole.classes).values()) >= 1
