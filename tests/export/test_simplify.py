"""A simplified graph answers as before, and has less in it; what must stay, stays."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from vertebra.runtime.simplify import simplify


class Net(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, groups=1, bias=bias)
        self.bn = nn.BatchNorm2d(4)
        for tensor in (*self.bn.parameters(), *self.bn.buffers()):
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.leaky_relu(self.bn(self.conv(x)), 0.1, inplace=True)


class ReadsBetween(Net):
    def forward(self, x: Tensor) -> Tensor:
        between = self.conv(x)
        return self.bn(between) + between


class ReadsAView(Net):
    """A write through a view changes what the view looks at."""

    def forward(self, x: Tensor) -> Tensor:
        whole = self.conv(x)
        whole[:, :2].relu_()
        return whole


class ReadsTheOperand(Net):
    def forward(self, x: Tensor) -> Tensor:
        whole = self.conv(x)
        return whole.relu_() + whole


class TwoReaders(Net):
    """The same weights, normalised once and once not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.conv(x)


def operators_left(net: nn.Module, image: Tensor) -> Counter[str]:
    """How many of each kind the simplified graph holds, which must answer as the model does."""
    program = torch.export.export(net, (image,))
    simplify(program)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), net(image))
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize(
    ("net", "normalisations", "writes"),
    [
        (Net(), 0, 0),
        (Net(bias=True), 1, 0),
        (ReadsBetween(), 1, 0),
        (ReadsAView(), 0, 1),
        (ReadsTheOperand(), 0, 0),
        (TwoReaders(), 1, 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_answers_stay(net: nn.Module, normalisations: int, writes: int) -> None:
    image = torch.randn(2, 3, 9, 9)
    before = {key: value.clone() for key, value in net.eval().state_dict().items()}
    left = operators_left(net, image)
    assert left["aten.batch_norm.default"] == normalisations
    assert sum(count for name, count in left.items() if "_." in name) == writes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Paths(nn.Module):
    """A map that two blocks add to and append to, as in a dual path network."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, bias=False)
        self.third = nn.Conv2d(8, 6, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        both = self.first(x).relu_()
        for conv in (self.second, self.third):
            added = conv(both)
            both = torch.cat((both[:, :4] + added[:, :4], both[:, 4:], added[:, 4:]), 1)
        return both


class Halves(Paths):
    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.nn.functional.leaky_relu(self.first(x), 0.2).chunk(2, 1)
        return torch.cat((second, first), 1)


class Overlap(Paths):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return torch.cat((h[:, :2], h[:, :-2], h[:, -3:]), 1)


class Whole(Paths):
    """Somebody reads all of it, too."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h[:, :3] + h[:, 3:] + h.mean(1, keepdim=True)


class EverySecond(Paths):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h[:, ::2] + h[:, 1::2]


class Across(Paths):
    """Cut elsewhere than joined."""

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat((x, x.exp()), 1)
        return joined[:, :2] + joined[:, 2:4]


class Shared(Paths):
    """The same weights, cut once and once not."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h[:, :3] + h[:, 3:] + self.first(x.exp())[:, 2:5]


@pytest.mark.parametrize(
    ("net", "slices", "convolutions"),
    [
        (Paths(), 2, 5),  # of the first map, which the second convolution reads whole
        (Paths(groups=2), 4, 4),
        (Halves(), 0, 2),
        (Overlap(), 0, 3),
        (Whole(), 2, 1),
        (EverySecond(), 2, 1),
        (Across(), 2, 0),
        (Shared(), 3, 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_sliced_is_made_apart(net: nn.Module, slices: int, convolutions: int) -> None:
    left = operators_left(net.eval(), torch.randn(2, 3, 5, 5))
    assert (left["aten.slice.Tensor"], left["aten.conv2d.default"]) == (slices, convolutions)
