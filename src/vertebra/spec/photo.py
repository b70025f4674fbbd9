"""Which of a folder's files are photos, and what systems leave in it."""

import re

PHOTO = re.compile(
    r"\.(jpe?g?|jfif|png|webp|gif|bmp|tiff?|avif|hei[cf]|hif|jp2|j2k|p[pgbn]m|ico|qoi|dds|sgi)$", re.IGNORECASE
)
"""By the ends of their names; a file that somebody names by itself may be called anything."""

_LITTER = re.compile(
    r"\..*|__MACOSX.*|@eaDir|@tmp|@Recycle|@Recently-Snapshot|#recycle|#snapshot|lost\+found|\$RECYCLE\.BIN"
    r"|System Volume Information|Network Trash Folder|Temporary Items|(eh)?thumbs\.db|desktop\.ini|Icon\r|__pycache__",
    re.IGNORECASE | re.DOTALL,
)


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or what Macs, Windows, Linux and network drives (Synology, QNAP) keep for
    themselves beside what they store: thumbnails, bins, indices. Whatever lies in it is no data.
    """
    return _LITTER.fullmatch(name) is not None
