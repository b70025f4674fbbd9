"""What a model costs: parameters, multiply-accumulates and activations of one image, without computing any of it.

The model runs on `meta`, where tensors have shapes and no values, below a mode that sees every operator.

b batch, n m tokens of queries and keys, h heads, d channels.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vertebra.hub.registry import REGISTRY
from vertebra.layers.squeeze_excite import SqueezeExcite
from vertebra.models.backbone import Backbone
from vertebra.models.vit import VisionTransformer
from vertebra.runtime.private import TorchDispatchMode

Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """Exact counts for one image of `input_size` (channels, height, width)."""

    params: int
    macs: int
    """As tables of published models count: `products`, and of what lies between them 2 for every element that a
    BatchNorm puts out, 5 for LayerNorm and GroupNorm, 1 for average pooling, input plus output of a global mean, and
    the biases of convolutions. Biases of linear layers, activation functions, softmax, maximum pooling and residual
    sums count nothing."""
    products: int
    """Multiply-accumulates of convolutions, linear layers and attention's two products; nothing else."""
    activations: int
    """Elements that those convolutions, linear layers and attention products put out."""
    input_size: Size


def measure(model: Backbone | str, input_size: Size | None = None) -> Cost:
    """The cost of a model or of an architecture by name (`dla60`; a tag is ignored), in eval mode.

    `input_size` is (channels, height, width) in pixels; None: the size that the model is made for. The model's own
    tensors are neither read nor changed. Raises `UnknownNameError`.
    """
    built = _build(model) if isinstance(model, str) else model
    size = input_size or default_size(built)
    ghost = _on_meta(built).eval()
    with _Counter() as counter, torch.no_grad():
        for module in ghost.modules():
            if isinstance(module, SqueezeExcite):
                # The published figures count the head's pooling but no gate's: what the mean will add goes off again.
                module.register_forward_pre_hook(lambda _, args: counter.uncount_mean(args[0]))
        ghost(torch.empty(1, *size, device="meta"))
    params = sum(p.numel() for p in built.parameters())
    return Cost(params, counter.products + counter.others, counter.products, counter.activations, size)


def default_size(model: Backbone) -> Size:
    """(channels, height, width) that a model is made for: its patch grid's, its checkpoint's, or 224 px."""
    if isinstance(model, VisionTransformer):
        height, width = model.patch_embed.img_size
        return (model.in_chans, height, width)
    _, height, width = model.pretrained_cfg.get("input_size", (3, 224, 224))
    return (model.in_chans, height, width)


def build_on_meta(arch: str) -> Backbone:
    """A registered architecture without weights, to look at its shape."""
    with torch.device("meta"):
        return REGISTRY.family(arch).build(REGISTRY.variant(arch).config)


def _build(arch: str) -> Backbone:
    model = build_on_meta(arch)
    default = REGISTRY.default_weights(arch)
    if default:
        model.pretrained_cfg = {"input_size": default[1].preprocess.input_size}
    return model


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy whose tensors have no storage: deepcopy finds them in its memo and never copies the originals."""
    ghosts: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()
    } | {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, ghosts)


class _Counter(TorchDispatchMode):
    """Sums what passes below autograd: each operator once, composite ones as their parts."""

    def uncount_mean(self, x: Tensor) -> None:
        """Take off what the mean of each of `x`'s channels adds."""
        self.others -= x.numel() + x.shape[0] * x.shape[1]

    def __init__(self) -> None:
        super().__init__()
        self.products = self.others = self.activations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name: str = func._overloadpacket.__name__
        first = out[0] if isinstance(out, (tuple, list)) else out
        if name in _PRODUCTS:
            products, activations = _PRODUCTS[name](args, first)
            self.products += products
            self.activations += activations
        elif name.startswith("_scaled_dot_product"):
            products, activations = _attention(args, first)
            self.products += products
            self.activations += activations
        if name in _OTHERS:
            self.others += _OTHERS[name](args, first)
        return out


def _convolution(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    transposed = args[6]
    assert not transposed, "no backbone upsamples"
    return out.numel() * args[1][0].numel(), out.numel()


def _product(left: int) -> Callable[[tuple[Any, ...], Tensor], tuple[int, int]]:
    """For a matrix product whose left factor is argument number `left`."""
    return lambda args, out: (out.numel() * args[left].shape[-1], out.numel())


def _attention(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    """A fused kernel's two products by their shapes: queries (b, h, n, d), keys (b, h, m, d), values (b, h, m, d)."""
    query, key, value = args[:3]
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return scores * (query.shape[-1] + value.shape[-1]), scores + out.numel()


def _conv_bias(args: tuple[Any, ...], out: Tensor) -> int:
    return 0 if args[2] is None else out.numel()


def _outputs(cost: int) -> Callable[[tuple[Any, ...], Tensor], int]:
    return lambda _, out: cost * out.numel()


_PRODUCTS: dict[str, Callable[[tuple[Any, ...], Tensor], tuple[int, int]]] = {
    "convolution": _convolution,
    "mm": _product(0),
    "bmm": _product(0),
    "addmm": _product(1),
    "baddbmm": _product(1),
}
_OTHERS: dict[str, Callable[[tuple[Any, ...], Tensor], int]] = {
    "convolution": _conv_bias,
    "native_batch_norm": _outputs(2),
    "_native_batch_norm_legit_no_training": _outputs(2),
    "native_layer_norm": _outputs(5),
    "native_group_norm": _outputs(5),
    "avg_pool2d": _outputs(1),
    "_adaptive_avg_pool2d": lambda args, out: args[0].numel() + out.numel(),
    "mean": lambda args, out: args[0].numel() + out.numel(),
}
