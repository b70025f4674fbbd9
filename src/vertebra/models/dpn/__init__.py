"""Dual Path Networks (Chen et al., NIPS 2017, arXiv:1707.01629)."""

from vertebra.models.dpn.config import VARIANTS, DpnConfig
from vertebra.models.dpn.model import Dpn
from vertebra.models.dpn.weights import WEIGHTS
from vertebra.spec import Family

FAMILY = Family(name="dpn", build=Dpn, variants=VARIANTS, weights=WEIGHTS)

__all__ = ["FAMILY", "Dpn", "DpnConfig"]
