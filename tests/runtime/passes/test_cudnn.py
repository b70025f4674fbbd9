"""Folded convolutions, on the processor: the same weights, without the kernels of a GPU."""

import itertools

import pytest
import torch
from torch import nn

from vertebra.runtime.passes.convs import Activation
from vertebra.runtime.passes.cudnn import CudnnConv, folded, run


@pytest.mark.parametrize("act", [Activation("relu"), Activation("leaky_relu", 0.01), Activation()])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (7, 7), (3, 5)])
@pytest.mark.parametrize(("cin", "groups"), [(1, 1), (3, 1), (4, 1), (16, 1), (8, 4)])
def test_a_folded_convolution_answers_as_its_steps_do(
    act: Activation, kernel: tuple[int, int], cin: int, groups: int
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2)
    for stride, (height, width) in itertools.product((1, 2), ((8, 12), (7, 12))):
        conv = nn.Conv2d(cin, 8, kernel, stride, padding, groups=groups, bias=False).double()
        bn = nn.BatchNorm2d(8).double().eval()
        for value in (bn.running_mean, bn.running_var, bn.weight, bn.bias):
            assert isinstance(value, torch.Tensor)
            value.data.uniform_(0.5, 1.5)
        x = torch.randn(2, cin, height, width, dtype=torch.float64).to(memory_format=torch.channels_last)
        with torch.no_grad():
            plain = bn(conv(x))
            one = folded(conv, bn, even=height % 2 == width % 2 == 0)
            assert one.blocks_in == (cin <= 4 and kernel != (1, 1) and height % 2 == 0)
            for add in (None, torch.randn_like(plain)):
                expected = act.over(plain.clone() if add is None else plain + add)
                torch.testing.assert_close(run(x, one, act, add), expected)
                torch.testing.assert_close(CudnnConv(conv, bn, act)(x, add), expected)


def test_an_odd_padding_is_left_as_it_is() -> None:
    conv, bn = nn.Conv2d(3, 8, 3, padding=0, bias=False), nn.BatchNorm2d(8).eval()
    assert not folded(conv, bn, even=True).blocks_in
    assert not folded(nn.Conv2d(3, 8, 2, padding=1, bias=False), bn, even=True).blocks_in
