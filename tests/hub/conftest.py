"""One small checkpoint that every test here may read: DLA-46-C, 10 classes, random values."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vertebra
from tests.zoo import random_state
from vertebra.hub import fetch
from vertebra.spec import State

ARCH = "dla46_c"


@pytest.fixture(scope="session")
def state() -> State:
    return random_state(vertebra.create_model(ARCH, num_classes=10, device="meta").state_dict())


@pytest.fixture(scope="session")
def file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "some.safetensors"
    save_file(state, path)
    return path


@pytest.fixture
def folder(tmp_path: Path, file: Path) -> Path:
    """What a hub repository of this field holds: config.json and model.safetensors."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "model.safetensors").hardlink_to(file)
    write_config(path)
    return path


def write_config(folder: Path, **changes: Any) -> None:
    config = {
        "architecture": ARCH,
        "num_classes": 10,
        "num_features": 256,
        "pretrained_cfg": {"tag": "mine", "input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "crop_pct": 0.7},
    }
    (folder / "config.json").write_text(json.dumps(config | changes))


def holds(model: Any, state: State) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.fixture(autouse=True)
def fresh_view_of_the_network() -> Iterator[None]:
    forget = fetch._reachable.cache_clear
    forget()
    yield
    forget()


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
