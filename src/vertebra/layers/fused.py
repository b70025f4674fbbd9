"""Convolution, batch normalisation, addition and activation as one kernel, where nothing asks for the steps between.

In evaluation without gradients on a CPU, the normalisation is folded into the convolution's weight, the weight is kept
in oneDNN's own layout, and addition and activation run on the convolution's output while it is still in cache: the
element-wise passes, their page faults and the reordering of weights at every call are a third to two thirds of an
eager forward pass there. Everywhere else the same function takes the plain steps. The published parameters stay where
they are; the folded copy lives beside them, is never saved, and is made anew when they change.

On an NVIDIA GPU cuDNN has one kernel for it where the activation is a ReLU: no pass over the map but the convolution's
own. To see whether weights changed would mean to wait for the GPU; so that is for those alone who say
`cudnn.unchanging`.
"""

# torch shows hooks, modes and the tracing state under private names only, and does not declare its oneDNN functions.
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from vertebra.layers import cudnn
from vertebra.layers.activation import ActType, activate

_POST_OPS: dict[str, tuple[str, list[float]]] = {
    "": ("none", []),
    "relu": ("relu", []),
    "leaky_relu": ("leaky_relu", [0.01]),
    "silu": ("swish", []),
}
_PROBES = 32
"""Weights, at least, that are compared with their packed originals at each call: edits through `.data` leave no other
trace."""
_LAYOUTS = 2
"""Input shapes for which a weight is kept packed: a batch and its odd last one. oneDNN chooses a layout by shape, and
reorders at every call, two to four times slower than the plain steps, where it is given another's."""


@dataclass(slots=True)
class _Packed:
    """A convolution's folded weight, and what it was made from."""

    layouts: dict[torch.Size, Tensor]
    """Input shape -> weight, the oldest first."""
    scale: Tensor
    bias: Tensor
    stamp: tuple[object, ...]
    watched: tuple[tuple[Tensor, Tensor], ...]
    """(a source, its values when packed)."""
    probed: tuple[Tensor, Tensor, Tensor]
    """(the weight as it lies in memory, places in it, their values when packed)."""

    def fresh(self, stamp: tuple[object, ...]) -> bool:
        """Whether the sources are still what they were."""
        weight, places, values = self.probed
        return (
            stamp == self.stamp
            and torch.equal(weight.index_select(0, places), values)
            and all(torch.equal(now, then) for now, then in self.watched)
        )


_packed: "WeakKeyDictionary[nn.Module, _Packed]" = WeakKeyDictionary()


def forget(module: nn.Module) -> None:
    """Drop the folded copies of a module's convolutions, and the memory they hold."""
    for child in module.modules():
        _packed.pop(child, None)
        cudnn.forget(child)


def conv_bn_act(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, act: ActType = "", add: Tensor | None = None) -> Tensor:
    """`act(bn(conv(x)) + add)`: (b, c, h, w) -> (b, d, h', w')."""
    if not fusable(x, conv, bn):
        if not followed(x) and cudnn.is_unchanging() and x.device.type == "cuda" and _foldable(x, conv, bn):
            return cudnn.conv_bn_act(x, conv, bn, act, add)
        x = bn(conv(x))
        return activate(x if add is None else x.add_(add), act)
    weight, bias = _pack(conv, bn, x)
    # A processor without bf16 arithmetic emulates it, slowly; float32 inside is faster there and rounds once.
    wide = x.to(bias.dtype)
    place = (_ints(conv.padding), _ints(conv.stride), _ints(conv.dilation), conv.groups)
    kernel = torch.ops.mkldnn._convolution_pointwise
    if add is None:
        out = kernel(wide, weight, bias, *place, *_POST_OPS[act], "")
    else:
        # oneDNN's binding knows no activation behind an addition but ReLU.
        after = act if act == "relu" else None
        out = kernel.binary(wide, add.to(wide.dtype), weight, bias, *place, "add", 1.0, after, [], "")
        out = out if after else activate(out, act)
    return out.to(x.dtype)


def _ints(size: Sequence[int] | str) -> list[int]:
    assert not isinstance(size, str)
    return list(size)


