"""What an encoder put beside a JPEG's picture to fill the last blocks, and colours that are stored coarser than it.

Both show only where a decoder makes the image smaller.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def mend_pixels(pixels: UInt8[np.ndarray, "h w 3"], height: int, width: int, reduction: int) -> None:
    """In place: pixels of a stored image of such sides that show padding in part, which may be anything, become as
    their neighbours. Of fewer rows than the whole has, the last shows none of it.
    """
    if width % reduction and width > reduction:
        pixels[:, -1] = pixels[:, -2]
    if height % reduction and height > reduction and len(pixels) * reduction >= height:
        pixels[-1] = pixels[-2]


def mend_image(image: Image.Image, height: int, width: int, reduction: int) -> None:
    """The same of a PIL image."""
    right, below = image.width - 1, image.height - 1
    if width % reduction and right:
        image.paste(image.crop((right - 1, 0, right, image.height)), (right, 0))
    if height % reduction and below:
        image.paste(image.crop((0, below - 1, image.width, below)), (0, below))


def coarse(samplings: Iterable[tuple[int, int]]) -> bool:
    """Whether colours are stored for four pixels at once, as in 4:1:1; of each component, its factors along a row and
    along a column. A decoder that reduces the image reduces them as much again, unlike those of 4:2:0: it has to leave
    twice as many pixels.
    """
    return any(max(factors) > 2 for factors in samplings)
