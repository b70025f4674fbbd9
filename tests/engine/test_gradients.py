"""A step's gradients, as they are and played from a CUDA graph."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vertebra
from vertebra.data.augment.batch import RandomErasingBatch
from vertebra.engine import gradients
from vertebra.engine.config import RunConfig
from vertebra.engine.gradients import SETTLED, Gradients
from vertebra.engine.settings import with_settings
from vertebra.engine.train import train

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")


def computed(model: nn.Module) -> Callable[..., Tensor]:
    def compute(images: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        return loss.detach()

    return compute


class Tape:
    """Stands for a recording: notes what it was made for, and computes."""

    made: list[torch.Size]

    def __init__(self, kind: Any, compute: Callable[..., Tensor], parameters: Any, inputs: tuple[Tensor, ...]) -> None:
        self.kind, self._compute = kind, compute
        self.made.append(inputs[0].shape)

    def play(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self._compute(*inputs) + 100


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> type[Tape]:
    Tape.made = []
    monkeypatch.setattr(gradients, "_Recorded", Tape)
    return Tape


def test_a_kind_of_batch_is_recorded_when_it_has_settled_and_odd_ones_change_nothing(tape: type[Tape]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    step = Gradients(computed(model), model, record=True)

    def played(count: int) -> bool:
        model.zero_grad()
        loss = step(torch.randn(count, 3, 2, 2), torch.zeros(count, dtype=torch.long))
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        return bool(loss > 50)

    assert [played(4) for _ in range(SETTLED + 1)] == [False] * (SETTLED - 1) + [True, True]
    assert [played(3), played(4), played(3), played(4)] == [False, True, False, True]
    assert tape.made == [torch.Size((4, 3, 2, 2))]
    assert [played(3), played(3), played(4)] == [False, False, False], "the second in a row has its memory"
    assert [played(4) for _ in range(SETTLED)][-1]
    bias = model[1].bias
    assert isinstance(bias, nn.Parameter)
    bias.requires_grad_(False)
    assert not played(4), "what learns is another thing now"
    assert [played(3) for _ in range(SETTLED)][-1]
    assert len(tape.made) == 3


def test_where_recording_fails_training_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(kind: Any, compute: Callable[..., Tensor], parameters: Any, inputs: tuple[Tensor, ...]) -> None:
        compute(*inputs)
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    monkeypatch.setattr(gradients, "_Recorded", fails)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    step = Gradients(computed(model), model, record=True)
    images, targets = torch.randn(4, 3, 2, 2), torch.zeros(4, dtype=torch.long)
    with caplog.at_level(logging.WARNING):
        for _ in range(SETTLED + 1):
            model.zero_grad()
            step(images, targets)
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    computed(model)(images, targets)
    for gradient, once in zip(found, [p.grad for p in model.parameters()], strict=True):
        assert gradient is not None
        assert once is not None
        assert torch.equal(gradient, once), "of one pass, not of two"
    assert [r.getMessage() for r in caplog.records] == [
        "no CUDA graph could be recorded, training goes on without: CUDA out of memory"
    ]


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same kernels, which add in the same order."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@on_gpu
def test_a_graph_leaves_the_gradients_of_the_plain_step_and_draws_anew(deterministic: None) -> None:
    model = vertebra.create_model("dla46_c", num_classes=5, drop_rate=0.5, drop_path_rate=0.3).cuda().train()
    twin = copy.deepcopy(model)
    both: Any = Gradients(computed(model), model, record=True), Gradients(computed(twin), twin, record=False)
    losses = list[tuple[float, float]]()
    for number in range(SETTLED + 3):
        images = torch.randn(8, 3, 64, 64).cuda().to(memory_format=torch.channels_last)
        targets = torch.randint(5, (8,)).cuda()
        found = list[float]()
        for step, net in zip(both, (model, twin), strict=True):
            net.zero_grad()
            torch.cuda.manual_seed(number)
            found.append(step(images, targets).item())
        losses.append((found[0], found[1]))
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert both[0]._recorded is not None
    assert losses[-1][0] == pytest.approx(losses[-1][1], rel=1e-4)
    assert len({loss for loss, _ in losses}) == len(losses)
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@on_gpu
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch 2.11's compiler imports its own past
@pytest.mark.parametrize(
    "more", [[], ["augment.mixup=0.5", "augment.cutmix=0.5"], ["compile=true"], ["precision=fp32"]]
)
def test_a_run_with_graphs_learns_what_one_without_learns(
    photos: Path, tmp_path: Path, deterministic: None, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    curves, played, play = list[list[float]](), list[int](), gradients._Recorded.play

    def noted(recorded: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        played.append(1)
        return play(recorded, inputs)

    monkeypatch.setattr(gradients._Recorded, "play", noted)
    for graphs in ("true", "false"):
        config = with_settings(
            RunConfig(),
            [
                f"data.source={photos}",
                "data.batch_size=8",
                "data.image_size=64",
                "data.workers=1",
                "model.name=dla46_c",
                "optim.lr=0.01",
                "ema.decay=0.9",
                "optim.clip_norm=1.0",
                "augment.re_prob=0.5",
                "epochs=4",
                "trackers=[]",
                f"cuda_graphs={graphs}",
                *more,
            ],
        )
        rows = train(config, tmp_path / graphs).metrics
        curves.append([row["train_loss"] for row in rows])
    assert curves[0] == pytest.approx(curves[1], rel=0.01)
    assert len(played) > 4


@on_gpu
def test_a_step_that_cannot_be_recorded_leaves_the_gpu_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)).cuda().train()

    def looks(images: Tensor, targets: Tensor) -> Tensor:
        loss = computed(model)(images, targets)
        loss.item()  # a recording computes nothing yet
        return loss

    step, stream = Gradients(looks, model, record=True), torch.cuda.current_stream()
    for _ in range(SETTLED + 2):
        model.zero_grad()
        loss = step(torch.randn(4, 3, 2, 2, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda"))
        assert loss.isfinite()
    assert torch.cuda.current_stream() == stream
    assert [r.getMessage()[:34] for r in caplog.records] == ["no CUDA graph could be recorded, t"]


@on_gpu
def test_erasing_on_a_gpu_puts_what_the_processor_would() -> None:
    images = torch.randn(16, 3, 32, 32)
    for mode in ("const", "rand", "pixel"):
        erase = RandomErasingBatch(0.7, mode, count=2)
        torch.manual_seed(3)
        here = erase(images.clone())
        torch.manual_seed(3)
        assert torch.equal(erase(images.clone().cuda()).cpu(), here)
