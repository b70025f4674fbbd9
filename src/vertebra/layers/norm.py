"""Normalisations by name, class or partial. b batch, c channels, h w height and width in pixels."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from vertebra.spec import Layer, VertebraError, unknown_name

EPS = 1e-6
GROUPS = 32


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over a map's channels, pixel by pixel."""

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:  # noqa: A002
        x = layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def groups_of_16(channels: int) -> nn.Module:
    """GroupNorm with so many channels a group, instead of so many groups."""
    return nn.GroupNorm(channels // 16, channels)


MAP_NORMS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "batchnorm": nn.BatchNorm2d,
        "batchnorm2d": nn.BatchNorm2d,
        "groupnorm": partial(nn.GroupNorm, GROUPS),
        "groupnorm1": partial(nn.GroupNorm, 1),
        "groupnorm_by16": groups_of_16,
        "layernorm2d": LayerNorm2d,
    }
)
TOKEN_NORMS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {"layernorm": partial(nn.LayerNorm, eps=EPS), "rmsnorm": partial(nn.RMSNorm, eps=EPS)}
)


def norm_maker(layer: Layer, known: Mapping[str, Callable[[int], nn.Module]]) -> Callable[[int], nn.Module]:
    """What makes a normalisation of so many channels: of a name, or anything that does when it is called with them."""
    if isinstance(layer, str):
        if layer not in known:
            raise unknown_name("norm_layer", layer, known)
        return known[layer]
    if layer is nn.GroupNorm:
        return partial(nn.GroupNorm, GROUPS)

    def make(channels: int) -> nn.Module:
        made: Any = layer(channels)
        if not isinstance(made, nn.Module):
            raise VertebraError(f"norm_layer {layer!r} makes a {type(made).__name__}, no torch.nn.Module")
        return made

    return make
