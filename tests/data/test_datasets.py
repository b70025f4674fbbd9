"""DATA in every form it may take, to the same table."""

from __future__ import annotations

import os
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.conftest import COLOURS, check_content, png, sizes, tree
from vertebra.data.datasets import open_dataset
from vertebra.data.holdout import with_validation
from vertebra.data.members import list_folder
from vertebra.spec import VertebraError


def test_class_folders(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "cat" / "notes.txt").write_text("no photo")
    (root / "cat" / "._0.png").write_bytes(b"what a Mac leaves")
    (root / "dog" / "more").mkdir()
    (root / "dog" / "more" / "9.png").write_bytes(png("green"))
    dataset = open_dataset(root)
    assert dataset.classes == ("cat", "dog", "eel")
    assert sizes(dataset) == {"train": 10}
    check_content(dataset)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "validation", "testing")])
def test_folders_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    dataset = open_dataset(tree(tmp_path, names))
    assert sizes(dataset) == {"train": 9, "val": 9, "test": 9}
    assert dataset.classes == ("cat", "dog", "eel")
    check_content(dataset)


def test_links_are_followed_but_never_in_a_ring(tmp_path: Path) -> None:
    root, elsewhere = tree(tmp_path / "photos" / "train"), tree(tmp_path / "elsewhere")
    (root / "cat").rename(tmp_path / "cats")
    (root / "cat").symlink_to(tmp_path / "cats")
    (root.parent / "val").symlink_to(elsewhere, target_is_directory=True)
    (root / "dog" / "up").symlink_to(root.parent, target_is_directory=True)
    dataset = open_dataset(root.parent)
    assert sizes(dataset) == {"train": 9, "val": 9}
    check_content(dataset)


def test_one_folder_under_two_names_is_two_classes(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos")
    (root / "fox").symlink_to(root / "dog", target_is_directory=True)
    assert Counter(open_dataset(root).parts["train"].labels) == dict.fromkeys(range(4), 3)


def test_a_link_to_nowhere_is_named_when_it_is_read(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "cat" / "8.png").symlink_to(tmp_path / "gone.png")
    (root / "cat" / "9.png").symlink_to(root / "cat" / "9.png")
    part = open_dataset(root).parts["train"]
    lost = [sample for sample in part.samples if sample.size == 0]
    assert [Path(sample.name).name for sample in lost] == ["8.png", "9.png"]
    for sample in lost:
        with pytest.raises(VertebraError, match=rf"{sample.name}: cannot be read"):
            sample.read()


@pytest.mark.parametrize("later", [b"", b"short", b"as long as it was", b"longer than it was " * 9])
def test_a_file_that_changed_since_it_was_listed_is_read_as_it_is(tmp_path: Path, later: bytes) -> None:
    (tmp_path / "file").write_bytes(b"AS LONG AS IT WAS")
    (member,) = list_folder(tmp_path)
    (tmp_path / "file").write_bytes(later)
    assert member.read() == later


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, original = tree(tmp_path) / "dog", os.scandir

    def scandir(path: Any) -> Any:  # whoever runs the tests may be allowed everything
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(VertebraError, match=f"{closed}: cannot be read: Permission denied"):
        open_dataset(tmp_path)


def test_photos_of_a_contests_test_split_are_left_out_and_counted(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train",))
    (root / "test").mkdir()
    for i in range(2):
        (root / "test" / f"{i}.png").write_bytes(png("red"))
    dataset = open_dataset(root)
    assert sizes(dataset) == {"train": 9}
    assert dataset.note == f"{root}: 2 photos of the test split left out; they lie in no class folder"


@pytest.mark.parametrize("place", ["train", "val", "Test"])
def test_photos_that_lie_loose_in_a_split_are_named(tmp_path: Path, place: str) -> None:
    root = tree(tmp_path, ("train", "val", "Test"))
    (root / place / "loose.png").write_bytes(png("red"))
    with pytest.raises(VertebraError, match=f"{place}/loose.png lies in no class folder"):
        open_dataset(root)


def test_classes_may_be_called_as_splits_are(tmp_path: Path) -> None:
    for name in ("train", "dev", "bus"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png("red"))
    assert open_dataset(tmp_path).classes == ("bus", "dev", "train")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_of_path_and_label(tmp_path: Path, suffix: str) -> None:
    tree(tmp_path / "images")
    rows = [(f"images/{name}/{i}.png", name, ("train", "train", "valid")[i]) for name in COLOURS for i in range(3)]
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        columns = zip(*rows, strict=True)
        parquet.write_table(pa.table(dict(zip(("path", "label", "split"), map(list, columns), strict=True))), path)
    else:
        comma = "\t" if suffix == ".tsv" else ","
        path.write_text("\n".join(comma.join(row) for row in [("Path", "Label", "Split"), *rows]))
    dataset = open_dataset(path)
    assert sizes(dataset) == {"train": 6, "val": 3}
    check_content(dataset)


def hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, tuple[list[Any], list[Any]]]) -> None:
    """The library `datasets` as far as it is used, with (labels, images) for each split of o/pets."""

    class Images:
        def __init__(self, decode: bool = True) -> None:
            self.decode = decode

    class ClassLabel:
        def __init__(self) -> None:
            self.names = list(COLOURS)

    class Table:
        def __init__(self, labels: list[Any], images: list[Any]) -> None:
            self.labels, self.images = labels, images
            self.features: dict[str, Any] = {"picture": Images(), "kind": ClassLabel()}

        def cast_column(self, column: str, kind: Images) -> Table:
            assert column == "picture"
            assert not kind.decode
            return self

        def __getitem__(self, key: int | str) -> Any:
            return self.labels if key == "kind" else {"picture": self.images[int(key)]}

    fake: Any = types.ModuleType("datasets")
    fake.Image, fake.ClassLabel = Images, ClassLabel
    found = {("o/pets", None): {name: Table(*columns) for name, columns in splits.items()}}
    fake.load_dataset = lambda name, config: found[name, config]
    monkeypatch.setitem(sys.modules, "datasets", fake)


