"""What every test gets: executed shapes, a fixed seed, no network, and the data that lies beside the repository."""

from __future__ import annotations

import atexit
import ipaddress
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

# Both settings must stand before vertebra is imported, hence before the other imports of this file and of any test.
if os.environ.get("VERTEBRA_SHAPES", "1") != "0":
    jaxtyping.install_import_hook(["vertebra.layers", "vertebra.models"], "beartype.beartype")

# A test must not see what its user once downloaded or compiled, nor add to it: huggingface_hub and torch.hub read these
# when they are imported, vertebra.runtime when it looks for an artefact.
_CACHE = tempfile.mkdtemp(prefix="vertebra-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.update(HF_HOME=f"{_CACHE}/huggingface", TORCH_HOME=f"{_CACHE}/torch", HF_HUB_DISABLE_TELEMETRY="1")
os.environ["VERTEBRA_CACHE"] = f"{_CACHE}/vertebra"
for _name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
    os.environ.pop(_name, None)

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def _shared(folder: str, holds: str) -> Path:
    base = Path(os.environ.get("VERTEBRA_SHARED", ROOT.parent / "shared"))
    path = base / folder
    if not path.is_dir():
        pytest.fail(
            f"{path} is missing: this test reads {holds} from it. Put the folder there, "
            f"or set VERTEBRA_SHARED to the folder that holds {folder}/",
            pytrace=False,
        )
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Photos, odd images, real weights: never part of the repository."""
    return _shared("data", "photos, odd images and real weights")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Facts to test against: models.csv, weights.csv, dla_collection.csv, state_dict_shapes.json.gz."""
    return _shared("reference", "the facts about every model and checkpoint")


@pytest.fixture(autouse=True)
def seed() -> int:
    """The same random numbers for a test, alone or among others, in any order."""
    value = 20180619
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    return value


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Shape checks off for one test: Dynamo (torch.compile, strict export) cannot trace through the checker."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def _is_local(host: object) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback can be reached. pytest.fail is no Exception, so code that handles errors cannot hide it."""

    def refuse(host: object) -> None:
        pytest.fail(f"a test tried to reach {host!r}: tests use no network; serve it on 127.0.0.1 or replace the call")

    def guarded(name: str) -> None:
        original = getattr(socket.socket, name)

        def call(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
                refuse(address[0])
            return original(self, address)

        monkeypatch.setattr(socket.socket, name, call)

    guarded("connect")
    guarded("connect_ex")
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            refuse(host)
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
