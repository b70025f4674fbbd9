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
    program = torch.export.export(net, (image,))
    simplify(program)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), net(image))
    left = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    assert left["aten.batch_norm.default"] == normalisations
    assert sum(count for name, count in left.items() if "_." in name) == writes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
