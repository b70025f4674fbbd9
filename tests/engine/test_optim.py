"""Optimisers against timm's, step for step; groups against timm's groups."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import nn

import vertebra
from vertebra.engine.optim import OPTIMIZERS, create_optimizer, param_groups
from vertebra.spec import UnknownNameError, VertebraError


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def same_path(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, mine: nn.Module, peer: nn.Module) -> None:
    for step in range(8):
        x = torch.randn(6, 5) * (1 + step)
        for model, optimizer in ((mine, ours), (peer, theirs)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        for a, b in zip(mine.parameters(), peer.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6, msg=lambda text, n=step: f"step {n}: {text}")


RMSPROP: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 1e-2, "eps": 1e-3},
    {"momentum": 0.9, "weight_decay": 0.1, "decoupled_decay": True, "alpha": 0.8},
    {"momentum": 0.9, "lr_in_momentum": False},
]
LAMB: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.0},
    {"weight_decay": 0.0, "always_adapt": True},
    {"weight_decay": 0.1, "trust_clip": True, "max_grad_norm": None},
    {"grad_averaging": False, "bias_correction": False, "betas": (0.8, 0.9), "eps": 1e-4, "max_grad_norm": 10.0},
]


@pytest.mark.parametrize(
    ("name", "options"), [*(("RMSpropTF", o) for o in RMSPROP), *(("Lamb", o) for o in LAMB)], ids=str
)
@pytest.mark.parametrize("lr", [0.003, 0.05])
def test_steps_are_those_of_timm(name: str, options: dict[str, Any], lr: float) -> None:
    mine = network()
    peer = copy.deepcopy(mine)
    ours = OPTIMIZERS[name.lower()][0](mine.parameters(), lr=lr, **options)
    theirs = getattr(timm.optim, name)(peer.parameters(), lr=lr, **options)
    same_path(ours, theirs, mine, peer)


def test_the_learning_rate_may_change_on_the_way() -> None:
    mine = network()
    peer = copy.deepcopy(mine)
    ours = OPTIMIZERS["rmsproptf"][0](mine.parameters(), lr=0.01, momentum=0.9)
    theirs = timm.optim.RMSpropTF(peer.parameters(), lr=0.01, momentum=0.9)
    for lr in (0.01, 0.002):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = lr
        same_path(ours, theirs, mine, peer)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimiser_learns_and_resumes_exactly(name: str) -> None:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: torch.Tensor) -> float:
        loss = torch.zeros(())
        for x in batches:
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    first = network()
    optimizer = create_optimizer(first, name, lr=0.01, weight_decay=1e-4)
    data = torch.randn(1, 16, 5).expand(12, -1, -1)
    before = (first(data[0]) - 1).square().mean().item()
    train(first, optimizer, data[:6])
    second = network()
    second.load_state_dict(first.state_dict())
    resumed = create_optimizer(second, name, lr=0.01, weight_decay=1e-4)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(first, optimizer, data[6:]) < before
    train(second, resumed, data[6:])
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def by_name(groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    return {
        name: (group["weight_decay"], round(group.get("lr_scale", 1.0), 9))
        for group in groups
        for name in group["param_names"]
    }


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "dla46_c", "regnety_002", "cspresnet50", "dpn68"],
)
@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_groups_are_those_of_timm(name: str, layer_decay: float | None) -> None:
    ours, theirs = vertebra.create_model(name), timm.create_model(name)
    spared = tuple(theirs.no_weight_decay()) if hasattr(theirs, "no_weight_decay") else ()
    options: dict[str, Any] = {"weight_decay": 0.05, "no_weight_decay_list": spared}
    if layer_decay is None:
        expected = timm.optim.param_groups_weight_decay(theirs, **options)
    else:
        expected = timm.optim.param_groups_layer_decay(theirs, layer_decay=layer_decay, **options)
    mine = by_name(param_groups(ours, 0.05, layer_decay))
    names = {parameter: n for n, parameter in theirs.named_parameters()}
    for group in expected:
        for parameter in group["params"]:
            decay, scale = mine[names[parameter]]
            assert (decay, scale) == (group["weight_decay"], round(group.get("lr_scale", 1.0), 9)), names[parameter]
    assert len(mine) == len(names)


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    assert set(by_name(param_groups(model))) == {"1.weight", "1.bias", "3.weight", "3.bias"}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(VertebraError, match="nothing to train"):
        param_groups(model)


def test_errors_teach() -> None:
    model = network()
    for name, options, message in [
        ("adamv", {}, "unknown optimizer 'adamv'; did you mean"),
        ("lamb", {"beta": 1}, "unknown option 'beta' for optimizer 'lamb'; did you mean 'betas'"),
        ("sgd", {"lr": 0.0}, "lr=0.0"),
        ("sgd", {"layer_decay": 0.5}, "needs a vertebra model"),
        ("sgd", {"layer_decay": 1.5}, "layer_decay=1.5"),
        ("rmsproptf", {"alpha": 1.5}, "alpha=1.5 is out of range"),
    ]:
        with pytest.raises(VertebraError) as caught:
            create_optimizer(model, name, **{"lr": 0.1, **options})
        assert message in str(caught.value)
    with pytest.raises(UnknownNameError):
        create_optimizer(model, "adamw", lr=0.1, momentum=0.9)


def test_an_update_is_one_kernel_where_there_is_one() -> None:
    layer = nn.Linear(3, 2)
    assert create_optimizer(layer, "sgd", lr=0.1).defaults["fused"]
    assert create_optimizer(layer, "adamw", lr=0.1, betas=(0.9, 0.95)).defaults["fused"]
    once = create_optimizer([{"params": layer.parameters()}], "adamw", lr=0.1)
    assert len(once.param_groups[0]["params"]) == 2
    with torch.device("meta"):
        assert not create_optimizer(nn.Linear(3, 2), "sgd", lr=0.1).defaults["fused"]
