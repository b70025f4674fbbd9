"""CSPNet (Wang et al., 2019, arXiv:1911.11929) and DarkNet (Redmon and Farhadi, 2018, arXiv:1804.02767)."""

from vertebra.models.cspnet.config import VARIANTS, CspNetConfig
from vertebra.models.cspnet.model import CspNet
from vertebra.models.cspnet.weights import WEIGHTS
from vertebra.spec import Family

FAMILY = Family(name="cspnet", build=CspNet, variants=VARIANTS, weights=WEIGHTS)

__all__ = ["FAMILY", "VARIANTS", "WEIGHTS", "CspNet", "CspNetConfig"]
