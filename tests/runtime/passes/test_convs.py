"""Which steps of a graph become one, and which stay: the answers are those of the plain model either way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tests.runtime.passes.conftest import filled
from vertebra.runtime.passes.convs import fuse_convs
from vertebra.runtime.passes.onednn import OneDnnConv


class Unit(nn.Module):
    """A convolution and its normalisation, in whatever `code` makes of them."""

    def __init__(self, code: Callable[[Unit, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = filled(8, 8)
        self.other, self.norm = filled(8, 8)
        self.code = code
        self.act = nn.LeakyReLU(0.3, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def both(m: Unit, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    return y * torch.relu(y)


def doubled(m: Unit, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    return torch.relu(y + y)


def beside(m: Unit, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.bn(y) + y


def late(m: Unit, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    x.mul_(2)
    return torch.relu_(y + x)


FOUND: dict[str, tuple[int, Callable[[Unit, Tensor], Tensor]]] = {
    "convolution and norm": (1, lambda m, x: m.bn(m.conv(x))),
    "relu in place": (1, lambda m, x: torch.relu_(m.bn(m.conv(x)))),
    "silu": (1, lambda m, x: F.silu(m.bn(m.conv(x)), inplace=True)),
    "a module's slope": (1, lambda m, x: m.act(m.bn(m.conv(x)))),
    "a function's slope": (1, lambda m, x: F.leaky_relu(m.bn(m.conv(x)), negative_slope=0.7)),
    "added from the right": (1, lambda m, x: torch.relu_(m.bn(m.conv(x)) + x)),
    "added from the left": (1, lambda m, x: torch.relu(x + m.bn(m.conv(x)))),
    "added in place": (1, lambda m, x: torch.relu_(m.bn(m.conv(x)).add_(x))),
    "two branches": (2, lambda m, x: (m.bn(m.conv(x)) + m.norm(m.other(x))).relu()),
    "one added to itself": (1, doubled),
    "a sum with a factor": (1, lambda m, x: torch.relu(torch.add(m.bn(m.conv(x)), x, alpha=3))),
    "read twice": (1, both),
    "an operand that is written to in between": (1, late),
    "the convolution read twice": (0, beside),
    "no norm": (0, lambda m, x: torch.relu(m.conv(x))),
    "norm first": (0, lambda m, x: m.conv(torch.relu(m.bn(x)))),
}


@torch.no_grad()
@pytest.mark.parametrize("name", FOUND)
def test_answers_stay(name: str) -> None:
    count, code = FOUND[name]
    model = Unit(code).eval()
    x = torch.randn(2, 8, 7, 7)
    expected = model(x.clone())
    traced = fx.symbolic_trace(model)
    assert fuse_convs(traced, OneDnnConv) == count
    traced.graph.lint()
    traced.recompile()
    torch.testing.assert_close(traced(x.clone()), expected, rtol=1e-5, atol=1e-5)


class Mine(nn.Conv2d):
    """A layer that somebody put in the place of another."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "conv", Mine(8, 8, 3, padding=1)),
        lambda m: setattr(m, "conv", nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
        lambda m: setattr(m, "conv", nn.Conv2d(8, 8, 3, padding="same")),
        lambda m: setattr(m, "bn", nn.BatchNorm2d(8, track_running_stats=False)),
        lambda m: setattr(m, "bn", nn.GroupNorm(2, 8)),
        lambda m: m.bn.train(),
        lambda m: nn.utils.parametrizations.weight_norm(m.conv),
        lambda m: setattr(m.conv, "forward", lambda x: x * 3),
        lambda m: m.double(),
    ],
)
def test_what_is_another_layer_is_left_alone(change: Callable[[Unit], object]) -> None:
    model = Unit(lambda m, x: torch.relu_(m.bn(m.conv(x)))).eval()
    change(model)
    traced = fx.GraphModule(model, Leaves().trace(model))
    assert fuse_convs(traced, OneDnnConv) == 0


class Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True
