"""A .pt2 file of a stranger's is refused where torch would unpickle anything of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vertebra.export import archive, load
from vertebra.export.artefact import RECORD_FILE
from vertebra.export.write import Options, record_of
from vertebra.models.backbone import Backbone
from vertebra.spec import VertebraError

WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
INPUTS = "data/sample_inputs/model.pt"


class Mean(nn.Module):
    """Stands in for a model: exported in a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 10))

    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)) @ self.weight


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "went off"


@pytest.fixture(scope="module")
def honest(vit: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "honest.pt2"
    record = record_of(vit, Options("pt2", "f32", False, False, 2))
    program = torch.export.export(Mean(), (torch.randn(2, 3, 32, 32),))
    torch.export.save(program, path, extra_files={RECORD_FILE: json.dumps(record.to_strings())})
    return path


def changed(honest: Path, target: Path, members: dict[str, bytes]) -> Path:
    """A copy with other members, or more of them."""
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(target, "w") as copy:
        own = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
        for name, content in {**own, **members}.items():
            copy.writestr(f"honest/{name}", content)
    return target


def saved(thing: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def config(name: str) -> bytes:
    meta = {"path_name": name, "is_param": True, "use_pickle": True, "tensor_meta": None}
    return json.dumps({"config": {"weight": meta}}).encode()


def test_what_was_written_is_read(honest: Path, tmp_path: Path) -> None:
    image = torch.randn(2, 3, 32, 32)
    answer = load(honest)(image)
    assert answer.shape == (2, 10)
    assert torch.equal(load(changed(honest, tmp_path / "a.pt2", {}))(image), answer)  # so a copy as such is no reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (INPUTS, f"{INPUTS} pickles more than tensors"),
        (WEIGHTS, f"{WEIGHTS} names pickles"),
        (CONSTANTS, f"{CONSTANTS} names pickles"),
        ("data/weights/model.pt", "data/weights/model.pt pickles more than tensors"),
        (INPUTS.upper(), "two members share a name"),
        ("models/other.json", "models/other.json is a second program"),
        ("data/aotinductor/model/a.so", "data/aotinductor/model/a.so is machine code"),
    ],
)
def test_nothing_that_could_run_is_loaded(honest: Path, tmp_path: Path, mark: Path, name: str, reason: str) -> None:
    bomb = Bomb(mark)
    members = {
        WEIGHTS: {WEIGHTS: config("weight_0"), "data/weights/weight_0": saved(bomb)},
        CONSTANTS: {CONSTANTS: config("opaque_obj_0"), "data/constants/opaque_obj_0": pickle.dumps(bomb)},
    }
    path = changed(honest, tmp_path / "a.pt2", members.get(name, {name: saved((bomb,))}))
    with pytest.raises(VertebraError, match=rf"a\.pt2 was not written by `vertebra export`: {reason}, through which"):
        load(path)
    assert not mark.exists()


def test_the_older_format_is_not_read_in_its_place(honest: Path, tmp_path: Path, mark: Path) -> None:
    """`torch.export.load` goes on with it where the newer one cannot be read."""
    path = changed(honest, tmp_path / "a.pt2", {})
    with zipfile.ZipFile(path, "a") as archived:
        archived.writestr("version", ".".join(map(str, _schema_version())))
        for part in ("state_dict", "constants", "example_inputs"):
            archived.writestr(f"serialized_{part}.pt", saved((Bomb(mark),)))
        archived.writestr("serialized_exported_program.json", archived.read("honest/models/model.json"))
    with pytest.raises(VertebraError, match=r"a\.pt2 cannot be read: .*; export the model anew"):
        load(path)
    assert not mark.exists()


def _schema_version() -> tuple[int, int]:
    from torch._export.serde.schema import SCHEMA_VERSION

    return SCHEMA_VERSION


@pytest.mark.parametrize(
    ("entry", "raw"),
    [
        ({"path_name": "weight_0", "use_pickle": False}, True),
        ({"path_name": "tensor_3", "use_pickle": False}, True),
        ({"path_name": "weight_0", "use_pickle": 0}, False),
        ({"path_name": "weight_0"}, False),
        ({"path_name": "opaque_obj_0", "use_pickle": False}, False),
        ({"path_name": "custom_obj_0", "use_pickle": False}, False),
        ("weight_0", False),
    ],
)
def test_weights_are_raw_bytes_or_none_of_ours(entry: object, raw: bool) -> None:
    assert archive._raw_bytes(json.dumps({"config": {"weight": entry}}).encode()) == raw
    assert not archive._raw_bytes(b"[]")
