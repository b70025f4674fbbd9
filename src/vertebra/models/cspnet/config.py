"""What a cross-stage network can vary in, and one row a variant. A tuple holds one entry a stage."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from vertebra.spec import Layer, ModelConfig, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class CspNetConfig(ModelConfig):
    """The defaults are CSPDarkNet-53."""

    stem_channels: tuple[int, ...] = (32,)
    """Outputs of the stem's convolutions. Only the first has the stem's kernel and stride, the others 3 and 1."""
    stem_kernel: int = 3
    stem_stride: int = 1
    stem_pool: bool = False
    """The first stage halves the map by max pooling, not by a convolution."""
    stage: Literal["dark", "cross", "cross3"] = "cross"
    """`dark`: residual blocks only. `cross`: half of the channels goes around them. `cross3`: with one transition."""
    depths: tuple[int, ...] = (1, 2, 8, 8, 4)
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    down_grows: bool = True
    """A stage's strided convolution puts out the stage's channels; False: as many as go in."""
    down_average: bool = False
    """Average pooling halves the map, then the convolution runs at stride 1."""
    path_ratio: tuple[float, ...] = (1.0, 0.5, 0.5, 0.5, 0.5)
    """Channels of each of the two paths, as a share of the stage's."""
    path_linear: bool = False
    """No activation where the two paths part."""
    block: Literal["dark", "bottleneck", "edge"] = "dark"
    mid_ratio: tuple[float, ...] = (0.5, 1.0, 1.0, 1.0, 1.0)
    """Channels inside a block, as a share of its own."""
    groups: tuple[int, ...] = (1, 1, 1, 1, 1)
    """Of the 3x3 convolutions."""
    se_ratio: float = 0.0
    """Squeeze-and-excitation inside each block: hidden channels as a share of its channels. 0: none."""
    act_layer: Layer = "leaky_relu"
    norm_layer: Layer = "batchnorm2d"
    """Called with a number of channels."""
    output_stride: int = 32
    """8 or 16: the last stages trade their stride for dilation."""

    first_conv: ClassVar[str] = "stem.conv1.conv"
    classifier: ClassVar[str] = "head.fc"
    default_out_indices: ClassVar[tuple[int, ...]] = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class SixMapsConfig(CspNetConfig):
    """A variant with five stages that shows all of them (and the stem) when none are named; sedarknet21 shows five."""

    default_out_indices: ClassVar[tuple[int, ...]] = (0, 1, 2, 3, 4, 5)


_RESNET50 = CspNetConfig(
    stem_channels=(64,),
    stem_kernel=7,
    stem_stride=2,
    stem_pool=True,
    depths=(3, 3, 5, 2),
    channels=(128, 256, 512, 1024),
    down_grows=False,
    path_ratio=(1.0,) * 4,
    path_linear=True,
    block="bottleneck",
    mid_ratio=(0.5,) * 4,
    groups=(1,) * 4,
)
_RESNET50_WIDE = replace(_RESNET50, channels=(256, 512, 1024, 2048), path_ratio=(0.5,) * 4)
_DARK53 = SixMapsConfig(stage="dark", mid_ratio=(0.5,) * 5)
_CS3 = CspNetConfig(
    stem_channels=(32, 64),
    stem_stride=2,
    stage="cross3",
    depths=(3, 6, 9, 3),
    channels=(128, 256, 512, 1024),
    down_grows=False,
    path_ratio=(0.5,) * 4,
    mid_ratio=(1.0,) * 4,
    groups=(1,) * 4,
    act_layer="silu",
)
_CS3_S = replace(_CS3, stem_channels=(16, 32), depths=(1, 3, 4, 1), channels=(64, 128, 256, 512))
_CS3_M = replace(_CS3, stem_channels=(24, 48), depths=(2, 4, 6, 2), channels=(96, 192, 384, 768))
_CS3_X = replace(_CS3, stem_channels=(40, 80), depths=(3, 7, 11, 3), channels=(160, 320, 640, 1280))
_EDGE_X = replace(_CS3_X, block="edge", mid_ratio=(1.5,) * 4)
_XDW = replace(
    _CS3,
    stage="cross",
    depths=(3, 6, 12, 4),
    channels=(256, 512, 1024, 2048),
    block="bottleneck",
    mid_ratio=(0.5,) * 4,
    groups=(1, 1, 256, 512),
    se_ratio=1 / 16,
)


