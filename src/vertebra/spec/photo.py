"""Which of a folder's files are photos."""

import re

PHOTO = re.compile(r"\.(jpe?g?|jfif|png|webp|gif|bmp|tiff?|avif|jp2|j2k|p[pgbn]m|ico|qoi|dds|sgi)$", re.IGNORECASE)
"""By the ends of their names; a file that somebody names by itself may be called anything."""