IMAGES = [{"bytes": png(colour), "path": None} for colour in COLOURS.values()]


def test_a_hub_dataset_through_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"train": ([0, 1, 2], IMAGES), "validation": ([0, 1, 2], IMAGES)})
    dataset = open_dataset("hf:o/pets")
    assert dataset.classes == tuple(COLOURS)
    assert sizes(dataset) == {"train": 3, "val": 3}
    check_content(dataset)


def test_a_split_of_the_hub_that_is_none_of_ours_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = ([0, None, 7], IMAGES)  # what is in it does not matter
    hub(monkeypatch, {"train": ([0, 1, 2], IMAGES), "extra": extra, "test": ([0, 1, 2], IMAGES)})
    dataset = open_dataset("hf:o/pets")
    assert sizes(dataset) == {"train": 3, "test": 3}
    assert dataset.note == "hf:o/pets: split 'extra' left out; only train, val and test are read"
    hub(monkeypatch, {"train": ([0, 1, 2], IMAGES)})
    assert open_dataset("hf:o/pets").note == ""
    hub(monkeypatch, {"extra": extra})
    with pytest.raises(VertebraError, match="split 'extra' is none of train, val and test, and there is no other"):
        open_dataset("hf:o/pets")


def test_hub_datasets_of_other_images_are_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = list[object]()
    for padding in (b"", b"\0", b""):
        images = [{"bytes": image["bytes"] + padding, "path": None} for image in IMAGES]
        hub(monkeypatch, {"train": ([0, 1, 2], images)})
        prints.append(open_dataset("hf:o/pets").fingerprint())
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_a_folder_beside_the_splits_is_left_out_and_said(tmp_path: Path, prefix: str) -> None:
    root = tree(tmp_path / "data" / prefix, ("train", "Val", "extra"))
    (root / "holdout").mkdir()
    (root / "holdout" / "0.png").write_bytes(png("red"))
    dataset = open_dataset(tmp_path / "data")
    assert (dataset.classes, sizes(dataset)) == (tuple(COLOURS), {"train": 9, "val": 9})
    assert dataset.note.endswith("split 'extra', 'holdout' left out; only train, val and test are read")
    check_content(dataset)


