"""Class names: ImageNet's, a file's, a checkpoint's."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import ResNet18_Weights

from vertebra.data import imagenet1k_labels, labels_for, load_labels
from vertebra.data.labels import places
from vertebra.spec.errors import VertebraError

IN1K = {"tag": "fb_in1k", "num_classes": 1000}


def test_imagenet_names_stand_in_the_order_of_the_classes(shared_data: Path) -> None:
    labels = imagenet1k_labels()
    assert len(labels) == 1000
    assert (labels[258], labels[0], labels[999]) == ("Samoyed", "tench", "toilet tissue")
    with (shared_data / "imagenet1k_classes.csv").open(newline="") as file:
        listed = [row["name"] for row in csv.DictReader(file)]
    # Two pairs of classes share a name in that list; torchvision tells them apart.
    differing = {i: (ours, other) for i, (ours, other) in enumerate(zip(labels, listed, strict=True)) if ours != other}
    assert differing == {134: ("crane bird", "crane"), 639: ("maillot tank suit", "maillot")}
    assert len(set(labels)) == 1000
    assert labels == tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "cat\ndog\nred fox\n"),
        ("bom.TXT", "\ufeffcat\r\n dog\r\nred fox\r\n\r\n"),
        ("list.json", '["cat", "dog", "red fox"]'),
        ("by_index.json", '{"2": "red fox", "0": "cat", "1": "dog"}'),
        ("by_name.json", '{"red fox": 2, "cat": 0, "dog": 1}'),
        ("plain.csv", "0,cat\n1,dog\n2,red fox\n"),
        ("header.csv", "index,name\n2,red fox\n0,cat\n1,dog\n"),
        ("more.csv", "index,synset,name\n0,n1,cat\n1,n2,dog\n2,n3,red fox\n"),
        ("quoted.csv", 'Index,Name\n0,"cat"\n1,dog\n\n2,red fox\n'),
    ],
)
def test_label_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert load_labels(tmp_path / name) == ("cat", "dog", "red fox")
    assert load_labels(str(tmp_path / name)) == ("cat", "dog", "red fox")


@settings(deadline=None)
@given(names=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1), min_size=1))
def test_any_names_survive_json(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "names.json"
    for content in (names, {str(i): name for i, name in enumerate(names)}):
        file.write_text(json.dumps(content))
        assert load_labels(file) == tuple(names)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"- cat", ".txt, .json, .csv files, not '.yaml'"),
        ("labels", b"cat", ".txt, .json, .csv files, and this name has no ending"),
        ("empty.txt", b"\n", "holds no labels"),
        ("empty.json", b"[]", "holds no labels"),
        ("empty.csv", b"", "holds no labels"),
        ("hole.txt", b"cat\n\ndog", "class 1 has an empty name"),
        ("latin.txt", b"caf\xe9", "UTF-8"),
        ("broken.json", b"[", "is not JSON"),
        ("number.json", b"3", "give a JSON list"),
        ("numbers.json", b"[1, 2]", "give a JSON list"),
        ("gap.json", b'{"0": "cat", "2": "dog"}', "index 1 is missing"),
        ("twice.json", b'{"cat": 0, "dog": 0}', "index 0 stands there twice"),
        ("word.json", b'{"zero": "cat"}', "'zero' is not a class index"),
        ("negative.csv", b"0,cat\n-1,dog", "'-1' is not a class index"),
        ("header.csv", b"id,label\n0,cat", "its first line must be index,name"),
        ("short.csv", b"0,cat\n1", "the line '1' has no index and name"),
    ],
)
def test_broken_label_files_say_what_is_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VertebraError) as caught:
        load_labels(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)


def test_absent_label_file(tmp_path: Path) -> None:
    with pytest.raises(VertebraError, match="No such file"):
        load_labels(tmp_path / "absent.txt")


def test_a_configuration_brings_its_own_names() -> None:
    assert labels_for(2, {"label_names": ["cat", "dog"], **IN1K}) == ("cat", "dog")
    assert labels_for(2, {"label_names": {"1": "dog", "0": "cat"}}) == ("cat", "dog")
    assert labels_for(3, {"label_names": ["cat", "dog"]}) is None  # the head was replaced: the names are not its own
    assert labels_for(1000, {"label_names": ["cat", "dog"], **IN1K}) is None


@pytest.mark.parametrize(
    "tag", ["in1k", "fb_in1k", "fb_in22k_ft_in1k", "ra_in1k", "openai_ft_in12k_in1k", "in12k_ft_in1k_384", "in22k_in1k"]
)
def test_imagenet_checkpoints_have_imagenet_names(tag: str) -> None:
    assert labels_for(1000, {"tag": tag, "num_classes": 1000}) is imagenet1k_labels()
    assert labels_for(10, {"tag": tag, "num_classes": 1000}) is None


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"num_classes": 1000},
        {"tag": "", "num_classes": 1000},
        {"tag": "in22k", "num_classes": 1000},
        {"tag": "fb_in1k_ft_cars", "num_classes": 1000},
        {"tag": "in12k", "num_classes": 11821},
        {"tag": "in1k", "num_classes": 21841},
        {"tag": "untrained"},
    ],
)
def test_a_thousand_classes_of_something_else_have_no_names(config: dict[str, object] | None) -> None:
    assert labels_for(1000, config) is None


def test_classes_are_found_by_name_the_first_of_equals() -> None:
    assert places(("dog", "cat"), ("cat", "eel", "dog", "cat")) == ([2, 0], [])
    assert places(("dog", "fox", "cat"), ("cat", "dog")) == ([1, 0], ["fox"])
