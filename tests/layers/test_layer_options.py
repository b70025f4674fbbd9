"""`act_layer` and `norm_layer`: names, classes, partials; how a file holds them."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vertebra
from tests.zoo import random_state, relative
from vertebra import VertebraError
from vertebra.layers.activation import ACTIVATIONS, activate, activation

CNNS = ("cs3darknet_s", "regnety_002")
VIT = "vit_tiny_patch16_224"


def pair(arch: str, **options: Any) -> tuple[Any, Any]:
    small = {"img_size": 32, "depth": 1} if arch == VIT else {}
    ours, theirs = (lib.create_model(arch, num_classes=5, **small, **options).eval() for lib in (vertebra, timm))
    state = random_state(theirs.state_dict())
    for model in (ours, theirs):
        model.load_state_dict(state)
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("arch", [*CNNS, VIT, "dpn48b"])
@pytest.mark.parametrize(
    "layer", [*sorted(set(ACTIVATIONS) - {"", "identity", "prelu"}), nn.SiLU, partial(nn.ELU, 0.5)]
)
def test_activations_are_the_references(arch: str, layer: Any) -> None:
    ours, theirs = pair(arch, act_layer=layer)
    x = torch.randn(1, 3, 32, 32)
    assert relative(ours(x), theirs(x)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        *((arch, "batchnorm2d") for arch in CNNS),
        *((arch, "layernorm2d") for arch in CNNS),
        *((arch, partial(nn.BatchNorm2d, eps=0.1)) for arch in CNNS),
        ("darknet17", "groupnorm"),
        ("darknet17", nn.GroupNorm),
        (VIT, "layernorm"),
        (VIT, "rmsnorm"),
        (VIT, partial(nn.LayerNorm, eps=0.1)),
    ],
)
def test_normalisations_are_the_references(arch: str, layer: Any) -> None:
    ours, theirs = pair(arch, norm_layer=layer)
    x = torch.randn(1, 3, 32, 32)
    assert relative(ours(x), theirs(x)) < 1e-5


def test_named_activations_are_what_torch_computes() -> None:
    x = torch.randn(100)
    for name, made in ACTIVATIONS.items():
        assert torch.equal(activate(x.clone(), activation(name)), made()(x)), name


def test_a_class_with_a_name_is_saved_by_it_and_another_is_refused(tmp_path: Path) -> None:
    model = vertebra.create_model("regnetx_002", act_layer=nn.SiLU, norm_layer=nn.BatchNorm2d, num_classes=2).eval()
    again = vertebra.load_model(vertebra.save_model(model, tmp_path / "silu.safetensors")).eval()
    x = torch.randn(1, 3, 32, 32)
    assert relative(again(x), model(x)) < 1e-5
    assert again.config.act_layer == "silu"
    own = vertebra.create_model("regnetx_002", act_layer=partial(nn.ELU, 0.5), num_classes=2)
    with pytest.raises(VertebraError, match=re.escape("has no name that a file can hold")):
        vertebra.save_model(own, tmp_path / "own.safetensors")


def test_what_makes_no_layer_is_refused() -> None:
    with pytest.raises(VertebraError, match="makes a Tensor, no torch"):
        vertebra.create_model(VIT, act_layer=lambda: torch.zeros(1), device="meta")
    with pytest.raises(VertebraError, match="makes a int, no torch"):
        vertebra.create_model("regnetx_002", norm_layer=lambda channels: channels, device="meta")
