"""DeiT: data-efficient image transformers, plain, distilled and III.

Touvron et al., ICML 2021 (arXiv:2012.12877): a ViT, and one with a second learned token that a teacher trains.
Touvron et al., ECCV 2022 (arXiv:2204.07118), "DeiT III": layer scale, no position for the class token.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vertebra.models.vit.config import VitConfig
from vertebra.models.vit.model import VisionTransformer
from vertebra.spec import Accuracy, Family, ModelConfig, Preprocess, State, Variant, VertebraError, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilledConfig(VitConfig):
    """A DeiT with a distillation token and its own head."""

    classifier: ClassVar[str | tuple[str, ...]] = ("head", "head_dist")
    limits: ClassVar[Mapping[str, str]] = MappingProxyType(
        {**VitConfig.limits, "global_pool": "its two heads read their own tokens: 'token' only"}
    )


class DistilledTransformer(VisionTransformer):
    """Two tokens, two heads. Their logits are averaged, but while distilled training is on: then both come back."""

    taught = ("dist_token",)

    def __init__(self, config: DistilledConfig) -> None:
        self.distilled_training = False
        super().__init__(config)

    def _set_pool(self, global_pool: str) -> None:
        if global_pool != "token":
            raise VertebraError(
                f"global_pool {global_pool!r} is not possible for a distilled DeiT: its heads read their own tokens"
                "; use 'token', or the plain DeiT"
            )
        super()._set_pool(global_pool)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Answer with `(class logits, distillation logits)` in training mode, for a loss on each."""
        self.distilled_training = enable

    def forward_head(self, x: Float[Tensor, "b n d"], pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if pre_logits:
            return (x[:, 0] + x[:, 1]) / 2
        own = self.head(self.head_drop(x[:, 0]))
        taught = self.head_dist(self.head_drop(x[:, 1]))
        if self.distilled_training and self.training:
            return own, taught
        return (own + taught) / 2

    def get_classifier(self) -> tuple[nn.Module, ...]:
        return self.head, self.head_dist

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.head_dist = self._new_head("head_dist")


def build(config: VitConfig) -> VisionTransformer:
    """The model of a config: distilled or plain."""
    return DistilledTransformer(config) if isinstance(config, DistilledConfig) else VisionTransformer(config)


def adapt(state: State, config: ModelConfig) -> State:
    """DeiT III's authors name layer scale `gamma_1`, `gamma_2`."""
    return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): value for key, value in state.items()}


_TINY = VitConfig(embed_dim=192, num_heads=3)
_SMALL = VitConfig(embed_dim=384, num_heads=6)
_BASE = VitConfig()
_DISTILLED = DistilledConfig()
_THREE = VitConfig(no_embed_class=True, init_values=1e-6)

VARIANTS = {
    "deit_tiny_patch16_224": Variant(_TINY, params=5_717_416, gmacs=1.26, macts=5.97),
    "deit_small_patch16_224": Variant(_SMALL, params=22_050_664, gmacs=4.61, macts=11.95),
    "deit_base_patch16_224": Variant(_BASE, params=86_567_656, gmacs=17.58, macts=23.9),
    "deit_base_patch16_384": Variant(replace(_BASE, img_size=384), params=86_859_496, gmacs=55.54, macts=101.56),
    "deit_tiny_distilled_patch16_224": Variant(
        replace(_DISTILLED, embed_dim=192, num_heads=3), params=5_910_800, gmacs=1.27, macts=6.01
    ),
    "deit_small_distilled_patch16_224": Variant(
        replace(_DISTILLED, embed_dim=384, num_heads=6), params=22_436_432, gmacs=4.63, macts=12.02
    ),
    "deit_base_distilled_patch16_224": Variant(_DISTILLED, params=87_338_192, gmacs=17.68, macts=24.05),
    "deit_base_distilled_patch16_384": Variant(
        replace(_DISTILLED, img_size=384), params=87_630_032, gmacs=55.65, macts=101.82
    ),
    "deit3_small_patch16_224": Variant(
        replace(_THREE, embed_dim=384, num_heads=6), params=22_059_496, gmacs=4.61, macts=11.95
    ),
    "deit3_small_patch16_384": Variant(
        replace(_THREE, embed_dim=384, num_heads=6, img_size=384), params=22_205_416, gmacs=15.52, macts=50.78
    ),
    "deit3_medium_patch16_224": Variant(
        replace(_THREE, embed_dim=512, num_heads=8), params=38_849_512, gmacs=8.0, macts=15.93
    ),
    "deit3_base_patch16_224": Variant(_THREE, params=86_585_320, gmacs=17.58, macts=23.9),
    "deit3_base_patch16_384": Variant(replace(_THREE, img_size=384), params=86_877_160, gmacs=55.54, macts=101.56),
    "deit3_large_patch16_224": Variant(
        replace(_THREE, embed_dim=1024, num_heads=16, depth=24), params=304_374_760, gmacs=61.6, macts=63.52
    ),
    "deit3_large_patch16_384": Variant(
        replace(_THREE, embed_dim=1024, num_heads=16, depth=24, img_size=384),
        params=304_763_880,
        gmacs=191.21,
        macts=270.24,
    ),
    "deit3_huge_patch14_224": Variant(
        replace(_THREE, embed_dim=1280, num_heads=16, depth=32, patch_size=14),
        params=632_126_440,
        gmacs=167.4,
        macts=139.41,
    ),
}


