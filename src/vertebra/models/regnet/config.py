"""What a RegNet can vary in, how its line becomes stages, and one row a variant.

Radosavovic et al., CVPR 2020 (arXiv:2003.13678): widths and depths on a line, quantised.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from vertebra.spec import Layer, ModelConfig, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class RegNetConfig(ModelConfig):
    """The defaults are RegNetX-200MF. Block j of the network would be w0 + wa * j wide (paper, eq. 2)."""

    depth: int = 13
    """Blocks in all."""
    w0: int = 24
    wa: float = 36.44
    wm: float = 2.49
    """Widths are rounded to w0 * wm**s with a whole s (eq. 3, 4), then to multiples of 8: equal ones form a stage."""
    group_size: int = 8
    """Channels of a group in the 3x3 convolution; a narrower stage is one group."""
    group_min_ratio: float = 0.0
    """The least that a width may keep where it is made divisible by its groups."""
    bottle_ratio: float = 1.0
    """Channels of the 3x3 convolution, for each that the block puts out (Z: 4)."""
    se_ratio: float = 0.0
    """Channels inside a squeeze, for each that enters the block; 0: no squeeze-and-excitation (X)."""
    stem_width: int = 32
    downsample: Literal["", "conv1x1", "avg"] = "conv1x1"
    """The way around a block that changes the map's shape; `avg` halves it by averaging, '' has none (Z)."""
    linear_out: bool = False
    """No activation behind a block's addition (Z)."""
    num_features: int = 0
    """Channels of a 1x1 convolution behind the last stage; 0: none."""
    act_layer: Layer = "relu"
    norm_layer: Layer = "batchnorm2d"
    """Called with a number of channels."""
    output_stride: int = 32
    """8 or 16: the last stages trade their stride for dilation."""

    preact: ClassVar[bool] = False
    first_conv: ClassVar[str] = "stem.conv"
    classifier: ClassVar[str] = "head.fc"
    default_out_indices: ClassVar[tuple[int, ...]] = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreactConfig(RegNetConfig):
    """Normalisation and activation stand before each convolution (V)."""

    preact: ClassVar[bool] = True
    first_conv: ClassVar[str] = "stem"


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What the line says of one stage."""

    width: int
    depth: int
    mid: int
    """Channels of the 3x3 convolution, and of each of its groups."""
    group_size: int


def _divisible(channels: int, group: int, least: float) -> int:
    if not least:
        return round(channels / group) * group
    near = int(channels + group / 2) // group * group
    return near + group if near < least * channels else near


def plan_stages(config: RegNetConfig) -> list[StagePlan]:
    """The stages of a config's line, in order (paper, section 3.3; widths are made divisible by the groups)."""
    depths = Counter[int]()
    for j in range(config.depth):
        exponent = round(math.log((config.w0 + config.wa * j) / config.w0) / math.log(config.wm))
        depths[round(config.w0 * config.wm**exponent / 8) * 8] += 1
    plans = list[StagePlan]()
    for width, depth in sorted(depths.items()):
        mid = int(width * config.bottle_ratio)
        group = min(config.group_size, mid)
        mid = _divisible(mid, group, config.group_min_ratio)
        plans.append(StagePlan(int(mid / config.bottle_ratio), depth, mid, group))
    return plans


def _variant(
    se_ratio: float,
    depth: int,
    w0: int,
    wa: float,
    wm: float,
    group_size: int,
    cost: tuple[int, float, float],
    **others: Any,
) -> Variant:
    """Columns of the paper's tables of models; `cost`: parameters, 10^9 MACs, 10^6 activations at its own size."""
    line = RegNetConfig(depth=depth, w0=w0, wa=wa, wm=wm, group_size=group_size, se_ratio=se_ratio)
    return Variant(replace(line, **others), *cost)


def _preact(like: Variant, downsample: Literal["conv1x1", "avg"], cost: tuple[int, float, float]) -> Variant:
    line = like.config
    assert isinstance(line, RegNetConfig)
    config = PreactConfig(
        depth=line.depth,
        w0=line.w0,
        wa=line.wa,
        wm=line.wm,
        group_size=line.group_size,
        se_ratio=line.se_ratio,
        downsample=downsample,
        act_layer="silu",
    )
    return Variant(config, *cost)


_TORCHVISIONS = {"group_min_ratio": 0.9}
_Z: dict[str, Any] = {"bottle_ratio": 4.0, "downsample": "", "linear_out": True, "act_layer": "silu"}

