"""A run's folder, a weights file and an exported file are models for every command, by their own records."""

import importlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import vertebra
from tests.zoo import random_state
from vertebra.cli import app
from vertebra.cli.terminal import Terminal
from vertebra.export import Artefact, export_model
from vertebra.hub.factory import describe
from vertebra.models.backbone import Backbone

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


@pytest.fixture(scope="module")
def model() -> Backbone:
    """Of 7 classes, at 64 pixels, cropped whole: nothing of it is as its architecture's."""
    made: Backbone = vertebra.create_model("dla46_c", num_classes=7)
    made.load_state_dict(random_state(made.state_dict()))
    made.pretrained_cfg |= {"input_size": (3, 64, 64), "crop_pct": 1.0, "label_names": NAMES, "license": "mit"}
    return made.eval()


@pytest.fixture(scope="module")
def folder(model: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `vertebra train` leaves it."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    training = {
        "config": {"recipe": "finetune", "data": {"source": "photos/"}},
        "data": {"train": {"images": 40}, "val": {"images": 10}},
        "epoch": {"val_top1": 0.75, "val_loss": 1.25},
    }
    vertebra.save_model(model, path / "model.safetensors", extra={"label_names": NAMES, "training": training})
    (path / "config.json").write_text(json.dumps({**describe(model), "label_names": NAMES}))
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], prog_name="vertebra")


@pytest.mark.parametrize("what", ["", "model.safetensors"], ids=["folder", "file"])
def test_info(folder: Path, what: str) -> None:
    done = run("info", folder / what)
    assert done.exit_code == 0, done.stderr
    for words in (
        *("7: ant, bee, cat, dog, eel, ... 2 more", "3 x 64 x 64", "center crop of 1", "mit", "G at 3 x 64 x 64"),
        *("photos/ (40 train, 10 val images)", "top-1 75.00%, loss 1.25", "finetune"),
    ):
        assert words in done.stdout
    record = json.loads(run("info", folder / what, "--json").stdout)
    assert record["file"]["num_classes"] == 7
    assert record["params"] == sum(p.numel() for p in vertebra.load_model(folder).parameters())


def test_an_exported_file(model: Backbone, photo: Path, tmp_path: Path, unchecked_shapes: None) -> None:
    path = export_model(model, tmp_path / "mine.onnx").out
    done = run("info", path)
    assert done.exit_code == 0, done.stderr
    for words in ("dla46_c", "onnx, f32", "7: ant,", "3 x 64 x 64", "mit", "weights sha256"):
        assert words in done.stdout
    loaded = vertebra.load_model(path)
    assert isinstance(loaded, Artefact)
    assert torch.allclose(loaded(torch.ones(1, 3, 64, 64)), model(torch.ones(1, 3, 64, 64)), atol=1e-4)
    with pytest.raises(vertebra.VertebraError, match="has its weights and its options inside; leave num_classes out"):
        vertebra.load_model(path, num_classes=3)
    assert run("benchmark", path).exit_code == 1


def test_benchmark(folder: Path) -> None:
    how = ("--batch", "1", "--rounds", "1", "--no-memory", "--backend", "eager", "--dtype", "f32", "--json")
    mine, named = (
        json.loads(run("benchmark", what, *how, *size).stdout.splitlines()[-1])
        for what, size in ((folder, ()), ("dla46_c", ("--img-size", "64")))
    )
    assert mine["error"] == ""
    assert mine["intensity"] == pytest.approx(
        named["intensity"], rel=0.2
    )  # at 64 pixels both, with 7 and 1,000 classes
    assert mine["top1"] is None
    assert run("benchmark", folder / "gone").exit_code == 2


def test_convert(folder: Path, tmp_path: Path) -> None:
    done = run("convert", folder, "--out", tmp_path / "mine.safetensors", "--half")
    assert done.exit_code == 0, done.stderr
    made = vertebra.load_model(tmp_path / "mine.safetensors")
    assert made.pretrained_cfg["label_names"] == NAMES
    assert made.pretrained_cfg["input_size"] == (3, 64, 64)


def test_a_files_own_record_counts_and_a_line_says_so(folder: Path, model: Backbone, photo: Path) -> None:
    """What the line after a training used to advise answered at 224 pixels, cropped to 0.875."""
    weights = folder / "model.safetensors"
    done = run("classify", photo, "--model", "dla46_c", "--weights", weights, "--json")
    assert done.exit_code == 0, done.stderr
    assert f"from {weights}, by its own record: input 64x64 (not 224x224), crop 1.0 (not 0.875)" in done.stderr
    assert done.stdout == run("classify", photo, "--model", folder, "--json").stdout
    loaded = vertebra.load_model("dla46_c", weights=weights)
    assert loaded.pretrained_cfg["input_size"] == (3, 64, 64)
    quiet = run("classify", photo, "--model", folder, "--weights", weights, "--json")
    assert quiet.stderr == ""


def test_an_image_is_no_model_and_a_wrong_ending_is_a_wrong_option(photo: Path, folder: Path, tmp_path: Path) -> None:
    done = run("classify", photo, "--model", photo)
    assert done.exit_code == 1
    assert "red.png is an image, by its name, and no model; give a model's name" in done.stderr
    assert run("info", photo).exit_code == 1
    assert run("convert", folder, "--out", tmp_path / "a.pth").exit_code == 2


@pytest.mark.parametrize("width", [60, 80])
def test_a_line_a_model_on_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    module = importlib.import_module("vertebra.cli.models")  # the package has the command by that name
    monkeypatch.setattr(module, "console", lambda: Terminal(file=out, width=width, force_terminal=True, no_color=True))
    assert run("models", "deit_").exit_code == 0
    told = re.sub("\x1b[^m]*m", "", out.getvalue()).splitlines()
    assert [line.split()[0] for line in told] == ["model", *vertebra.list_models("*deit_*")]


def test_another_architectures_weights_are_named(tmp_path: Path) -> None:
    """A ViT's and a DeiT's tensors go by the same names: what is asked for is done, and said."""
    small = {"img_size": 32, "depth": 1, "num_classes": 3}
    path = vertebra.save_model(vertebra.create_model("deit_tiny_patch16_224", **small), tmp_path / "a.safetensors")
    other = vertebra.load_model("vit_tiny_patch16_224", weights=path, img_size=32, depth=1)
    whose = f"{path} is of deit_tiny_patch16_224, by its own record"
    assert other.load_report.taken == f"{whose}; its weights are put into vit_tiny_patch16_224, as asked for"
