"""`benchmark`, `info --runtime`, `--device`, and the options of `classify` that decide about speed."""

import csv
import importlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

import vertebra
from vertebra.cli import app
from vertebra.cli.options import pick_device
from vertebra.data.eval_reader import EvalReader
from vertebra.engine import predict, reading
from vertebra.engine.benchmark import Row
from vertebra.engine.limits import Limits
from vertebra.models.backbone import Backbone
from vertebra.spec import VertebraError

ARCH = "dla46_c"
QUICK = ("--backend", "eager", "--dtype", "f32", "--batch", "1", "--img-size", "64", "--rounds", "1", "--no-memory")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], prog_name="vertebra")


# --- benchmark


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("vertebra.engine.benchmark")
    monkeypatch.setattr(module, "measure_limits", lambda *_: Limits({"f32": 5e10, "bf16": 1e9}, 1e10))


def test_the_table_has_a_line_for_each(limits: None) -> None:
    result = run("benchmark", ARCH, *QUICK, "--against", "timm")
    assert result.exit_code == 0
    assert result.stderr == ""
    name, head, ours, peer, empty, machine, peak, copy = result.stdout.splitlines()
    assert name == ARCH
    assert head.split()[:5] == ["batch", "by", "backend", "dtype", "ms"]
    assert ours.split()[:4] == ["1", "vertebra", "eager", "f32"]
    assert peer.split()[:4] == ["1", "timm", "eager", "f32"]
    assert peer.split()[-1] == "1.00"
    assert empty == ""
    assert f"{torch.get_num_threads()} threads" in machine
    assert peak == "peak   10^9 operations a second: bf16 1, f32 50"
    assert copy == "copy   10.0 GB/s"


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_the_terminal(width: int) -> None:
    command = importlib.import_module("vertebra.cli.benchmark")
    row = Row(ARCH, "torchvision", "onnxruntime", "bf16", 256, False, 0.98765, 0.123, 9876.5, 12.34, 0.5, 0.5)
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(command._table([row], wide=width >= 90))
    printed = console.export_text().splitlines()
    assert len(printed) == 2
    for text in ("torchvision", "onnxruntime", "987.65", "9876.5", "12.34"):
        assert text in printed[1]
    assert len(printed[1]) <= width


def test_json_is_the_machine_then_a_line_each(limits: None) -> None:
    result = run("benchmark", ARCH, *QUICK, "--train", "--json")
    assert result.exit_code == 0
    machine, row = map(json.loads, result.stdout.splitlines())
    assert set(machine) == {"machine", "limits"}
    assert machine["limits"]["bandwidth"] == 1e10
    assert machine["machine"]["threads"] == torch.get_num_threads()
    assert (row["model"], row["train"], row["ratio"]) == (ARCH, True, 1)
    assert row["seconds"] > 0


def test_csv_has_a_column_for_each_figure(limits: None) -> None:
    result = run("benchmark", ARCH, *QUICK, "--csv", "--against", "timm")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["library"] for row in rows] == ["vertebra", "timm"]
    assert all(float(row["images_per_second"]) > 0 for row in rows)


def test_a_picture_is_written(limits: None, tmp_path: Path) -> None:
    result = run("benchmark", ARCH, *QUICK, "--plot", tmp_path / "speed.png")
    assert result.exit_code == 0
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.size[0] > 1000


def test_one_that_cannot_run_is_named_and_the_others_are_shown(limits: None) -> None:
    result = run("benchmark", ARCH, *QUICK, "--dtype", "f32,int8")
    assert result.exit_code == 1
    assert result.stderr == ("vertebra: dla46_c vertebra eager int8 at batch 1: vertebra has no int8 in eager mode\n")
    assert len(result.stdout.splitlines()) == 8


