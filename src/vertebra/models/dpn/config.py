"""Dual Path Networks (Chen et al., NIPS 2017, arXiv:1707.01629): what can vary, and one row a variant."""

from dataclasses import dataclass, replace
from typing import ClassVar

from vertebra.spec import Layer, ModelConfig, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class DpnConfig(ModelConfig):
    """The defaults are DPN-92. Widths double from stage to stage."""

    depths: tuple[int, ...] = (3, 4, 20, 3)
    """Blocks of conv2 to conv5."""
    growth: tuple[int, ...] = (16, 32, 24, 128)
    """Channels that each block of a stage appends to the dense path (the paper's "+k")."""
    residual_width: int = 256
    """Channels of the residual path in conv2."""
    mid_width: int = 96
    """Channels of the grouped 3x3 convolution in conv2."""
    groups: int = 32
    stem_width: int = 64
    stem_kernel: int = 7
    split_last: bool = False
    """Each path has a last 1x1 convolution of its own, instead of sharing one ("b" variants)."""
    act_layer: Layer = "relu"
    """The activation of the stem and behind the last stage."""
    output_stride: int = 32
    """8 or 16: the last stages trade their stride for dilation."""
    test_pool: bool = False
    """Classify every window of the training size's map, and answer with 0.5 * (mean + maximum) of their logits.
    In evaluation only, where images are larger than in training (the authors' "mean-max pooling")."""

    first_conv: ClassVar[str] = "features.conv1_1.conv"
    classifier: ClassVar[str] = "classifier"
    default_out_indices: ClassVar[tuple[int, ...]] = (0, 1, 2, 3, 4)


_SMALL = DpnConfig(
    depths=(3, 4, 12, 3), growth=(16, 32, 32, 64), residual_width=64, mid_width=128, stem_width=10, stem_kernel=3
)
_92 = DpnConfig()
_98 = DpnConfig(depths=(3, 6, 20, 3), growth=(16, 32, 32, 128), mid_width=160, groups=40, stem_width=96)

VARIANTS = {
    "dpn48b": Variant(
        replace(_SMALL, depths=(3, 4, 6, 3), split_last=True, act_layer="silu"),
        params=9_126_226,
        gmacs=1.69,
        macts=8.92,
    ),
    "dpn68": Variant(_SMALL, params=12_611_602, gmacs=2.35, macts=10.47),
    "dpn68b": Variant(replace(_SMALL, split_last=True), params=12_611_602, gmacs=2.35, macts=10.47),
    "dpn92": Variant(_92, params=37_668_392, gmacs=6.54, macts=18.21),
    "dpn98": Variant(_98, params=61_570_728, gmacs=11.73, macts=25.2),
    "dpn107": Variant(
        replace(_98, depths=(4, 8, 20, 3), growth=(20, 64, 64, 128), mid_width=200, groups=50, stem_width=128),
        params=86_917_800,
        gmacs=18.38,
        macts=33.46,
    ),
    "dpn131": Variant(replace(_98, depths=(4, 8, 28, 3), stem_width=128), params=79_254_504, gmacs=16.09, macts=32.97),
}
