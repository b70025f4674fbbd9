"""Pre-activation units, and the shortcuts that stand for them in evaluation."""

import pytest
import torch
from torch import nn

from vertebra.layers.activation import ActType
from vertebra.layers.preactivation import BnAct, BnActConv, bn_relu_of_view, is_product, project_into

CHANNELS, ROOM = 12, 20


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


def room(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, ROOM, 5, 7, generator=generator).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("affine", [True, False])
@torch.no_grad()
def test_normalising_a_view_equals_the_modules(affine: bool) -> None:
    bn = unlike_fresh(nn.BatchNorm2d(CHANNELS, affine=affine))
    for x in (room()[:, :CHANNELS], room()[:, :CHANNELS, ::2, ::2], room()[:, :CHANNELS].contiguous()):
        before = x.clone()
        out = bn_relu_of_view(x, bn)
        torch.testing.assert_close(out, bn(x).relu())
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, before)


@torch.no_grad()
def test_normalising_a_bfloat16_view_rounds_once() -> None:
    bn, x = unlike_fresh(nn.BatchNorm2d(CHANNELS).bfloat16()), room(torch.bfloat16)[:, :CHANNELS]
    out = bn_relu_of_view(x, bn)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), bn.float()(x.float()).relu(), rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("add", [True, False])
@torch.no_grad()
def test_projecting_writes_only_where_it_is_told(dtype: torch.dtype, add: bool) -> None:
    weight = torch.randn(CHANNELS, 6, 1, 1, generator=torch.Generator().manual_seed(2)).to(dtype)
    x, target = room(dtype)[:, :6], room(dtype)
    before = target.clone()
    project_into(target[:, 4 : 4 + CHANNELS], x, weight, add=add)
    expected = nn.functional.conv2d(x.float(), weight.float())
    expected = expected + before[:, 4 : 4 + CHANNELS].float() if add else expected
    close = {"rtol": 2**-7, "atol": 2**-5} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(target[:, 4 : 4 + CHANNELS].float(), expected, **close)
    assert torch.equal(target[:, :4], before[:, :4])
    assert torch.equal(target[:, 4 + CHANNELS :], before[:, 4 + CHANNELS :])


@torch.no_grad()
def test_projecting_overwrites_what_was_never_filled() -> None:
    target, x = room(), room()[:, :6]
    weight = torch.ones(CHANNELS, 6, 1, 1)
    target[:, :CHANNELS] = float("nan")  # fresh memory may hold anything
    project_into(target[:, :CHANNELS], x, weight, add=False)
    torch.testing.assert_close(target[:, :CHANNELS], nn.functional.conv2d(x, weight))


class Wrapped(nn.Conv2d):
    """A layer that somebody put in the place of another."""


def test_only_a_plain_convolution_is_a_product() -> None:
    x = room()
    assert is_product(nn.Conv2d(3, 4, 1, bias=False), x)
    assert not is_product(Wrapped(3, 4, 1, bias=False), x)
    assert not is_product(nn.Conv2d(3, 4, 1), x)
    assert not is_product(nn.Conv2d(3, 4, 3, bias=False), x)
    assert not is_product(nn.Conv2d(3, 4, 1, bias=False).bfloat16(), x)
    assert not is_product(nn.Linear(3, 4, bias=False), x)


def test_units_run_normalisation_first() -> None:
    unit = BnActConv(CHANNELS, 8, 3, stride=2, groups=4, eps=1e-3).eval()
    unlike_fresh(unit.bn)
    x = room()[:, :CHANNELS]
    torch.testing.assert_close(unit(x), unit.conv(unit.bn(x).relu()))
    assert unit(x).shape == (2, 8, 3, 4)
    assert unit.bn.eps == 1e-3
    assert next(iter(unit.state_dict())) == "bn.weight"


@pytest.mark.parametrize("act", ["relu", "silu", ""])
def test_bn_act_applies_its_activation(act: ActType) -> None:
    unit = BnAct(CHANNELS, act).eval()
    unlike_fresh(unit.bn)
    x = room()[:, :CHANNELS]
    normal = unit.bn(x)
    expected = {"relu": normal.relu(), "silu": nn.functional.silu(normal), "": normal}[act]
    torch.testing.assert_close(unit(x), expected)
