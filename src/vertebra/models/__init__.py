"""One family a file; `FAMILIES` is all that there is."""

from vertebra.models import deit, dla, vit

FAMILIES = (dla.FAMILY, deit.FAMILY, vit.FAMILY)
