"""Every declared checkpoint equals the published facts, field by field, and timm's own record."""

import csv
from ast import literal_eval
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vertebra
from tests.zoo import ARCHS
from vertebra.hub.registry import REGISTRY
from vertebra.spec import Accuracy

ROWS = [name for arch in ARCHS for name, row in REGISTRY.weights(arch).items() if row.file is None]
"""What others published; tests/hub/test_own_weights.py has ours."""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def published(shared_reference: Path) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in rows_of(shared_reference / "weights.csv")}


@pytest.fixture(scope="module")
def collection(shared_reference: Path) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in rows_of(shared_reference / "dla_collection.csv")}


def value(text: str) -> Any:
    """A cell as Python writes it; a bare word stays text, an empty cell is None."""
    if not text:
        return None
    return literal_eval(text) if text[0] in "(0123456789TF" else text


def accuracy(row: dict[str, str]) -> tuple[Accuracy, ...]:
    """`"79.342@288 78.546@224"` -> one entry a size."""
    pairs = zip(row["top1@size"].split(), row["top5@size"].split(), strict=True)
    split = [(top1.partition("@"), top5.partition("@")) for top1, top5 in pairs]
    assert all(one[2] == five[2] for one, five in split)
    return tuple(Accuracy(float(one[0]), float(five[0]), int(one[2])) for one, five in split)


def test_every_published_checkpoint_and_architecture_is_a_row(
    published: dict[str, dict[str, str]], shared_reference: Path
) -> None:
    assert set(published) <= set(ROWS)
    assert {row["arch"] for row in rows_of(shared_reference / "models.csv")} <= set(ARCHS)
    # RegNets are published in more sizes than the reference lists.
    assert {name for name in ROWS if not name.startswith("regnet")} <= set(published)


def test_the_first_row_of_an_architecture_is_the_one_meant() -> None:
    for arch in ARCHS:
        meant = f"{arch}.{timm.get_pretrained_cfg(arch).tag}"
        if meant in REGISTRY.weights(arch):
            assert next(iter(REGISTRY.weights(arch))) == meant


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, published: dict[str, dict[str, str]]) -> None:
    """Rows beyond the reference are compared with timm's record alone, below."""
    if name not in published:
        assert name.startswith("regnet")
        return
    row, facts = REGISTRY.weights(name.partition(".")[0])[name], published[name]
    preprocess, config = row.preprocess, REGISTRY.variant(name).config
    ours = {
        "hf_hub_id": row.hub,
        "original_url": row.url,
        "license": row.license,
        "num_classes": row.num_classes,
        "input_size": preprocess.input_size,
        "min_input_size": preprocess.min_input_size,
        "test_input_size": preprocess.test_input_size,
        "fixed_input_size": preprocess.fixed_input_size or None,
        "pool_size": preprocess.pool_size,
        "crop_pct": preprocess.crop_pct,
        "test_crop_pct": preprocess.test_crop_pct,
        "crop_mode": preprocess.crop_mode,
        "interpolation": preprocess.interpolation,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "first_conv": config.first_conv,
        "classifier": config.classifier,
    }
    assert ours == {key: value(facts[key]) for key in ours}
    assert row.accuracy == accuracy(facts)
    assert facts["name"].partition(".")[2] == facts["tag"]
    for stated, declared in ((facts["paper_ids"], row.paper), (facts["origin_url"], row.source)):
        assert not stated or stated.lower() in declared.lower() or declared.lower() in stated.lower()


@pytest.mark.parametrize("name", ROWS)
def test_every_published_checkpoint_says_where_it_comes_from(name: str) -> None:
    row = REGISTRY.weights(name.partition(".")[0])[name]
    if row.available:
        assert row.paper.startswith("arXiv:")
        assert row.source.startswith("https://")


@pytest.mark.parametrize("name", ROWS)
def test_hash_prefix_is_the_one_in_the_file_name(name: str) -> None:
    row = REGISTRY.weights(name.partition(".")[0])[name]
    stem = (row.url or "").rpartition("/")[2].partition(".")[0]
    tail = stem.rpartition("-")[2]
    expected = tail if len(tail) >= 8 and "-" in stem and all(c in "0123456789abcdef" for c in tail) else None
    assert row.hash_prefix == expected


def test_dla_recipe(collection: dict[str, dict[str, str]]) -> None:
    for arch, facts in collection.items():
        row = REGISTRY.weights(arch)[f"{arch}.in1k"]
        recipe = row.trained_with
        assert row.url == facts["original_weights"]
        assert row.preprocess.interpolation == facts["interpolation"]
        assert row.preprocess.crop_pct == float(facts["crop_pct"])
        if not facts["lr"]:
            assert recipe is None
            continue
        assert recipe is not None
        assert recipe.optimizer == "sgd"
        stated = ("lr", "epochs", "batch_size", "momentum", "weight_decay", "dropout")
        assert [float(facts[key] or 0) for key in stated] == [
            recipe.learning_rate,
            recipe.epochs,
            recipe.batch_size,
            recipe.momentum,
            recipe.weight_decay,
            recipe.dropout,
        ]


def said(theirs: dict[str, Any]) -> dict[str, Any]:
    """What timm states. Papers and origins may be worded differently (test_row); `custom_load` is its own."""
    worded = ("paper_ids", "paper_name", "origin_url", "notes", "custom_load")
    return {key: item for key, item in theirs.items() if key not in worded and item != ""}


@pytest.mark.parametrize("name", ROWS)
def test_default_cfg_is_the_reference_implementations(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name).default_cfg
    ours = vertebra.create_model(name, device="meta").default_cfg
    assert {key: ours.get(key) for key in said(theirs)} == said(theirs)


@pytest.mark.parametrize("name", ROWS)
def test_registered_cfg_is_the_reference_implementations(name: str) -> None:
    theirs, ours = timm.get_pretrained_cfg(name).to_dict(), vertebra.get_pretrained_cfg(name).to_dict()
    assert {key: ours.get(key) for key in said(theirs)} == said(theirs)
