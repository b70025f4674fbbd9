"""RegNet X, Y, V and Z (Radosavovic et al., CVPR 2020, arXiv:2003.13678; Dollar et al., 2021, arXiv:2103.06877)."""

from vertebra.models.regnet.config import VARIANTS, RegNetConfig
from vertebra.models.regnet.model import RegNet
from vertebra.models.regnet.weights import WEIGHTS, adapt
from vertebra.spec import Family

FAMILY = Family(
    name="regnet",
    build=RegNet,
    variants=VARIANTS,
    weights=WEIGHTS,
    adapt=adapt,
    renamed={"regnetz_040h": "regnetz_040_h.ra3_in1k"},
)

__all__ = ["FAMILY", "RegNet", "RegNetConfig"]