def test_a_lone_split_is_one_however_it_is_written(tmp_path: Path) -> None:
    assert sizes(open_dataset(tree(tmp_path, ("Test",)))) == {"test": 9}


def test_a_name_that_is_no_utf8_counts_like_any_other(tmp_path: Path) -> None:
    root = tree(tmp_path)
    before = open_dataset(root).fingerprint()
    (root / "cat" / "0.png").rename(root / "cat" / os.fsdecode(b"caf\xe9.png"))
    assert open_dataset(root).fingerprint() != before


@pytest.mark.parametrize("none", [-1, None])
def test_what_a_hub_dataset_has_no_label_for_is_of_no_class(monkeypatch: pytest.MonkeyPatch, none: int | None) -> None:
    hub(monkeypatch, {"train": ([0, 1, 2], IMAGES), "test": ([none] * 3, IMAGES)})
    assert sizes(open_dataset("hf:o/pets")) == {"train": 3}
    hub(monkeypatch, {"train": ([0, none, 2], IMAGES)})
    with pytest.raises(VertebraError, match=r"hf:o/pets: train\[1\] has no label, and 1 of its 3 rows"):
        open_dataset("hf:o/pets")


def test_an_image_that_a_hub_dataset_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = {"bytes": None, "path": None}
    hub(monkeypatch, {"train": ([0, 1, 2], [None, nothing, {"bytes": None, "path": str(tmp_path / "gone.png")}])})
    for index, sample in enumerate(open_dataset("hf:o/pets").parts["train"].samples):
        with pytest.raises(
            VertebraError, match=rf"^train\[{index}\]: (.*gone.png: )?cannot be read: (there is no|No such)"
        ):
            sample.read()


def test_a_hub_dataset_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(VertebraError, match="pip install datasets"):
        open_dataset("hf:o/pets")


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png("red"))
    assert open_dataset(tmp_path).classes == ("1", "9", "10")


def test_a_split_is_stratified_and_hangs_on_nothing_but_the_seed(tmp_path: Path) -> None:
    whole = open_dataset(tree(tmp_path, each=20))
    first, again, other = (with_validation(whole, 0.2, seed) for seed in (0, 0, 1))
    assert Counter(first.parts["val"].labels) == {0: 4, 1: 4, 2: 4}
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()
    names = [{sample.name for sample in first.parts[part].samples} for part in ("train", "val")]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 60
    assert with_validation(first, 0.5, 3) is first


def test_a_fingerprint_changes_with_names_sizes_and_labels_not_with_the_place(tmp_path: Path) -> None:
    here, there = tree(tmp_path / "a"), tree(tmp_path / "b")
    before = open_dataset(here).fingerprint()
    assert before == open_dataset(there).fingerprint()
    (there / "cat" / "0.png").write_bytes(png("red") + b"\0")
    assert before != open_dataset(there).fingerprint()
    (here / "cat" / "0.png").rename(here / "dog" / "7.png")
    assert before != open_dataset(here).fingerprint()


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "a.png").write_bytes(png("red"))
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "one" / "only" / "a.png").write_bytes(png("red"))
    (tmp_path / "broken.zip").write_bytes(b"PK no")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    (tmp_path / "gone.csv").write_text("path,label\nnot-there.png,cat\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    for source, message in {
        "loose": "lies in no class folder",
        "one": "only one class",
        "broken.zip": "cannot be read as a zip",
        "odd.csv": "must name the columns",
        "gone.csv": "no image at",
        "empty": "holds no images",
        "photo.jpg": "data is a folder",
        "nowhere": "no data at",
    }.items():
        with pytest.raises(VertebraError, match=message):
            open_dataset(tmp_path / source)


def test_folders_without_a_photo_are_told_of(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/a.png", "val/cat/b.png", "val/dog/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png("red"))
    assert open_dataset(tmp_path).note == ""
    for name in ("train/eel/deep", "val/.hidden", "notes"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "train" / "eel" / "read.txt").write_text("no photo")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.note == f"{tmp_path}: no photo in notes, train/eel; a folder without is no class"
