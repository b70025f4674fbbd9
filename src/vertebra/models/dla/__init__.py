"""Deep Layer Aggregation (Yu et al., CVPR 2018, arXiv:1707.06484)."""

from vertebra.models.dla.config import VARIANTS, DlaConfig
from vertebra.models.dla.model import Dla
from vertebra.models.dla.weights import WEIGHTS
from vertebra.spec import Family

FAMILY = Family(
    name="dla",
    build=Dla,
    variants=VARIANTS,
    weights=WEIGHTS,
    unused={
        r"^level\d(\.tree\d)*\.project\.": "a tree of depth > 1 holds a projection that no forward pass reads",
    },
)

__all__ = ["FAMILY", "Dla", "DlaConfig"]
