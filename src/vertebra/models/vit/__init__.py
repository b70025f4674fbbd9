"""Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929)."""

from vertebra.models.vit.config import VARIANTS, VitConfig
from vertebra.models.vit.model import VisionTransformer
from vertebra.models.vit.weights import WEIGHTS, adapt
from vertebra.spec import Family

FAMILY = Family(name="vit", build=VisionTransformer, variants=VARIANTS, weights=WEIGHTS, adapt=adapt)

__all__ = ["FAMILY", "VisionTransformer", "VitConfig"]
