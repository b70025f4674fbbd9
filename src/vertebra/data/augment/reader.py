"""From encoded bytes to an augmented uint8 tensor in one go: what is cropped away or scaled down is not computed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as kernels

from vertebra.data.decode import DEFAULT_MAX_PIXELS, DecodeError, decode, decode_reduced
from vertebra.data.draws import uniforms
from vertebra.data.jpeg import decode_stored, jpeg_content, jpeg_header, orientation
from vertebra.data.pixels import RESIZABLE, Pixels, pixels_of, reduced_pixels, resize_box, resize_pixels

_ATTEMPTS = 10
_FROM_TORCH = (v2.ColorJitter, v2.GaussianBlur, v2.RandomGrayscale, v2.TrivialAugmentWide)
"""Others of torchvision's draw from Python's generator, or run what they are given."""

Source = bytes | str | os.PathLike[str] | Image.Image
Part = tuple[UInt8[np.ndarray, "h w 3"], tuple[float, float, float, float] | None]
"""Pixels, and where in them the part lies; None: they are the part."""


class Step(Protocol):
    """Something done to an augmented image after its crop and flips: uint8 (3, h, w) in, the same out."""

    def __call__(self, image: Any, /) -> Any: ...


class TrainReader:
    """Random resized crop, flips, then `steps`; from bytes, a path or an RGB PIL image to uint8 (3, h, w).

    A JPEG twice as large as the crop needs is decoded at 1/2, 1/4 or 1/8; the part is drawn in the image as it is
    stored, and may then begin between two pixels. The resizing kernel is torch's, within a level or two of Pillow's and
    three times as fast; Pillow's own, where the image was reduced. A file that cannot be read raises `DecodeError`,
    naming it.
    Random numbers come from `generator`, or from torch's default one.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolations: tuple[InterpolationMode, ...] = (InterpolationMode.BICUBIC,),
        hflip: float = 0.5,
        vflip: float = 0.0,
        steps: Sequence[Step] = (),
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
        generator: torch.Generator | None = None,
    ) -> None:
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.interpolations = interpolations
        self.hflip = hflip
        self.vflip = vflip
        self.steps = tuple(steps)
        self.max_pixels = max_pixels
        self.generator = generator

    @property
    def draws_from_torch(self) -> bool:
        """Whether its random numbers are known to be of torch's default generator. Of what others wrote, a step or a
        class made from this one, nobody knows.
        """
        ours = type(self) is TrainReader and self.generator is None
        return ours and all(_draws_from_torch(step) for step in self.steps)

    def __call__(self, source: Source) -> UInt8[Tensor, "3 h w"]:
        return self.augment(self.crop(source))

    def crop(self, source: Source) -> UInt8[Tensor, "3 h w"]:
        """The random resized crop and the flips."""
        draws = uniforms(3 + 4, self.generator)
        part, box = self._part(source, draws)
        mode = self.interpolations[int(draws[2] * len(self.interpolations))]
        image = _resize(part, self.size, mode) if box is None else resize_box(part, box, self.size, mode.value)
        if draws[0] < self.hflip:
            image = image.flip(-1)
        if draws[1] < self.vflip:
            image = image.flip(-2)
        return image

    def augment(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
        """What follows them: the `steps`."""
        for step in self.steps:
            image = step(image)
        return image

    def _part(self, source: Source, draws: list[float]) -> Part:
        """The random part of the image, as it comes from the decoder."""
        if isinstance(source, Image.Image):
            top, left, rows, columns = self._box(source.height, source.width, draws)
            return pixels_of(source.crop((left, top, left + columns, top + rows))), None
        content = source if isinstance(source, bytes) else jpeg_content(Path(source))
        if content is None:
            return self._part(decode(source, max_pixels=self.max_pixels), draws)
        try:
            part = self._jpeg(content, draws)
            return self._part(decode(content, max_pixels=self.max_pixels), draws) if part is None else part
        except DecodeError:
            return self._part(decode(source, max_pixels=self.max_pixels), draws)  # fails again, and names the file

    def _jpeg(self, content: bytes, draws: list[float]) -> Part | None:
        """The random part of a JPEG; None of anything else, or that only `decode` can read."""
        header = jpeg_header(content)
        if header is None or (self.max_pixels is not None and header.height * header.width > self.max_pixels):
            return None
        way = orientation(content, header) if header.turnable else 1
        if way is None:
            return None
        height, width = (header.width, header.height) if way in (5, 6, 7, 8) else header[:2]
        top, left, rows, columns = self._box(height, width, draws)
        reduction = 1
        while reduction < 8 and min(rows / self.size[0], columns / self.size[1]) >= 2 * reduction:
            reduction *= 2
        last = math.ceil((top + rows) / reduction)
        array = decode_stored(content, header, reduction, last) if way == 1 else None
        if reduction == 1:
            array = pixels_of(decode(content, max_pixels=self.max_pixels)) if array is None else array
            return array[top : top + rows, left : left + columns], None
        if array is None:
            least = min(height, width) // reduction
            pixels = reduced_pixels(decode_reduced(content, max_pixels=self.max_pixels, at_least=least))
        else:
            pixels = Pixels(array, height, width, (0.0, 0.0, width / reduction, height / reduction))
        return _cut(pixels.array, pixels.part(top, left, rows, columns))

    def _box(self, height: int, width: int, draws: list[float]) -> tuple[int, int, int, int]:
        """(top, left, height, width): the first of ten that fits, as torchvision draws them, or else the middle."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_ATTEMPTS):
            a, b, c, d = uniforms(4, self.generator) if attempt else draws[3:]
            area = height * width * (self.scale[0] + a * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + b * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(c * (height - h + 1)), int(d * (width - w + 1)), h, w
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
        h, w = max(1, h), max(1, w)
        return (height - h) // 2, (width - w) // 2, h, w


def _draws_from_torch(step: Step) -> bool:
    if isinstance(step, v2.RandomApply):
        return all(_draws_from_torch(each) for each in step.transforms)
    return type(step) in _FROM_TORCH or type(step).__module__.split(".")[0] == "vertebra"


def _cut(array: UInt8[np.ndarray, "h w 3"], box: tuple[float, float, float, float]) -> Part:
    """The pixels that a box touches, and the box in them: as in a cropped image, no kernel sees what lies outside."""
    left, top = math.floor(box[0]), math.floor(box[1])
    cut = array[top : math.ceil(box[3]), left : math.ceil(box[2])]
    x, y = min(box[2] - left, cut.shape[1]), min(box[3] - top, cut.shape[0])
    return cut, (box[0] - left, box[1] - top, x, y)


def _resize(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], mode: InterpolationMode
) -> UInt8[Tensor, "3 H W"]:
    if mode.value in RESIZABLE:
        return resize_pixels(image, size, mode.value)
    # A copy: of the same size, it would be handed on as it is, and the next image is decoded into the same place.
    return kernels.resize_image(torch.from_numpy(image.copy()).permute(2, 0, 1), list(size), mode)
