"""On a CPU: a convolution with its normalisation in it, and addition and activation while its output is in cache.

The element-wise passes, their page faults and the reordering of weights at every call are a third to two thirds of an
eager forward pass there.
"""

# torch does not declare its oneDNN functions, and names them as private.
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vertebra.runtime.passes.convs import Activation, fold

_POST_OPS = {"": "none", "relu": "relu", "leaky_relu": "leaky_relu", "silu": "swish"}
LAYOUTS = 2
"""Input shapes for which a weight is kept packed: a batch and its odd last one. oneDNN chooses a layout by shape, and
reorders at every call, two to four times slower than the plain steps, where it is given another's."""


def available() -> bool:
    """Whether torch has oneDNN here, and may use it."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class OneDnnConv(nn.Module):
    """`act(bn(conv(x)) + add)`: (b, c, h, w) -> (b, d, h', w'), channels-last. Several threads may call it."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, act: Activation) -> None:
        super().__init__()
        weight, bias = fold(conv, bn)
        # A processor without bf16 arithmetic emulates it, slowly; float32 inside is faster there and rounds once.
        native = conv.weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._dtype = conv.weight.dtype if native else torch.float32
        self._bias = bias.to(self._dtype)
        self._weight: Tensor = weight.to(self._dtype).to_mkldnn()
        """In oneDNN's own memory: packed for the first shape that came."""
        self._layouts: dict[torch.Size, Tensor] = {}
        """Input shape -> weight packed for it, the oldest first."""
        self._turn = threading.Lock()
        self._place = (_ints(conv.padding), _ints(conv.stride), _ints(conv.dilation), conv.groups)
        self._cin, self._cout, self._kernel = conv.in_channels, conv.out_channels, conv.kernel_size
        self._act = act

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        weight = self._layouts.get(x.shape)
        if weight is None:
            weight = self._packed(x.shape)
        wide, act = x.to(self._dtype), self._act
        kernel = torch.ops.mkldnn._convolution_pointwise
        if add is None:
            slope = [act.slope] if act.name == "leaky_relu" else []
            return kernel(wide, weight, self._bias, *self._place, _POST_OPS[act.name], slope, "").to(x.dtype)
        if add.shape != self._answers(x.shape):  # oneDNN would read beyond its end
            return act.over(kernel(wide, weight, self._bias, *self._place, "none", [], "").to(x.dtype) + add)
        # Its binding knows no activation behind an addition but ReLU.
        after = act.name if act.name == "relu" else None
        out = kernel.binary(wide, add.to(self._dtype), weight, self._bias, *self._place, "add", 1.0, after, [], "")
        return (out if after else act.over(out)).to(x.dtype)

    def _answers(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape of what comes out."""
        sides = [
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, pad, stride, dilation in zip(shape[2:], self._kernel, *self._place[:3], strict=True)
        ]
        return (shape[0], self._cout, *sides)

    def _packed(self, shape: torch.Size) -> Tensor:
        """The weight for inputs of this shape. What comes out depends on nothing that was called before."""
        if len(shape) != 4 or shape[1] != self._cin:
            raise RuntimeError(f"a map of shape {tuple(shape)}: this convolution takes (b, {self._cin}, h, w)")
        with self._turn, torch.inference_mode(False), torch.no_grad():
            weight = torch._C._nn.mkldnn_reorder_conv2d_weight(self._weight, *self._place, list(shape))
            if not self._layouts:
                self._weight = weight
            kept = list(self._layouts.items())[1 - LAYOUTS :]
            self._layouts = {**dict(kept), shape: weight}
        return weight

    def extra_repr(self) -> str:
        return f"{self._cin}, {self._cout}, {self._act}"


def _ints(size: Sequence[int] | str) -> list[int]:
    assert not isinstance(size, str)
    return list(size)
