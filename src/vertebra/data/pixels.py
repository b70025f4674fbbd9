"""Decoded images as arrays, for those who read to train and to answer. No torchvision: importing it takes a second."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vertebra.data.decode import Reduced

_KERNELS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
RESIZABLE = tuple(_KERNELS)
"""Interpolations that `resize_pixels` knows."""


def pixels_of(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Those of an RGB image; writable."""
    return np.frombuffer(bytearray(image.tobytes()), np.uint8).reshape(image.height, image.width, 3)


class Pixels(NamedTuple):
    """A whole image in an array that may hold it at 1/2, 1/4 or 1/8 of its size, with padding beside it."""

    array: UInt8[np.ndarray, "h w 3"]
    height: int
    """Of the image, before it was reduced."""
    width: int
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the image in `array`, in its pixels."""

    def part(self, top: float, left: float, height: float, width: float) -> tuple[float, float, float, float]:
        """The box in `array` of a part of the image, given in the image's own pixels."""
        across = (self.box[2] - self.box[0]) / self.width
        along = (self.box[3] - self.box[1]) / self.height
        x, y = self.box[0] + left * across, self.box[1] + top * along
        return x, y, min(x + width * across, self.box[2]), min(y + height * along, self.box[3])


def whole(array: UInt8[np.ndarray, "h w 3"]) -> Pixels:
    """Of an image that was not reduced."""
    height, width = array.shape[:2]
    return Pixels(array, height, width, (0.0, 0.0, float(width), float(height)))


def reduced_pixels(reduced: Reduced) -> Pixels:
    return Pixels(pixels_of(reduced.image), reduced.height, reduced.width, reduced.box)


def resize_pixels(
    image: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
    interpolation: str,
    extent: tuple[float, float] | None = None,
) -> UInt8[Tensor, "3 H W"]:
    """To `size`, antialiased: within a level or two of Pillow's and three to five times as fast.

    `extent`: the height and width of `image` that become all of `size`, where its last pixels are padding in part.
    As a batch of one, laid out as channels-last: only so torch takes its fast kernel, which starts no threads. Its
    public face lays out what comes of a single image by channels, which costs as much again here and behind it.
    """
    batch = torch.from_numpy(np.ascontiguousarray(image)[None]).permute(0, 3, 1, 2)
    resized = torch.empty((1, 3, *size), dtype=torch.uint8, memory_format=torch.channels_last)
    scales = (None, None) if extent is None else (size[0] / extent[0], size[1] / extent[1])
    _KERNELS[interpolation](batch, size, False, *scales, out=resized)
    return resized[0]


def resize_box(
    image: UInt8[np.ndarray, "h w 3"],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    interpolation: str,
) -> UInt8[Tensor, "3 H W"]:
    """A part that begins anywhere, also between pixels, to `size`: by Pillow, which alone can."""
    resample = Image.Resampling[interpolation.upper()]
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]), resample, box=box)
    return torch.from_numpy(pixels_of(resized)).permute(2, 0, 1)
