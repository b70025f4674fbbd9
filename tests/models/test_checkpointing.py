"""A training step with gradient checkpointing leaves a model as the step without it does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import vertebra
from tests.zoo import ARCHS, small_model, small_size
from vertebra.hub.registry import REGISTRY

SMALLEST = [
    min((a for a in ARCHS if REGISTRY.family(a).name == family), key=lambda a: REGISTRY.variant(a).params)
    for family in sorted({REGISTRY.family(a).name for a in ARCHS})
]


def assert_steps_alike(plain: nn.Module, saving: Any, arch: str) -> None:
    """Two training steps each: the same answers, gradients and buffers, random draws included."""
    for step in range(2):
        x = torch.randn(2, 3, *small_size(arch))
        for model in (plain, saving):
            torch.manual_seed(step)
            model(x).square().mean().backward()
    for (name, one), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other), name
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("arch", SMALLEST)
def test_a_step_counts_its_batch_once(arch: str, momentum: float | None) -> None:
    plain = small_model(arch, num_classes=3, drop_rate=0.2, drop_path_rate=0.2).train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    assert_steps_alike(plain, saving, arch)


@pytest.mark.parametrize("arch", ["dla46_c", "dpn48b"])
def test_dense_models_do_too(arch: str) -> None:
    plain = vertebra.aggregate(small_model(arch, output_stride=16), kind="hda", channels=8).train()
    saving = copy.deepcopy(plain)
    saving.features.set_grad_checkpointing()
    assert_steps_alike(plain, saving, arch)


def test_frozen_statistics_stay_and_others_move() -> None:
    model = small_model("dla46_c", num_classes=3)
    vertebra.freeze(model, 2)
    model.train().set_grad_checkpointing()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    counted = {name: int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert {name for name, count in counted.items() if not count} == {
        f"{name}.num_batches_tracked" for name, m in model.named_modules() if m in model.frozen_modules
    }
    assert set(counted.values()) == {0, 1}
    assert torch.equal(dict(model.named_buffers())["base_layer.1.running_mean"], before["base_layer.1.running_mean"])
