"""Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929)."""

from vertebra.models.vit.config import VARIANTS, VitConfig
from vertebra.models.vit.model import VisionTransformer
from vertebra.models.vit.weights import WEIGHTS, adapt
from vertebra.spec import Family

_RENAMED = {
    "vit_tiny_patch16_224_in21k": "vit_tiny_patch16_224.augreg_in21k",
    "vit_small_patch16_224_in21k": "vit_small_patch16_224.augreg_in21k",
    "vit_small_patch16_224_dino": "vit_small_patch16_224.dino",
    "vit_base_patch16_224_in21k": "vit_base_patch16_224.augreg_in21k",
    "vit_base_patch16_224_dino": "vit_base_patch16_224.dino",
    "vit_base_patch16_224_sam": "vit_base_patch16_224.sam_in1k",
}

FAMILY = Family(name="vit", build=VisionTransformer, variants=VARIANTS, weights=WEIGHTS, adapt=adapt, renamed=_RENAMED)

__all__ = ["FAMILY", "VisionTransformer", "VitConfig"]