def test_ctrl_c_shows_what_was_measured(limits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("vertebra.engine.benchmark")
    row = Row(ARCH, "vertebra", "eager", "f32", 1, False, seconds=0.5)

    def contest(_: object, model: str, batch: int, limits: object) -> list[Row]:
        if batch == 2:
            raise KeyboardInterrupt
        return [row]

    monkeypatch.setattr(module, "_contest", contest)
    result = run("benchmark", ARCH, *QUICK, "--batch", "1,2", "--json")
    assert result.exit_code == 130
    assert result.stderr == "vertebra: interrupted\n"
    assert json.loads(result.stdout.splitlines()[1])["seconds"] == 0.5


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("dla35",), 2, "did you mean 'dla34'"),
        ((ARCH, "--backend", "openvine"), 2, "did you mean 'openvino'"),
        ((ARCH, "--dtype", "f16"), 2, "unknown dtype 'f16'"),
        ((ARCH, "--against", "keras"), 2, "allowed: timm, torchvision"),
        ((ARCH, "--rounds", "0"), 2, "--rounds"),
        ((ARCH, "--device", "gpu"), 2, "'gpu' cannot be used"),
        ((ARCH, "--batch", "0"), 2, "'--batch': '0': give whole numbers from 1 on, as 1,8"),
        ((ARCH, "--batch", "1;8"), 2, "'--batch': '1;8': give whole numbers from 1 on, as 1,8"),
        ((ARCH, "--json", "--csv"), 2, "choose one"),
        ((ARCH, "--plot", "a.gif"), 2, "ends in .png, .svg, .pdf"),
    ],
)
def test_wrong_usage_is_one_line_before_anything_is_measured(args: tuple[str, ...], status: int, message: str) -> None:
    result = run("benchmark", *args)
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


# --- device


def test_no_device_means_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, wanted in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device(None) == wanted
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_cannot_compute_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.BadParameter, match=f"device {name!r} cannot be used on this machine; it has cpu$"):
        pick_device(name)


# --- classify


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    return vertebra.save_model(vertebra.create_model(ARCH, num_classes=7), path)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (1600, 1200), "red").save(path)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the predictor was about to do for speed."""
    done = list[str]()
    decode, levels, speed = reading.decode, EvalReader.levels, predict.Speed

    def fast(model: Backbone, dtype: str) -> Backbone:
        done.append(f"optimised in {dtype}")
        return model

    def exactly(source: Any, **options: Any) -> Image.Image:
        done.append("decoded whole")
        return decode(source, **options)

    def quickly(self: EvalReader, source: Any) -> Any:
        done.append("decoded small")
        return levels(self, source)

    def watch(model: Backbone, dtype: str) -> Any:
        done.append(f"may optimise in {dtype}")
        return speed(model, dtype)

    monkeypatch.setattr(predict, "make_fast", fast)
    monkeypatch.setattr(reading, "decode", exactly)
    monkeypatch.setattr(EvalReader, "levels", quickly)
    monkeypatch.setattr(predict, "Speed", watch)
    return done


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), ["may optimise in auto", "decoded small"]),
        (("--exact",), ["may optimise in f32", "decoded whole"]),
        (("--optimize",), ["optimised in auto", "decoded small"]),
        (("--optimize", "--exact"), ["optimised in f32", "decoded whole"]),
        (("--no-optimize",), ["decoded small"]),
    ],
)
def test_speed_and_exactness_are_the_users_choice(
    options: tuple[str, ...], wanted: list[str], weights: Path, photo: Path, asked: list[str]
) -> None:
    result = run("classify", photo, "--model", weights, "--json", *options)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["predictions"]
    assert asked == wanted


@pytest.mark.parametrize(
    "options",
    [
        ("--img-size", "288"),
        ("--test-pool",),
        ("--weights", "a.pth"),
        ("--optimize",),
    ],
)
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_what_an_exported_file_settled_cannot_be_changed(options: tuple[str, ...], suffix: str, photo: Path) -> None:
    result = run("classify", photo, "--model", f"model{suffix}", *options)
    assert result.exit_code == 2
    assert f"'{options[0]}': an exported file has its weights and its size inside" in result.stderr


def test_an_exported_file_runs_on_the_cpu(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'--device': an exported file" in run("classify", photo, "--model", "m.onnx", "--device", "cuda").stderr
    assert "an exported file" not in run("classify", photo, "--model", "m.onnx", "--device", "cpu").stderr
    with pytest.raises(VertebraError):
        importlib.import_module("vertebra.export").load("m.onnx")
