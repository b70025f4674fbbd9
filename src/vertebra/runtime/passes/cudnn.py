"""On an NVIDIA GPU: convolution, batch normalisation, addition and ReLU as one kernel of cuDNN's.

b batch, c channels, h w height and width in pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, pixel_unshuffle

from vertebra.runtime.passes.convs import Activation, fold

_CHANNELS = 8
"""A multiple of which the kernels for matrix units take."""
_FEW = 4
"""Channels, up to which a convolution sees blocks of 2x2 pixels as one with four times as many."""


@dataclass(frozen=True, slots=True)
class Folded:
    """A convolution with its normalisation in it, as cuDNN takes it."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    blocks_in: bool = False
    """It takes 2x2 pixels as one, with the channels in the order (c, y, x)."""
    blocks_out: bool = False
    """It answers so, with the channels in the order (y, x, c)."""


class CudnnConv(nn.Module):
    """`act(bn(conv(x)) + add)`: (b, c, h, w) -> (b, d, h', w'), channels-last; one kernel where `act` is a ReLU."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, act: Activation) -> None:
        super().__init__()
        self._odd = folded(conv, bn, even=False)
        self._even = folded(conv, bn, even=True) if _in_blocks(conv) else self._odd
        self._act = act

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        return run(x, self._even if even else self._odd, self._act, add)

    def extra_repr(self) -> str:
        return str(self._act)


def run(x: Tensor, folded: Folded, act: Activation, add: Tensor | None) -> Tensor:
    if folded.blocks_in:
        x = pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
    if missing := folded.weight.shape[1] * folded.groups - x.shape[1]:
        x = pad(x, (0, 0, 0, 0, 0, missing))
    place = (folded.stride, folded.padding, folded.dilation, folded.groups)
    fuses = act.name == "relu" and x.is_cuda
    if fuses and add is not None and not folded.blocks_out:
        return torch.cudnn_convolution_add_relu(x, folded.weight, add, 1.0, folded.bias, *place)
    if fuses and add is None:
        x = torch.cudnn_convolution_relu(x, folded.weight, folded.bias, *place)
        return _pixels(x) if folded.blocks_out else x
    x = conv2d(x, folded.weight, folded.bias, *place)
    x = _pixels(x) if folded.blocks_out else x
    return act.over(x if add is None else x.add_(add))


def _pixels(x: Tensor) -> Tensor:
    """(b, 4 c, h, w), channels (y, x, c) -> (b, c, 2 h, 2 w), both channels-last."""
    b, c, h, w = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(b, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(b, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)


def folded(conv: nn.Conv2d, bn: nn.BatchNorm2d, *, even: bool) -> Folded:
    """`even`: the maps that come have an even number of rows and columns."""
    weight, shift = fold(conv, bn)
    assert not isinstance(conv.padding, str)
    stride, padding, dilation = conv.stride, conv.padding, conv.dilation
    blocks_in = even and _in_blocks(conv)
    blocks_out = blocks_in and stride == (1, 1)
    if blocks_in:
        weight = in_blocks(weight, stride[0])
        shift = shift.repeat(4) if blocks_out else shift
        stride, padding = (1, 1), (weight.shape[2] // 2, weight.shape[3] // 2)
    if conv.groups == 1:
        weight = pad(weight, (0, 0, 0, 0, 0, -weight.shape[1] % _CHANNELS))
    kind = conv.weight.dtype
    packed = weight.to(kind).contiguous(memory_format=torch.channels_last)
    return Folded(packed, shift.to(kind), stride, padding, dilation, conv.groups, blocks_in, blocks_out)


def _in_blocks(conv: nn.Conv2d) -> bool:
    """A convolution of few channels leaves matrix units idle; the same one of blocks has enough."""
    same = conv.padding == tuple(k // 2 for k in conv.kernel_size) and all(k % 2 for k in conv.kernel_size)
    return (
        conv.in_channels <= _FEW
        and conv.groups == 1
        and same
        and conv.kernel_size != (1, 1)
        and conv.dilation == (1, 1)
        and conv.stride in ((1, 1), (2, 2))
    )


def in_blocks(weight: Tensor, stride: int) -> Tensor:
    """(d, c, k, k) -> the same convolution of maps whose 2x2 pixels are one: (d', 4 c, k', k'), d' = 4 d at stride 1.

    What the kernel sees of a block that lies partly outside it has a weight of 0.
    """
    d, c, tall, wide = weight.shape
    places = range(2) if stride == 1 else range(1)  # of a block's pixels, which are answered
    reach = [-(-size // 2 // 2) for size in (tall, wide)]  # blocks, on either side
    out = weight.new_zeros(len(places), len(places), d, c, 2, 2, 2 * reach[0] + 1, 2 * reach[1] + 1)
    for y, x in ((y, x) for y in places for x in places):
        for i, j in ((i, j) for i in range(tall) for j in range(wide)):
            row, column = y + i - tall // 2, x + j - wide // 2
            block = (row // 2 + reach[0], column // 2 + reach[1])
            out[y, x, :, :, row % 2, column % 2, block[0], block[1]] = weight[:, :, i, j]
    return out.reshape(len(places) ** 2 * d, 4 * c, *out.shape[-2:])
