"""From encoded bytes to an augmented uint8 tensor in one go: what is cropped away or scaled down is not computed."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as kernels

from vertebra.data.augment.ops import as_tensor
from vertebra.data.decode import DEFAULT_MAX_PIXELS, DecodeError, decode
from vertebra.data.draws import uniforms

_ATTEMPTS = 10
_PLAIN = frozenset((0xC0, 0xC1, 0xC2))
"""Start-of-frame markers of Huffman-coded JPEGs: baseline, extended, progressive."""

Source = bytes | str | os.PathLike[str] | Image.Image


class Step(Protocol):
    """Something done to an augmented image after its crop and flips: uint8 (3, h, w) in, the same out."""

    def __call__(self, image: Any, /) -> Any: ...


class TrainReader:
    """Random resized crop, flips, then `steps`; from bytes, a path or an RGB PIL image to uint8 (3, h, w).

    A JPEG twice as large as the crop needs is decoded at 1/2, 1/4 or 1/8. The resizing kernel is torch's, within a
    level or two of Pillow's and three times as fast. A file that cannot be read raises `DecodeError`, naming it.
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

    def __call__(self, source: Source) -> UInt8[Tensor, "3 h w"]:
        draws = uniforms(3 + 4 * _ATTEMPTS, self.generator)
        part = self._crop(source, draws)
        mode = self.interpolations[int(draws[2] * len(self.interpolations))]
        image = _resize(part, self.size, mode)
        if draws[0] < self.hflip:
            image = image.flip(-1)
        if draws[1] < self.vflip:
            image = image.flip(-2)
        for step in self.steps:
            image = step(image)
        return image

    def _crop(self, source: Source, draws: list[float]) -> Tensor:
        """The random part of the image, as it comes from the decoder."""
        if isinstance(source, Image.Image):
            box = self._box(source.height, source.width, draws)
            return as_tensor(source.crop((box[1], box[0], box[1] + box[3], box[0] + box[2])))
        content = source if isinstance(source, bytes) else _read(Path(source))
        plain = None if content is None else jpeg_size(content)
        if content is None:
            return self._crop(decode(source, max_pixels=self.max_pixels), draws)
        try:
            if plain is not None and min(plain) >= 2 * min(self.size):
                return self._reduced(content, draws)
            return self._crop(decode(content, max_pixels=self.max_pixels), draws)
        except DecodeError:
            return self._crop(decode(source, max_pixels=self.max_pixels), draws)  # fails again, and names the file

    def _reduced(self, content: bytes, draws: list[float]) -> Tensor:
        height, width = _upright_size(content)
        top, left, rows, columns = self._box(height, width, draws)
        reduction = 2 ** int(math.log2(max(1.0, min(rows / self.size[0], columns / self.size[1]))))
        shorter = min(height, width) // min(reduction, 8)
        image = decode(content, max_pixels=self.max_pixels, at_least=shorter)
        k, m = image.height / height, image.width / width
        box = (round(left * m), round(top * k), round((left + columns) * m), round((top + rows) * k))
        return as_tensor(image.crop((box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1))))

    def _box(self, height: int, width: int, draws: list[float]) -> tuple[int, int, int, int]:
        """(top, left, height, width): the first of ten that fits, as torchvision draws them, or else the middle."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for first in range(3, len(draws), 4):
            a, b, c, d = draws[first : first + 4]
            area = height * width * (self.scale[0] + a * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + b * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(c * (height - h + 1)), int(d * (width - w + 1)), h, w
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
        h, w = max(1, h), max(1, w)
        return (height - h) // 2, (width - w) // 2, h, w


def _resize(image: Tensor, size: tuple[int, int], mode: InterpolationMode) -> Tensor:
    """A batch of one, laid out as channels-last even in the stride of that one: only so torch takes its fast kernel."""
    pixels = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    if mode not in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC):
        return kernels.resize_image(pixels, list(size), mode)[0]
    return functional.interpolate(pixels, size, mode=mode.value, antialias=True)[0]


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) as stored, of a JPEG with one or three 8-bit components; None for all else."""
    if content[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(content)
    while at + 10 <= end and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _PLAIN:
            if content[at + 4] != 8 or content[at + 9] not in (1, 3):
                return None
            height = int.from_bytes(content[at + 5 : at + 7])
            width = int.from_bytes(content[at + 7 : at + 9])
            return (height, width) if height and width else None
        if marker == 0xDA or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return None
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return None


def _upright_size(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError):
            turned = False  # a broken EXIF block, which `decode` does not follow either
        return (image.width, image.height) if turned else (image.height, image.width)


def _read(path: Path) -> bytes | None:
    """The file's bytes; None where `decode` has to say what is wrong."""
    try:
        return path.read_bytes() if path.is_file() else None
    except (OSError, ValueError):
        return None
