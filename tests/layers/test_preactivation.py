"""Pre-activation units."""

import pytest
import torch
from torch import nn

from vertebra.layers.activation import ActType
from vertebra.layers.preactivation import BnAct, BnActConv

CHANNELS = 12


def unlike_fresh(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Statistics and parameters that a mistake cannot hide behind."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    generator = torch.Generator().manual_seed(0)
    bn.running_mean.normal_(generator=generator)
    bn.running_var.uniform_(0.5, 2, generator=generator)
    if bn.affine:
        nn.init.normal_(bn.weight, generator=generator)
        nn.init.normal_(bn.bias, generator=generator)
    return bn.eval()


def room() -> torch.Tensor:
    return torch.randn(2, CHANNELS, 5, 7, generator=torch.Generator().manual_seed(1))


def test_units_run_normalisation_first() -> None:
    unit = BnActConv(CHANNELS, 8, 3, stride=2, groups=4, eps=1e-3).eval()
    unlike_fresh(unit.bn)
    x = room()
    torch.testing.assert_close(unit(x), unit.conv(unit.bn(x).relu()))
    assert unit(x).shape == (2, 8, 3, 4)
    assert unit.bn.eps == 1e-3
    assert next(iter(unit.state_dict())) == "bn.weight"


@pytest.mark.parametrize("act", ["relu", "silu", ""])
def test_bn_act_applies_its_activation(act: ActType) -> None:
    unit = BnAct(CHANNELS, act).eval()
    unlike_fresh(unit.bn)
    x = room()
    normal = unit.bn(x)
    expected = {"relu": normal.relu(), "silu": nn.functional.silu(normal), "": normal}[act]
    torch.testing.assert_close(unit(x), expected)
