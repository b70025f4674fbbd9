"""`doctor`, `train` and `validate` are told of a table in the same words, and read the same of it."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vertebra
from tests.engine.conftest import make_photos
from vertebra.cli import app
from vertebra.data.datasets import open_dataset
from vertebra.engine.setup import columns_of

NAMES = ("class0", "class1", "class2")
OPTIONS = ("--path-column", "foto", "--split-column", "held out", "--label-column", "kind of thing")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    make_photos(tmp_path / "photos", each=3)
    lines = [f"photos/{name}/{i:02}.png,x,{name},{'train' if i else 'val'}" for name in NAMES for i in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(["foto,label,kind of thing,held out", *lines]))
    return tmp_path / "t.csv"


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="vertebra")


def test_what_doctor_says_next_is_what_train_reads(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(run("doctor", table, *OPTIONS, "--workers=0", "--json").stdout)
    assert found["splits"] == {"train": 6, "val": 3}
    assert set(found["counts"]["train"]) == set(NAMES)
    said = run("doctor", table, *OPTIONS, "--workers=0").stdout.splitlines()[-1].removesuffix(" ...")
    command = shlex.split(said.partition("vertebra train ")[2])
    assert command[:7] == [str(table), *OPTIONS]

    class SeenError(Exception):
        pass

    def seen(config: Any, *_: Any, **__: Any) -> None:
        raise SeenError(config)

    monkeypatch.setattr(importlib.import_module("vertebra.engine.train"), "train", seen)
    done = run("train", *command[:7], "--model", "dla46_c", "--from-scratch", "--set", "loss.kind=bce")
    config = done.exception.args[0]
    dataset = open_dataset(config.data.source, columns_of(config.data))
    assert {name: len(part) for name, part in dataset.parts.items()} == {"train": 6, "val": 3}
    assert dataset.classes == tuple(NAMES)


def test_validate_reads_the_same_table(table: Path, tmp_path: Path) -> None:
    model = vertebra.create_model("dla46_c", num_classes=3)
    model.pretrained_cfg["label_names"] = tuple(NAMES)
    model.set_input_size(32)
    vertebra.save_model(model, tmp_path / "own.safetensors")
    done = run("validate", table, *OPTIONS, "--model", tmp_path / "own.safetensors", "--workers=0", "--json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["split"], record["images"]) == ("val", 3)


@pytest.mark.parametrize("command", ["doctor", "train", "validate"])
def test_a_column_that_is_not_there_is_named_by_each(table: Path, command: str, tmp_path: Path) -> None:
    more = {"doctor": (), "train": ("--model", "dla46_c", "--from-scratch", "--out", tmp_path / "run")}
    options = more.get(command, ("--model", "dla46_c.tin100"))
    done = run(command, table, "--path-column", "photo", *options)
    assert done.exit_code == 1
    assert "has no column of paths 'photo'; did you mean 'foto'?" in done.stderr
