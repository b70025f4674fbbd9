"""One rule for what is a split and what a class, wherever the name stands; and which names no class may have."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest

from tests.data.conftest import COLOURS, check_content, pack, png, sizes, tree
from vertebra.cli.inputs import expand
from vertebra.data.datasets import open_dataset
from vertebra.data.splits import shared_out, split_named, split_of
from vertebra.data.tables import Columns
from vertebra.spec import UnknownNameError, VertebraError

PAIRS = [
    ("train_images", "val_images", "val"),
    ("training_set", "test_set", "test"),
    ("seg_train", "seg_test", "test"),
    ("images_train", "images_test", "test"),
    ("TrainImages", "TestImages", "test"),
    ("train2017", "val2017", "val"),
    ("trainset", "testset", "test"),
    ("train-data", "validation-data", "val"),
    ("Train", "Test", "test"),
    ("my train", "my dev", "val"),
]


@pytest.mark.parametrize(("first", "second", "other"), PAIRS)
@pytest.mark.parametrize("kind", ["folders", "one zip", "zips", "tars", "table"])
def test_what_is_called_so_is_a_split_wherever_it_is(
    tmp_path: Path, first: str, second: str, other: str, kind: str
) -> None:
    source = tree(tmp_path / "in", (first, second))
    if kind == "one zip":
        source = pack(source, tmp_path / "packed" / "photos.zip")
    elif kind == "zips":
        for split in (first, second):
            pack(source / split, tmp_path / "packed" / f"{split}.zip")
        source = tmp_path / "packed"
    elif kind == "tars":
        import tarfile

        (tmp_path / "packed").mkdir()
        for split in (first, second):
            with tarfile.open(tmp_path / "packed" / f"{split}.tar", "w") as archive:
                archive.add(source / split, arcname=".")
        source = tmp_path / "packed"
    elif kind == "table":
        files = [f"{s}/{name}/{i}.png" for s in (first, second) for name in COLOURS for i in range(3)]
        lines = [f"{file},{file.split('/')[1]},{file.split('/')[0]}" for file in files]
        (source / "t.csv").write_text("\n".join(["path,label,split", *lines]))
        source = source / "t.csv"
    dataset = open_dataset(source)
    assert dataset.classes == tuple(COLOURS)
    assert sizes(dataset) == {"train": 9, other: 9}
    check_content(dataset)


@pytest.mark.parametrize(
    "names",
    [
        ("bullet_train", "test_tube", "cat"),  # differ in more than the split
        ("test_tube", "cat"),
        ("train_station", "train_depot"),  # one split alone
        ("validation", "train-track", "sea"),
    ],
)
def test_classes_with_folders_of_their_own_are_no_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    expected = tuple(sorted(names))
    if "validation" in names:
        expected = ("day", "night")  # called just so, it is a split
    for name in names:
        for deep in ("day", "night"):
            (tmp_path / name / deep).mkdir(parents=True)
            (tmp_path / name / deep / "0.png").write_bytes(png("red"))
    assert open_dataset(tmp_path).classes == expected


def test_every_twin_counts_and_what_stands_beside_is_left_out() -> None:
    assert shared_out(["seg_train", "seg_test", "seg_pred"]) == {"seg_train": "train", "seg_test": "test"}
    assert shared_out(["train", "val_images", "extra"]) == {"train": "train", "val_images": "val"}
    assert shared_out(["train", "cat"]) == {"train": "train"}
    assert shared_out(["train_a", "test_b"]) == {"train_a": "train", "test_b": "test"}  # each says one
    assert shared_out(["train_a", "test_b", "cat"]) == {}
    assert shared_out(["cat", "dog"]) == shared_out([]) == {}
    assert [split_of(name) for name in ("", "contest", "detrain", "latest", "dataset", "日本")] == [None] * 6
    with pytest.raises(UnknownNameError, match="unknown split 'bar'"):
        split_named("bar")


@pytest.mark.parametrize("wrapper", ["seg_train", "images"])
def test_a_folder_around_the_classes_of_every_split_is_none(tmp_path: Path, wrapper: str) -> None:
    """As contests pack them: seg_train/seg_train/sea, and seg_pred/seg_pred of photos alone."""
    tree(tmp_path / "seg_train" / wrapper)
    tree(tmp_path / "seg_test" / ("seg_test" if wrapper == "seg_train" else wrapper))
    (tmp_path / "seg_pred" / "seg_pred").mkdir(parents=True)
    (tmp_path / "seg_pred" / "seg_pred" / "1.png").write_bytes(png("red"))
    dataset = open_dataset(tmp_path)
    assert (dataset.classes, sizes(dataset)) == (tuple(COLOURS), {"train": 9, "test": 9})
    assert dataset.left_out == ("seg_pred",)


def test_folders_beside_a_lone_val_are_for_training_as_archives_are(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", ("photos", "val"))
    assert sizes(open_dataset(root)) == {"train": 9, "val": 9}
    check_content(open_dataset(root))
    (tmp_path / "more" / "val" / "cat").mkdir(parents=True)
    tree(tmp_path / "more" / "val")
    tree(tmp_path / "more")  # class folders themselves
    (tmp_path / "more" / "cat" / "cat").mkdir()
    (tmp_path / "more" / "cat" / "cat" / "9.png").write_bytes(png("red"))
    dataset = open_dataset(tmp_path / "more")
    assert (dataset.classes, sizes(dataset)) == (tuple(COLOURS), {"train": 10, "val": 9})


LITTER = ("@eaDir", ".AppleDouble", "__MACOSX", "lost+found", "$RECYCLE.BIN", "#recycle", "System Volume Information")


@pytest.mark.parametrize("name", LITTER)
def test_what_systems_keep_beside_the_data_is_no_class(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path / "in", ("train", "val"))
    for place in ("", "train", "train/cat"):
        (root / place / name / "cat").mkdir(parents=True)
        (root / place / name / "0.png").write_bytes(b"a thumbnail")
        (root / place / name / "cat" / "SYNOPHOTO_THUMB_XL.jpg").write_bytes(b"a thumbnail")
    (root / "train" / "cat" / "Thumbs.db").write_bytes(b"")
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(root).as_posix())
    for source in (root, packed):
        dataset = open_dataset(source)
        assert (dataset.classes, sizes(dataset), dataset.note) == (tuple(COLOURS), {"train": 9, "val": 9}, "")
    photos, failures = expand([str(root)])
    assert (len(photos), failures) == (18, {})


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x1b[31m", "a\u2028b", "tab\there", os.fsdecode(b"caf\xe9")])
def test_a_class_that_no_list_of_names_could_hold_is_refused_before_training(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path)
    (root / name).mkdir()
    (root / name / "0.png").write_bytes(png("red"))
    with pytest.raises(VertebraError, match=re.escape(f"class {name!r} ")) as caught:
        open_dataset(root)
    assert str(caught.value).isprintable()
    assert re.search("holds a line break or another control|is no UTF-8", str(caught.value))


def test_names_of_every_language_are_names(tmp_path: Path) -> None:
    names = ("Ärger", "кот", "猫", "قطة", "a b", "#1", "🐈")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png("red"))
    assert set(open_dataset(tmp_path).classes) == set(names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png("red"))
    return tmp_path


def table(folder: Path, header: str, *cells: str) -> Path:
    (folder / "t.csv").write_text("\n".join([header, *(f"{i}.png,{cell}" for i, cell in enumerate(cells))]))
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("name,label,is_valid", ("a,False", "b,True", "a,0", "b,1.0"), {"train": 2, "val": 2}),
        ("name,label,is_valid", ("a,", "b,True", "a,", "b,1"), {"train": 2, "val": 2}),
        ("fname,label,Is Valid", ("a,false", "b,true", "a,False", "b,TRUE"), {"train": 2, "val": 2}),
        ("path,label,is_train", ("a,1", "b,1", "a,0", "b,0"), {"train": 2, "val": 2}),
        ("path,label,is_test", ("a,0", "b,0", "a,1", "b,0"), {"train": 3, "test": 1}),
        ("path,label,is_valid,is_test", ("a,0,0", "b,1,0", "a,0,1", "b,0,0"), {"train": 2, "val": 1, "test": 1}),
        ("filepaths,labels,data set", ("a,train", "b,valid", "a,test", "b,train"), {"train": 2, "val": 1, "test": 1}),
        ("path,label,phase", ("a,training", "b,Test Set", "a,Training", "b,training"), {"train": 3, "test": 1}),
    ],
)
def test_a_tables_split_is_read_however_it_is_said(
    folder: Path, header: str, cells: tuple[str, ...], expected: dict[str, int]
) -> None:
    dataset = open_dataset(table(folder, header, *cells))
    assert (dataset.classes, sizes(dataset)) == (("a", "b"), expected)


def test_a_column_that_marks_a_split_is_no_class_and_takes_marks_alone(folder: Path) -> None:
    dataset = open_dataset(table(folder, "path,cat,dog,is_valid", "1,0,0", "0,1,1", "1,1,0", "1,0,0"))
    assert (dataset.classes, sizes(dataset)) == (("cat", "dog"), {"train": 3, "val": 1})
    with pytest.raises(VertebraError, match="marks split 'val' holds 'perhaps'; it takes 1 and 0"):
        open_dataset(table(folder, "path,label,is_valid", "a,1", "b,perhaps"))
    both = table(folder, "path,label,split,is_valid", "a,train,1", "b,train,0", "a,val,1", "b,val,0")
    with pytest.raises(VertebraError, match=r"'split' and 'is_valid' both say .* --split-column"):
        open_dataset(both)
    assert open_dataset(both, Columns(split="is_valid")).part("val").labels == (0, 0)
    assert open_dataset(both, Columns(split="split")).part("val").labels == (0, 1)


def test_columns_of_any_name_can_be_chosen(folder: Path) -> None:
    path = table(folder, "foto,label,holdout,Species", "x,train,b", "y,test,a", "x,train,a", "y,test,b")
    columns = Columns(path="foto", labels=("Species",), split="holdout")
    dataset = open_dataset(path, columns)
    assert dataset.classes == ("a", "b")
    assert {name: part.labels for name, part in dataset.parts.items()} == {"train": (1, 0), "test": (0, 1)}
    several = table(folder, "foto,valid,kinds", "1,a|b", "0,b", "1,a", "0,")
    dataset = open_dataset(several, Columns("foto", ("kinds",), "valid", "|"))
    assert {name: part.labels for name, part in dataset.parts.items()} == {"train": ((1,), ()), "val": ((0, 1), (0,))}
    for wrong, said in (
        (Columns(path="fotos"), "no column of paths 'fotos'; did you mean 'foto'"),
        (Columns(path="foto", split="fold"), "no column of splits 'fold'"),
        (Columns(path="foto", labels=("kind",)), "no column of labels 'kind'; did you mean 'kinds'"),
    ):
        with pytest.raises(VertebraError, match=said):
            open_dataset(several, wrong)
    with pytest.raises(VertebraError, match=r"--path-column, --label-column; data.path_column"):
        open_dataset(several)
    with pytest.raises(VertebraError, match=r"path_column, .* are for tables"):
        open_dataset(folder, Columns(path="foto"))


def test_labels_that_are_numbers_stand_in_their_order(folder: Path) -> None:
    assert open_dataset(table(folder, "path,label", "10.0", "2.0", "-1.5", "2")).classes == ("-1.5", "2", "2.0", "10.0")
    assert open_dataset(table(folder, "path,label", "10", "9", "x10", "x9")).classes == ("9", "10", "x10", "x9")


def test_a_table_of_images_themselves_is_told_from_one_of_paths(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"bytes": png("red"), "path": None}, {"bytes": png("green"), "path": None}]
    parquet.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(VertebraError, match=f"holds the images themselves, not their paths; give hf:{tmp_path}"):
        open_dataset(tmp_path / "t.parquet")


def test_paths_written_on_windows_are_found(tmp_path: Path) -> None:
    tree(tmp_path / "images", each=1)
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"images\\{name}\\0.png,{name}\n" for name in COLOURS))
    check_content(open_dataset(tmp_path / "t.csv"))
