"""Deep layer aggregation as parts (Yu et al., CVPR 2018, arXiv:1707.06484): for DLA itself and for any backbone.

An aggregation node fuses maps of one size (eq. 2). Iterative deep aggregation (IDA, eq. 1) runs a chain of nodes from
the finest stage to the coarsest; hierarchical deep aggregation (HDA, eq. 3) runs them as a tree, so that every pair of
neighbours meets before the whole does. Coarser maps are brought up by transposed convolutions that start bilinear.

b batch, c channels, h w height and width in pixels.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vertebra.spec import VertebraError


class AggregationNode(nn.Module):
    """One 1x1 convolution over everything that ends here; `residual` adds the first input to its output."""

    def __init__(self, cin: int, cout: int, residual: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 1, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.residual = residual

    def forward(self, inputs: list[Tensor]) -> Float[Tensor, "b c h w"]:
        x = self.bn(self.conv(torch.cat(inputs, 1)))
        return torch.relu_(x + inputs[0] if self.residual else x)


class BilinearUp(nn.Module):
    """A map `factor` times larger: a depthwise transposed convolution that starts as bilinear interpolation."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.ConvTranspose2d(
            channels, channels, 2 * factor - factor % 2, factor, padding=factor // 2, groups=channels, bias=False
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to bilinear."""
        reach = torch.arange(2 * self.factor - self.factor % 2, dtype=torch.float32)
        line = 1 - (reach / self.factor - (2 * self.factor - 1 - self.factor % 2) / (2 * self.factor)).abs()
        with torch.no_grad():
            self.conv.weight.copy_((line[:, None] * line[None, :]).expand_as(self.conv.weight))

    def forward(self, x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c ho wo"]:
        """`size` is what must come out, (height, width): odd sizes and patch grids are no multiple of each other."""
        x = self.conv(x)
        if x.shape[-2:] != size:
            x = interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x


class Aggregation(nn.Module):
    """Maps of several stages -> one (b, c, h, w) map at `out_stride`.

    `channels` and `reductions` describe the maps, finest first, as a backbone's `feature_info` does.
    """

    def __init__(self, channels: Sequence[int], reductions: Sequence[int], out_stride: int, width: int) -> None:
        super().__init__()
        if not channels or list(reductions) != sorted(reductions):
            raise VertebraError(f"stages must be given finest first; their reductions are {list(reductions)}")
        self.reductions = tuple(reductions)
        self.out_stride = out_stride
        self.project = nn.ModuleList(AggregationNode(c, width) for c in channels)
        self.nodes = nn.ModuleDict()
        self.ups = nn.ModuleDict()
        self.width = width
        self.grow(0, len(channels))
        if out_stride < reductions[0]:
            self.ups["out"] = BilinearUp(width, self._factor(reductions[0], out_stride))

    def grow(self, low: int, high: int) -> None:
        """Make the nodes that fuse stages `low` to `high` - 1."""
        raise AssertionError("a kind of aggregation grows its nodes")

    def fuse(self, maps: list[Tensor], low: int, high: int) -> Tensor:
        """Stages `low` to `high` - 1, fused at stage `low`'s size."""
        raise AssertionError("a kind of aggregation fuses its maps")

    @staticmethod
    def _factor(coarse: int, fine: int) -> int:
        return math.ceil(coarse / fine)

    def _join(self, low: int, middle: int, high: int) -> None:
        """The node of stages `low`..`middle` and `middle`..`high`, and the up-sampling of the coarser half."""
        self.nodes[f"{low}_{high}"] = AggregationNode(2 * self.width, self.width)
        factor = self._factor(self.reductions[middle], self.reductions[low])
        if factor > 1:
            self.ups[f"{low}_{high}"] = BilinearUp(self.width, factor)

    def _meet(self, fine: Tensor, coarse: Tensor, low: int, high: int) -> Tensor:
        key = f"{low}_{high}"
        if key in self.ups:
            coarse = self.ups[key](coarse, fine.shape[-2:])
        return self.nodes[key]([fine, coarse])

    def forward(self, maps: Sequence[Tensor], image: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """`maps` as declared, `image` the input's (height, width) in pixels."""
        fused = self.fuse([node([x]) for node, x in zip(self.project, maps, strict=True)], 0, len(maps))
        if "out" not in self.ups:
            return fused
        return self.ups["out"](fused, (-(-image[0] // self.out_stride), -(-image[1] // self.out_stride)))


class IterativeAggregation(Aggregation):
    """IDA: the finest map is fused with the next coarser, the result with the next, to the last."""

    def grow(self, low: int, high: int) -> None:
        for last in range(low + 1, high):
            self._join(low, last, last + 1)

    def fuse(self, maps: list[Tensor], low: int, high: int) -> Tensor:
        fused = maps[low]
        for last in range(low + 1, high):
            fused = self._meet(fused, maps[last], low, last + 1)
        return fused


class HierarchicalAggregation(Aggregation):
    """HDA: a binary tree over the stages; each node fuses the finer half with the coarser, brought up to its size."""

    def grow(self, low: int, high: int) -> None:
        if high - low < 2:
            return
        middle = (low + high) // 2
        self.grow(low, middle)
        self.grow(middle, high)
        self._join(low, middle, high)

    def fuse(self, maps: list[Tensor], low: int, high: int) -> Tensor:
        if high - low < 2:
            return maps[low]
        middle = (low + high) // 2
        return self._meet(self.fuse(maps, low, middle), self.fuse(maps, middle, high), low, high)


AGGREGATIONS: dict[str, Callable[..., Aggregation]] = {
    "ida": IterativeAggregation,
    "hda": HierarchicalAggregation,
}