def _row(name: str, file: str, crop_pct: float, top1: float, top5: float) -> tuple[str, Weights]:
    size, three = int(name.partition(".")[0][-3:]), name.startswith("deit3")
    return name, Weights(
        hub=f"timm/{name}",
        url=f"https://dl.fbaipublicfiles.com/deit/{file}",
        license="apache-2.0",
        preprocess=Preprocess(input_size=(3, size, size), crop_pct=crop_pct, fixed_input_size=True),
        accuracy=(Accuracy(top1, top5, size),),
        paper="arXiv:2204.07118" if three else "arXiv:2012.12877",
        source="https://github.com/facebookresearch/deit",
    )


WEIGHTS = dict(
    [
        _row("deit_tiny_patch16_224.fb_in1k", "deit_tiny_patch16_224-a1311bcf.pth", 0.9, 72.19, 91.1),
        _row("deit_small_patch16_224.fb_in1k", "deit_small_patch16_224-cd65a155.pth", 0.9, 79.856, 95.056),
        _row("deit_base_patch16_224.fb_in1k", "deit_base_patch16_224-b5f2ef4d.pth", 0.9, 81.98, 95.74),
        _row("deit_base_patch16_384.fb_in1k", "deit_base_patch16_384-8de9b5d1.pth", 1.0, 83.108, 96.376),
        _row(
            "deit_tiny_distilled_patch16_224.fb_in1k",
            "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
            0.9,
            74.538,
            91.898,
        ),
        _row(
            "deit_small_distilled_patch16_224.fb_in1k",
            "deit_small_distilled_patch16_224-649709d9.pth",
            0.9,
            81.204,
            95.378,
        ),
        _row(
            "deit_base_distilled_patch16_224.fb_in1k",
            "deit_base_distilled_patch16_224-df68dfff.pth",
            0.9,
            83.384,
            96.492,
        ),
        _row(
            "deit_base_distilled_patch16_384.fb_in1k",
            "deit_base_distilled_patch16_384-d0272ac0.pth",
            1.0,
            85.438,
            97.332,
        ),
        _row("deit3_small_patch16_224.fb_in1k", "deit_3_small_224_1k.pth", 0.9, 81.382, 95.454),
        _row("deit3_small_patch16_224.fb_in22k_ft_in1k", "deit_3_small_224_21k.pth", 1.0, 83.082, 96.774),
        _row("deit3_small_patch16_384.fb_in1k", "deit_3_small_384_1k.pth", 1.0, 83.432, 96.674),
        _row("deit3_small_patch16_384.fb_in22k_ft_in1k", "deit_3_small_384_21k.pth", 1.0, 84.846, 97.486),
        _row("deit3_medium_patch16_224.fb_in1k", "deit_3_medium_224_1k.pth", 0.9, 83.09, 96.284),
        _row("deit3_medium_patch16_224.fb_in22k_ft_in1k", "deit_3_medium_224_21k.pth", 1.0, 84.55, 97.18),
        _row("deit3_base_patch16_224.fb_in1k", "deit_3_base_224_1k.pth", 0.9, 83.8, 96.584),
        _row("deit3_base_patch16_224.fb_in22k_ft_in1k", "deit_3_base_224_21k.pth", 1.0, 85.728, 97.746),
        _row("deit3_base_patch16_384.fb_in1k", "deit_3_base_384_1k.pth", 1.0, 85.088, 97.252),
        _row("deit3_base_patch16_384.fb_in22k_ft_in1k", "deit_3_base_384_21k.pth", 1.0, 86.742, 98.11),
        _row("deit3_large_patch16_224.fb_in1k", "deit_3_large_224_1k.pth", 0.9, 84.772, 97.048),
        _row("deit3_large_patch16_224.fb_in22k_ft_in1k", "deit_3_large_224_21k.pth", 1.0, 86.99, 98.246),
        _row("deit3_large_patch16_384.fb_in1k", "deit_3_large_384_1k.pth", 1.0, 85.82, 97.602),
        _row("deit3_large_patch16_384.fb_in22k_ft_in1k", "deit_3_large_384_21k.pth", 1.0, 87.736, 98.508),
        _row("deit3_huge_patch14_224.fb_in1k", "deit_3_huge_224_1k.pth", 0.9, 85.204, 97.364),
        _row("deit3_huge_patch14_224.fb_in22k_ft_in1k", "deit_3_huge_224_21k_v1.pth", 1.0, 87.18, 98.264),
    ]
)

_RENAMED = {f"{arch}_in21ft1k": f"{arch}.fb_in22k_ft_in1k" for arch in VARIANTS if arch.startswith("deit3")}

FAMILY = Family(name="deit", build=build, variants=VARIANTS, weights=WEIGHTS, adapt=adapt, renamed=_RENAMED)
