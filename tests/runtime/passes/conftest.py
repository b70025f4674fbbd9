"""Layers with values, and the plain steps to compare with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vertebra.runtime.passes.convs import Activation


def filled(
    cin: int = 8, cout: int = 16, kernel: int = 3, *, groups: int = 1, bias: bool = False
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """In evaluation, with statistics that a mistake cannot hide behind."""
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, groups=groups, bias=bias)
    return conv.eval(), unlike_fresh(nn.BatchNorm2d(cout))


def unlike_fresh(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    with torch.no_grad():
        for tensor in (bn.weight, bn.bias, bn.running_mean):
            assert isinstance(tensor, Tensor)
            tensor.normal_()
        assert isinstance(bn.running_var, Tensor)
        bn.running_var.uniform_(0.5, 2)
    return bn.eval()


def steps(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, act: Activation, add: Tensor | None) -> Tensor:
    out = bn(conv(x)) if add is None else bn(conv(x)) + add
    kinds = {"relu": torch.relu, "silu": nn.functional.silu}
    if act.name == "leaky_relu":
        return nn.functional.leaky_relu(out, act.slope)
    return kinds[act.name](out) if act.name else out
