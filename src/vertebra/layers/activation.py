"""Activations by name. Those of CNNs are functions, in place: the pre-activation is never read again, in training
neither. Any other is a module.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from vertebra.spec import Layer, VertebraError, unknown_name

ActType = Literal["", "relu", "leaky_relu", "silu"]
"""`''`: none. `leaky_relu` has slope 0.01."""


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): GELU as CLIP's authors approximate it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "": nn.Identity,
        "celu": nn.CELU,
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "gelu_tanh": partial(nn.GELU, "tanh"),
        "hard_sigmoid": nn.Hardsigmoid,
        "hard_swish": nn.Hardswish,
        "identity": nn.Identity,
        "leaky_relu": nn.LeakyReLU,
        "mish": nn.Mish,
        "prelu": nn.PReLU,
        "quick_gelu": QuickGELU,
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "selu": nn.SELU,
        "sigmoid": nn.Sigmoid,
        "silu": nn.SiLU,
        "swish": nn.SiLU,
        "tanh": nn.Tanh,
    }
)


def spelled(layer: Layer, known: Mapping[str, Callable[..., nn.Module]]) -> Layer:
    """A layer's name, where it is a class that has one: what a file can hold."""
    return next((name for name, made in known.items() if made is layer), layer)


def make_activation(layer: Layer) -> nn.Module:
    """A module: of a name, or of what makes one when it is called (a class, a partial, a function)."""
    if isinstance(layer, str):
        if layer not in ACTIVATIONS:
            raise unknown_name("act_layer", layer, sorted(filter(None, ACTIVATIONS)))
        return ACTIVATIONS[layer]()
    made: Any = layer()
    if not isinstance(made, nn.Module):
        raise VertebraError(
            f"act_layer {layer!r} makes a {type(made).__name__}, no torch.nn.Module; give a layer's class"
        )
    return made


def activation(layer: Layer) -> ActType | nn.Module:
    """What `activate` takes: a name that it knows, else a module to keep as a part of the layer."""
    known: dict[object, ActType] = {"": "", "relu": "relu", "leaky_relu": "leaky_relu", "silu": "silu", "swish": "silu"}
    known |= {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.SiLU: "silu"}
    return known[layer] if layer in known else make_activation(layer)


def activate(x: Tensor, act: ActType | nn.Module) -> Tensor:
    """`act(x)`; a named one is written over `x`."""
    if not isinstance(act, str):
        return act(x)
    if act == "relu":
        return torch.relu_(x)
    if act == "leaky_relu":
        return torch.nn.functional.leaky_relu_(x, 0.01)
    return silu(x, inplace=True) if act == "silu" else x
