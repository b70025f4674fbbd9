"""An exported file's record, broken in every place, is read or refused in one line, whatever carries it."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import vertebra
from tests.records import broken, broken_texts, refused
from vertebra.export import export_model, load
from vertebra.export.artefact import RECORD_FILE, Artefact
from vertebra.export.record import PREFIX, Record
from vertebra.models.backbone import Backbone


@pytest.fixture(scope="module")
def files(vit: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return {suffix: export_model(vit, folder / f"vit{suffix}").out for suffix in (".onnx", ".xml", ".pt2")}


def used(record: Record) -> None:
    """As far as a command goes with a file that answers anything."""
    artefact = Artefact(record, lambda x: np.zeros((len(x), record.model["num_classes"]), np.float32))
    vertebra.Predictor(artefact)(Image.new("RGB", (40, 30)))


def test_every_broken_value(files: dict[str, Path]) -> None:
    record: dict[str, Any] = {
        key.removeprefix(PREFIX): json.loads(text) for key, text in load(files[".onnx"]).record.to_strings().items()
    }
    record["labels"], record["model"]["pretrained_cfg"]["label_names"] = record["labels"][:10], None
    count = 0
    used(Record.from_strings({f"{PREFIX}{key}": json.dumps(value) for key, value in record.items()}, where="file"))
    for what, changed in broken(record):
        entries = {f"{PREFIX}{key}": json.dumps(value) for key, value in changed.items()}
        count += refused(lambda: used(Record.from_strings(entries, where="file")), what)  # noqa: B023 - called at once
    assert count > 100


def test_every_broken_text(files: dict[str, Path]) -> None:
    strings = load(files[".onnx"]).record.to_strings()
    for name in (f"{PREFIX}{key}" for key in ("model", "labels", "preprocess", "batch")):
        for what, text in broken_texts(json.loads(strings[f"{PREFIX}model"])):
            entries = strings | {name: text.decode("utf-8", "surrogateescape")}
            refused(lambda: used(Record.from_strings(entries, where="file")), f"{name} {what}")  # noqa: B023


BAD = ["", "{", "[1]", "3", '{"architecture": 3}', "null", "[" * 100_000]


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:5])
def test_onnx(files: dict[str, Path], tmp_path: Path, text: str) -> None:
    model = onnx.load(files[".onnx"])
    for entry in model.metadata_props:
        if entry.key == f"{PREFIX}model":
            entry.value = text
    onnx.save(model, tmp_path / "a.onnx")
    assert refused(lambda: load(tmp_path / "a.onnx"), text)


@pytest.mark.parametrize("text", [*(f'value="{text}"' for text in ("", "[1]", "3", "{")), "", "><a/></model", ">"])
def test_openvino(files: dict[str, Path], tmp_path: Path, text: str) -> None:
    xml = files[".xml"].read_text()
    (tmp_path / "a.bin").write_bytes(files[".xml"].with_suffix(".bin").read_bytes())
    changed, count = re.subn(r'(<model )value="[^"]*"', lambda found: found[1] + text, xml, count=1)
    assert count == 1
    (tmp_path / "a.xml").write_text(changed)
    assert refused(lambda: load(tmp_path / "a.xml"), text)


@pytest.mark.parametrize("text", [*BAD, '{"vertebra.model": {}}', "\udcff"], ids=lambda text: ascii(text)[:12])
def test_pt2(files: dict[str, Path], tmp_path: Path, text: str) -> None:
    with zipfile.ZipFile(files[".pt2"]) as old, zipfile.ZipFile(tmp_path / "a.pt2", "w") as new:
        for name in old.namelist():
            mine = name.endswith(RECORD_FILE)
            new.writestr(name, text.encode(errors="surrogateescape") if mine else old.read(name))
    assert refused(lambda: load(tmp_path / "a.pt2"), text)


def test_a_pt2_whose_record_is_damaged(files: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(files[".pt2"].read_bytes())
    with zipfile.ZipFile(files[".pt2"]) as archive:
        (info,) = [info for info in archive.infolist() if info.filename.endswith(RECORD_FILE)]
    content[info.header_offset + 200] ^= 1
    (tmp_path / "a.pt2").write_bytes(content)
    assert refused(lambda: load(tmp_path / "a.pt2"), "damaged")
