"""One family a file; `FAMILIES` is all that there is."""

from vertebra.models import deit, dla

FAMILIES = (dla.FAMILY, deit.FAMILY)