def fusable(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, *within: nn.Module) -> bool:
    """True where no gradient, tracer, mode or hook (those on modules `within` too) would miss the skipped steps."""
    if followed(x):
        return False
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and not conv.weight.is_inference()
        and _foldable(x, conv, bn, *within)
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _foldable(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, *within: nn.Module) -> bool:
    """Whether the normalisation may go into the convolution's weight, on any device."""
    weight = conv.weight
    return (
        type(conv) is nn.Conv2d
        and type(bn) is nn.BatchNorm2d
        and not bn.training
        and bn.running_mean is not None
        and type(weight) is nn.Parameter
        and weight.dtype == x.dtype
        and weight.device == x.device
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and x.numel() > 0
        and not _watched(conv, bn, *within)
    )


def followed(x: Tensor) -> bool:
    """Whether gradients or a tracer follow what is done to `x`. Asked first: a tracer records other questions."""
    return (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or type(x) is not Tensor
        or bool(torch._C._get_tracing_state())
    )


def _watched(*modules: nn.Module) -> bool:
    """Whether a hook or a dispatch mode wants to see the steps."""
    return bool(
        any(m._forward_hooks or m._forward_pre_hooks for m in modules)
        or nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )


def _pack(conv: nn.Conv2d, bn: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """(weight packed for inputs of `x`'s shape, bias). What comes out depends on nothing that was called before."""
    sources = (conv.weight, *bn.parameters(), *bn.buffers())
    stamp = (x.dtype, bn.eps, *((s.data_ptr(), s._version) for s in sources))
    packed = _packed.get(conv)
    if packed is None or not packed.fresh(stamp):
        packed = _packed[conv] = _fold(conv, bn, stamp)
    weight = packed.layouts.get(x.shape)
    if weight is None:
        weight = _reorder(conv, packed, x.shape)
        for shape in list(packed.layouts)[: 1 - _LAYOUTS]:
            packed.layouts.pop(shape, None)
        packed.layouts[x.shape] = weight
    return weight, packed.bias


@torch.inference_mode(False)
@torch.no_grad()
def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d, stamp: tuple[object, ...]) -> _Packed:
    mean, var = bn.running_mean, bn.running_var
    assert mean is not None
    assert var is not None
    weight = conv.weight.detach()
    scale, shift = cudnn.affine(bn)
    native = weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    flat, places = weight.as_strided((weight.untyped_storage().nbytes() // weight.itemsize,), (1,), 0), _places(weight)
    views = (mean, var, *(p.detach() for p in bn.parameters()))
    bias = shift.to(weight.dtype if native else torch.float32)
    return _Packed(
        {},
        scale.float().reshape(-1, 1, 1, 1),
        bias,
        stamp,
        tuple((v, v.clone()) for v in views),
        (flat, places, flat.index_select(0, places)),
    )


def _places(weight: Tensor) -> Tensor:
    """Where in memory to look: in every output channel, in every input channel and at every place of the kernel, so
    that whoever prunes one by hand is noticed.
    """
    sizes = (*weight.shape[:2], weight[0, 0].numel())
    step = torch.arange(max(_PROBES, *sizes))
    rows, columns, kernel = (step % size for size in sizes)
    place = torch.stack((rows, columns, kernel // weight.shape[3], kernel % weight.shape[3]), 1)
    return int(weight.storage_offset()) + (place * torch.tensor(weight.stride())).sum(1)


@torch.inference_mode(False)
@torch.no_grad()
def _reorder(conv: nn.Conv2d, packed: _Packed, shape: torch.Size) -> Tensor:
    folded = (conv.weight.detach().float() * packed.scale).to(packed.bias.dtype)
    return torch._C._nn.mkldnn_reorder_conv2d_weight(
        folded.to_mkldnn(), _ints(conv.padding), _ints(conv.stride), _ints(conv.dilation), conv.groups, list(shape)
    )


def in_format_of(x: Tensor, image: Tensor) -> Tensor:
    """`x` contiguous where `image` is: fused kernels answer channels-last, and callers may `view` their answers."""
    if followed(x) or x.device.type != "cpu":
        return x
    return x.contiguous() if x.ndim == 4 and image.is_contiguous() else x
