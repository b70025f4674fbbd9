"""Small models, a cache that is thrown away, and a backend that needs no compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vertebra
from vertebra.models.backbone import Backbone
from vertebra.runtime import choose
from vertebra.runtime.backend import Job, Program

SIZE = 32


@pytest.fixture(autouse=True)
def shapes_unchecked(unchecked_shapes: None) -> None:
    """torch.export cannot trace through the shape checker."""


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole session: what one test compiled, another may load."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def vit() -> Backbone:
    torch.manual_seed(1)
    return vertebra.create_model("deit_tiny_patch16_224", num_classes=10, depth=1, img_size=SIZE).eval()


@pytest.fixture
def resizable() -> Backbone:
    """A ViT of every size, several times as quick as a CNN when a new one comes."""
    torch.manual_seed(1)
    return vertebra.create_model(
        "deit_tiny_patch16_224", num_classes=10, depth=1, img_size=SIZE, dynamic_img_size=True
    ).eval()


@pytest.fixture
def cnn() -> Backbone:
    """Takes every size; its record says 224 pixels, this one's 64."""
    torch.manual_seed(1)
    model = vertebra.create_model(
        "dla46_c", num_classes=10, channels=(8,) * 6, pretrained_cfg_overlay={"input_size": (3, 64, 64)}
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@dataclass
class Fake:
    """Answers as `alter(logits)`; counts what it compiled."""

    name: str = "fake"
    kept: bool = True
    any_size: bool = True
    reason: str = ""
    alter: Callable[[Tensor], Tensor] = lambda logits: logits
    built: list[tuple[int, ...]] = field(default_factory=list)

    def refusal(self, device: torch.device, dtype: str) -> str:
        return self.reason

    def build(self, job: Job, folder: Path) -> None:
        self.built.append(tuple(job.example.shape[2:]))
        (folder / "artefact").write_text("made")

    def load(self, job: Job, folder: Path) -> Program:
        if (folder / "artefact").read_text() != "made":
            raise RuntimeError("damaged")
        return FakeProgram(self, job)


class FakeProgram:
    def __init__(self, backend: Fake, job: Job) -> None:
        self.any_size = backend.any_size
        self._alter, self._model, self._size = backend.alter, job.model, tuple(job.example.shape[2:])

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        assert self.any_size or tuple(x.shape[2:]) == self._size
        return self._alter(self._model(x))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    backend = Fake()
    monkeypatch.setitem(choose.BACKENDS, "fake", backend)
    return backend
