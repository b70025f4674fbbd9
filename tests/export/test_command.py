"""`vertebra export`, and `vertebra classify` on what it wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import vertebra
from tests.export.conftest import LABELS
from vertebra.cli import app
from vertebra.export.formats import FORMATS, Job
from vertebra.export.write import generated
from vertebra.models.backbone import Backbone

FORMATS_BY_SUFFIX = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], prog_name="vertebra")


@pytest.fixture(scope="module")
def weights(vit: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vertebra.save_model(vit, tmp_path_factory.mktemp("weights") / "own.safetensors")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "scene.png"
    generated()[0].save(path)
    return path


def classified(photo: Path, model: Path) -> dict[str, float]:
    result = run("classify", photo, "--model", model, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    return {p["label"]: p["probability"] for p in answer["predictions"]}


@pytest.mark.parametrize(
    ("name", "options", "near"),
    [
        ("own.onnx", (), 1e-4),
        ("own.onnx", ("--with-preprocess",), 5e-3),
        ("own.xml", ("--dtype", "bf16", "--dynamic-size"), 0.1),
        ("own.pt2", ("--format", "pt2", "--batch", "1"), 1e-4),
    ],
)
def test_an_exported_file_classifies_as_the_model(
    weights: Path, photo: Path, tmp_path: Path, name: str, options: tuple[str, ...], near: float
) -> None:
    result = run("export", weights, "--out", tmp_path / name, *options)
    assert result.exit_code == 0, result.output
    *verified, described, wrote = result.stdout.splitlines()
    assert verified
    assert all(line.startswith("verified ") and "cosine " in line for line in verified)
    assert "licence apache-2.0" in described
    assert f"{name}: {FORMATS_BY_SUFFIX[Path(name).suffix]} " in wrote
    expected, found = classified(photo, weights), classified(photo, tmp_path / name)
    assert set(found) <= set(LABELS)
    assert next(iter(found)) == next(iter(expected))
    for label in found.keys() & expected.keys():
        assert found[label] == pytest.approx(expected[label], abs=near)


def test_a_graph_that_answers_otherwise_is_deleted_and_ends_with_status_1(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of the written file is changed; writer, check and command are the real ones."""
    import onnx

    honest = FORMATS["onnx"]

    def spoil(job: Job, path: Path) -> None:
        honest.write(job, path)
        model = onnx.load(path)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.5)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)

    monkeypatch.setitem(FORMATS, "onnx", replace(honest, write=spoil))
    result = run("export", weights, "--out", tmp_path / "own.onnx")
    assert result.exit_code == 1
    assert "the written onnx f32 file does not answer as the model: 1x3x32x32: cosine " in " ".join(
        result.stderr.split()
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--format", "onxx"), 2, "onxx"),
        (("--dtype", "int8"), 1, "onnx files hold f32, not 'int8'"),
        (("--samples", "nowhere/"), 1, "--samples nowhere/: no such file"),
    ],
)
def test_refusals(weights: Path, tmp_path: Path, options: tuple[str, ...], status: int, message: str) -> None:
    result = run("export", weights, "--out", tmp_path / "own.onnx", *options)
    assert result.exit_code == status
    assert message in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
