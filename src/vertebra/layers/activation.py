"""Activations by name, in place: the pre-activation is never read again, in training neither."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import silu

ActType = Literal["", "relu", "leaky_relu", "silu"]
"""`''`: none. `leaky_relu` has slope 0.01."""


def activate(x: Tensor, act: ActType) -> Tensor:
    """`act(x)`, written over `x`."""
    if act == "relu":
        return torch.relu_(x)
    if act == "leaky_relu":
        return torch.nn.functional.leaky_relu_(x, 0.01)
    return silu(x, inplace=True) if act == "silu" else x
