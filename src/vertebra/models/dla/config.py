"""Deep Layer Aggregation (Yu et al., CVPR 2018, arXiv:1707.06484): what can vary, and one row a variant."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from vertebra.spec import ModelConfig, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class DlaConfig(ModelConfig):
    """The defaults are DLA-60."""

    depths: tuple[int, ...] = (1, 2, 3, 1)
    """Depth of the trees of levels 2 to 5. Levels 0 and 1 are one convolution each."""
    channels: tuple[int, ...] = (16, 32, 128, 256, 512, 1024)
    block: Literal["basic", "bottleneck", "res2"] = "bottleneck"
    groups: int = 1
    group_width: int = 64
    """Channels of a group in a bottleneck, for every 64 that the block puts out, before halving."""
    residual_root: bool = False
    """Add the last block's output to the root's."""
    output_stride: int = 32
    """8 or 16: the last levels trade their stride for dilation."""

    first_conv: ClassVar[str] = "base_layer.0"
    classifier: ClassVar[str] = "fc"
    default_out_indices: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5)


_DLA34 = DlaConfig(block="basic", depths=(1, 2, 2, 1), channels=(16, 32, 64, 128, 256, 512))
_COMPACT = DlaConfig(channels=(16, 32, 64, 64, 128, 256))
_DLA60 = DlaConfig()
_DLA102 = DlaConfig(depths=(1, 3, 4, 1), residual_root=True)

VARIANTS = {
    "dla34": Variant(_DLA34, params=15_742_104, gmacs=3.07, macts=5.02),
    "dla46_c": Variant(replace(_COMPACT, depths=(1, 2, 2, 1)), params=1_301_400, gmacs=0.58, macts=4.5),
    "dla46x_c": Variant(
        replace(_COMPACT, depths=(1, 2, 2, 1), groups=32, group_width=4), params=1_068_440, gmacs=0.54, macts=5.66
    ),
    "dla60": Variant(_DLA60, params=22_036_632, gmacs=4.26, macts=10.16),
    "dla60_res2net": Variant(replace(_DLA60, block="res2", group_width=28), params=20_848_072, gmacs=4.15, macts=12.34),
    "dla60_res2next": Variant(
        replace(_DLA60, block="res2", groups=8, group_width=4), params=17_032_984, gmacs=3.49, macts=13.17
    ),
    "dla60x": Variant(replace(_DLA60, groups=32, group_width=4), params=17_352_344, gmacs=3.54, macts=13.8),
    "dla60x_c": Variant(replace(_COMPACT, groups=32, group_width=4), params=1_319_832, gmacs=0.59, macts=6.01),
    "dla102": Variant(_DLA102, params=33_268_888, gmacs=7.19, macts=14.18),
    "dla102x": Variant(replace(_DLA102, groups=32, group_width=4), params=26_309_272, gmacs=5.89, macts=19.42),
    "dla102x2": Variant(replace(_DLA102, groups=64, group_width=4), params=41_282_200, gmacs=9.34, macts=29.91),
    "dla169": Variant(replace(_DLA102, depths=(2, 3, 5, 1)), params=53_389_720, gmacs=11.6, macts=20.2),
}