def _focus(config: CspNetConfig) -> CspNetConfig:
    """The stem as one 6x6 convolution, which is what a 3x3 over 2x2 pixels folded into channels (Focus) amounts to."""
    return replace(config, stem_channels=config.stem_channels[-1:], stem_kernel=6)


VARIANTS = {
    "cspresnet50": Variant(_RESNET50, params=21_616_168, gmacs=4.54, macts=11.5),
    "cspresnet50d": Variant(
        replace(_RESNET50, stem_channels=(32, 32, 64), stem_kernel=3), params=21_635_400, gmacs=4.86, macts=12.55
    ),
    "cspresnet50w": Variant(
        replace(_RESNET50_WIDE, stem_channels=(32, 32, 64), stem_kernel=3, mid_ratio=(0.25,) * 4),
        params=28_118_216,
        gmacs=5.04,
        macts=12.19,
    ),
    "cspresnext50": Variant(
        replace(_RESNET50_WIDE, mid_ratio=(1.0,) * 4, groups=(32,) * 4), params=20_569_896, gmacs=4.05, macts=15.86
    ),
    "cspdarknet53": Variant(SixMapsConfig(), params=27_642_184, gmacs=6.57, macts=16.81),
    "darknet17": Variant(replace(_DARK53, depths=(1, 1, 1, 1, 1)), params=14_304_840, gmacs=3.26, macts=7.18),
    "darknet21": Variant(replace(_DARK53, depths=(1, 1, 1, 2, 2)), params=20_863_048, gmacs=3.93, macts=7.47),
    "sedarknet21": Variant(
        CspNetConfig(stage="dark", mid_ratio=(0.5,) * 5, depths=(1, 1, 1, 2, 2), se_ratio=1 / 16),
        params=20_950_432,
        gmacs=3.93,
        macts=7.47,
    ),
    "darknet53": Variant(_DARK53, params=41_609_928, gmacs=9.31, macts=12.39),
    "darknetaa53": Variant(replace(_DARK53, down_average=True), params=36_022_984, gmacs=7.97, macts=12.39),
    "cs3darknet_s": Variant(_CS3_S, params=3_276_344, gmacs=0.72, macts=2.97),
    "cs3darknet_m": Variant(_CS3_M, params=9_310_240, gmacs=2.08, macts=5.28),
    "cs3darknet_l": Variant(_CS3, params=21_164_168, gmacs=4.86, macts=8.55),
    "cs3darknet_x": Variant(_CS3_X, params=35_046_320, gmacs=8.38, macts=11.35),
    "cs3darknet_focus_s": Variant(_focus(_CS3_S), params=3_274_728, gmacs=0.69, macts=2.7),
    "cs3darknet_focus_m": Variant(_focus(_CS3_M), params=9_304_360, gmacs=1.98, macts=4.89),
    "cs3darknet_focus_l": Variant(_focus(_CS3), params=21_151_720, gmacs=4.66, macts=8.03),
    "cs3darknet_focus_x": Variant(_focus(_CS3_X), params=35_025_000, gmacs=8.03, macts=10.69),
    "cs3sedarknet_l": Variant(replace(_CS3, se_ratio=1 / 4), params=21_913_592, gmacs=4.86, macts=8.56),
    "cs3sedarknet_x": Variant(replace(_CS3_X, se_ratio=1 / 16), params=35_397_904, gmacs=8.38, macts=11.35),
    "cs3sedarknet_xdw": Variant(_XDW, params=21_601_488, gmacs=5.97, macts=17.18),
    "cs3edgenet_x": Variant(_EDGE_X, params=47_821_120, gmacs=11.53, macts=12.92),
    "cs3se_edgenet_x": Variant(replace(_EDGE_X, se_ratio=1 / 4), params=50_721_584, gmacs=11.53, macts=12.94),
}
