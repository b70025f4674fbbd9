"""The checkpoints that come with the package: small, as good as their record says, and there without a network."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from skimage import data as photos
from typer.testing import CliRunner

import vertebra
from vertebra.cli import app
from vertebra.data import labels_for, resolve_data_config, resolve_model_data_config
from vertebra.data.datasets import Part
from vertebra.engine.predict import known_classes
from vertebra.engine.validate import validate, validation_split
from vertebra.hub import fetch
from vertebra.hub.pretrained import METADATA_KEY, WEIGHTS
from vertebra.hub.registry import REGISTRY
from vertebra.hub.state import read_file, read_metadata

NAMES = [name for arch in REGISTRY.archs for name, row in REGISTRY.weights(arch).items() if row.file is not None]
CATS = {"tabby", "Persian cat", "Egyptian cat"}


def record(name: str) -> dict[str, Any]:
    file = REGISTRY.weights(name.partition(".")[0])[name].file
    return json.loads(read_metadata(WEIGHTS / cast("str", file))[METADATA_KEY])


def test_every_file_in_the_package_belongs_to_a_row() -> None:
    files = {REGISTRY.weights(name.partition(".")[0])[name].file for name in NAMES}
    assert {path.name for path in WEIGHTS.iterdir()} == files


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_carries_its_record(name: str) -> None:
    row = REGISTRY.weights(name.partition(".")[0])[name]
    path = WEIGHTS / cast("str", row.file)
    assert path.stat().st_size < 4_000_000
    kinds = {str(tensor.dtype) for tensor in read_file(path)[0].values() if tensor.ndim > 1}
    assert kinds == {"torch.float16"}
    told = record(name)
    assert len(told["label_names"]) == told["num_classes"] == row.num_classes
    assert told["training"]["config"]["model"]["name"] == told["architecture"] == name.partition(".")[0]
    model = vertebra.create_model(name)
    stored = resolve_data_config(pretrained_cfg=told["pretrained_cfg"])
    assert json.loads(json.dumps(resolve_model_data_config(model))) == stored
    assert labels_for(model.num_classes, model.pretrained_cfg) == tuple(told["label_names"])


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_good_as_its_record_says(name: str, shared_data: Path) -> None:
    model = vertebra.create_model(name, pretrained=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    source = shared_data / "tiny-imagenet-100"
    part = validation_split(
        source, known_classes(model), model.num_classes, split="val", names=str(source / "classes.csv")
    ).part
    chosen = random.Random(0).sample(range(len(part)), 1000)
    part = Part(tuple(part.samples[i] for i in chosen), tuple(part.labels[i] for i in chosen))
    told = record(name)["training"]["epoch"]["val_top1"]
    assert validate(model, part).metrics.top1 == pytest.approx(told, abs=0.04)  # three standard errors of 1,000


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_another_head(name: str) -> None:
    assert vertebra.create_model(name, pretrained=True, num_classes=7)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert vertebra.load_model(name).num_classes == record(name)["num_classes"]


def test_without_a_network_classify_answers_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "reachable", lambda _: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    torch_home = tmp_path / "torch"
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    cat = Path(photos.__file__).parent / "chelsea.png"
    done = CliRunner().invoke(app, ["classify", str(cat), "--json", "--top", "1"])
    assert done.exit_code == 0
    assert done.stderr.count("\n") == 1
    assert "answering with dla46_c.tin100 of this package, which knows 100 classes" in done.stderr
    (best,) = json.loads(done.stdout)["predictions"]
    assert best["label"] in CATS
    named = CliRunner().invoke(app, ["classify", str(cat), "--model", "dla34"])
    assert named.exit_code != 0  # who names a model gets that one or none
