"""One family a file; `FAMILIES` is all that there is."""

from vertebra.models import cspnet, deit, dla, dpn, regnet, vit

FAMILIES = (dla.FAMILY, cspnet.FAMILY, dpn.FAMILY, regnet.FAMILY, vit.FAMILY, deit.FAMILY)