VARIANTS = {
    "regnetx_002": _variant(0.0, 13, 24, 36.44, 2.49, 8, (2_684_792, 0.2, 2.16)),
    "regnetx_004": _variant(0.0, 22, 24, 24.48, 2.54, 16, (5_157_512, 0.4, 3.14)),
    "regnetx_004_tv": _variant(0.0, 22, 24, 24.48, 2.54, 16, (5_495_976, 0.42, 3.17), **_TORCHVISIONS),
    "regnetx_006": _variant(0.0, 16, 48, 36.97, 2.24, 24, (6_196_040, 0.61, 3.98)),
    "regnetx_008": _variant(0.0, 16, 56, 35.73, 2.28, 16, (7_259_656, 0.81, 5.15)),
    "regnetx_016": _variant(0.0, 18, 80, 34.01, 2.25, 24, (9_190_136, 1.62, 7.93)),
    "regnetx_032": _variant(0.0, 25, 88, 26.31, 2.25, 48, (15_296_552, 3.2, 11.37)),
    "regnetx_040": _variant(0.0, 23, 96, 38.65, 2.43, 40, (22_118_248, 3.99, 12.2)),
    "regnetx_064": _variant(0.0, 17, 184, 60.83, 2.07, 56, (26_209_256, 6.49, 16.37)),
    "regnetx_080": _variant(0.0, 23, 80, 49.56, 2.88, 120, (39_572_648, 8.02, 14.06)),
    "regnetx_120": _variant(0.0, 19, 168, 73.36, 2.37, 112, (46_106_056, 12.13, 21.37)),
    "regnetx_160": _variant(0.0, 22, 216, 55.59, 2.1, 128, (54_278_536, 15.99, 25.52)),
    "regnetx_320": _variant(0.0, 23, 320, 69.86, 2.0, 168, (107_811_560, 31.81, 36.3)),
    "regnety_002": _variant(0.25, 13, 24, 36.44, 2.49, 8, (3_162_996, 0.2, 2.17)),
    "regnety_004": _variant(0.25, 16, 48, 27.89, 2.09, 8, (4_344_144, 0.41, 3.89)),
    "regnety_006": _variant(0.25, 15, 48, 32.54, 2.32, 16, (6_055_160, 0.61, 4.33)),
    "regnety_008": _variant(0.25, 14, 56, 38.84, 2.4, 16, (6_263_168, 0.81, 5.25)),
    "regnety_008_tv": _variant(0.25, 14, 56, 38.84, 2.4, 16, (6_432_512, 0.84, 5.42), **_TORCHVISIONS),
    "regnety_016": _variant(0.25, 27, 48, 20.71, 2.65, 24, (11_202_430, 1.63, 8.04)),
    "regnety_032": _variant(0.25, 21, 80, 42.63, 2.66, 24, (19_436_338, 3.2, 11.26)),
    "regnety_040": _variant(0.25, 22, 96, 31.41, 2.24, 64, (20_646_656, 4.0, 12.29)),
    "regnety_064": _variant(0.25, 25, 112, 33.22, 2.27, 72, (30_583_252, 6.39, 16.41)),
    "regnety_080": _variant(0.25, 17, 192, 76.82, 2.19, 56, (39_180_068, 8.0, 17.97)),
    "regnety_080_tv": _variant(0.25, 17, 192, 76.82, 2.19, 56, (39_381_472, 8.51, 19.73), **_TORCHVISIONS),
    "regnety_120": _variant(0.25, 19, 168, 73.36, 2.37, 112, (51_822_544, 12.14, 21.38)),
    "regnety_160": _variant(0.25, 18, 200, 106.23, 2.48, 112, (83_590_140, 15.96, 23.04)),
    "regnety_320": _variant(0.25, 20, 232, 115.89, 2.53, 232, (145_046_770, 32.34, 30.26)),
    "regnety_640": _variant(0.25, 20, 352, 147.48, 2.4, 328, (281_378_786, 188.47, 124.83)),
    "regnety_1280": _variant(0.25, 27, 456, 160.83, 2.52, 264, (644_812_894, 374.99, 210.2)),
    "regnety_2560": _variant(0.25, 27, 640, 230.83, 2.53, 373, (1_282_601_138, 747.83, 296.49)),
    "regnety_040_sgn": _variant(
        0.25,
        22,
        96,
        31.41,
        2.24,
        64,
        (20_646_656, 4.03, 12.29),
        act_layer="silu",
        norm_layer="groupnorm_by16",
    ),
    "regnetz_005": _variant(0.25, 21, 16, 10.7, 2.51, 4, (7_122_742, 0.52, 5.86), **_Z, num_features=1024),
    "regnetz_040": _variant(0.25, 28, 48, 14.5, 2.226, 8, (27_116_800, 4.06, 24.19), **_Z),
    "regnetz_040_h": _variant(0.25, 28, 48, 14.5, 2.226, 8, (28_938_880, 4.12, 24.29), **_Z, num_features=1536),
}
VARIANTS["regnetv_040"] = _preact(VARIANTS["regnety_040"], "conv1x1", (20_640_640, 4.0, 12.29))
VARIANTS["regnetv_064"] = _preact(VARIANTS["regnety_064"], "avg", (30_576_052, 6.39, 16.41))
