"""From a photo to what a model sees of it, sooner than by `create_transform` and within a level or two of it.

c channels, h w height and width in pixels. No torchvision here: importing it takes as long as hundreds of photos.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from jaxtyping import Num, UInt8
from PIL import Image
from torch import Tensor

from vertebra.data.decode import DEFAULT_MAX_PIXELS, DecodeError, decode, decode_reduced
from vertebra.data.jpeg import decode_stored, jpeg_content, jpeg_header, orientation
from vertebra.data.normalize import NormalizeBatch
from vertebra.data.pixels import RESIZABLE, Pixels, pixels_of, reduced_pixels, resize_box, resize_pixels, whole

OVERSIZE = 2
"""A JPEG is decoded at a reduced scale only where this many times the wanted side remain: the resize that follows then
leaves little of the difference. Declared, and measured by benchmarks/reading.py: probabilities stay within `TOLERANCE`
of the exact way for 99.5 % of photos, and within twice that for all."""
TOLERANCE = 0.05
LONGEST = 16
"""Of what is longer than this many times its shorter side, only what the crop sees is resized."""

Source = bytes | str | os.PathLike[str] | BinaryIO | Image.Image


class EvalReader:
    """Decode, resize the shorter side, crop the middle square, normalise: float32 (3, h, w).

    With `on` another device than the processor, photos stay uint8 until `batch`, which lies there, normalises many at
    once. A file that cannot be read raises `DecodeError`, naming it.
    """

    def __init__(
        self,
        side: int,
        crop_pct: float,
        interpolation: str,
        mean: Sequence[float],
        std: Sequence[float],
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
        on: torch.device | str = "cpu",
    ) -> None:
        self.side = side
        self.shorter = math.floor(side / crop_pct)
        self.interpolation = interpolation
        self.max_pixels = max_pixels
        normalize = NormalizeBatch(mean, std)
        self._factor, self._offset = (normalize.get_buffer(name).numpy() for name in ("factor", "offset"))
        self.batch = None if torch.device(on).type == "cpu" else NormalizeBatch(mean, std).to(on)

    def __call__(self, source: Source) -> Num[Tensor, "3 h w"]:
        # By numpy: torch would start a pool of threads in each reading thread, which spin for a while after each use.
        levels = self.levels(source)
        if self.batch is not None:
            return torch.from_numpy(levels)
        values = np.multiply(levels, self._factor, dtype=np.float32)
        values += self._offset
        return torch.from_numpy(values)

    def levels(self, source: Source) -> UInt8[np.ndarray, "3 h w"]:
        """What the crop shows, 0 to 255. Laid out by the sides of the image as it is stored, however it was decoded."""
        pixels = self._pixels(source)
        height, width = pixels.height, pixels.width
        least = min(height, width)
        size = int(self.shorter * height / least), int(self.shorter * width / least)  # truncated, as `Resize` does
        top, left = (round((n - self.side) / 2) for n in size)
        if pixels.box[:2] != (0, 0) or max(height, width) > LONGEST * least:
            rows, columns = height / size[0], width / size[1]
            box = pixels.part(top * rows, left * columns, self.side * rows, self.side * columns)
            return np.ascontiguousarray(
                resize_box(pixels.array, box, (self.side, self.side), self.interpolation).numpy()
            )
        resized = resize_pixels(pixels.array, size, self.interpolation, (pixels.box[3], pixels.box[2]))
        return np.ascontiguousarray(resized.numpy()[:, top : top + self.side, left : left + self.side])

    def _pixels(self, source: Source) -> Pixels:
        if isinstance(source, Image.Image):
            return whole(pixels_of(source))
        content = source if isinstance(source, bytes) else None
        if isinstance(source, (str, os.PathLike)):
            content = jpeg_content(Path(source))
        quick = None if content is None else self._jpeg(content)
        if quick is not None:
            return quick
        least = OVERSIZE * self.shorter
        if content is None:
            return reduced_pixels(decode_reduced(source, max_pixels=self.max_pixels, at_least=least))
        try:
            return reduced_pixels(decode_reduced(content, max_pixels=self.max_pixels, at_least=least))
        except DecodeError:
            return whole(pixels_of(decode(source, max_pixels=self.max_pixels)))  # fails again, and names the file

    def _jpeg(self, content: bytes) -> Pixels | None:
        """None of anything else, or that only `decode` can read."""
        header = jpeg_header(content)
        if header is None or (self.max_pixels is not None and header.height * header.width > self.max_pixels):
            return None
        if orientation(content, header) != 1:
            return None
        least, reduction = min(header.height, header.width), 1
        while reduction < 8 and least >= 2 * reduction * OVERSIZE * self.shorter:
            reduction *= 2
        array = decode_stored(content, header, reduction)
        if array is None:
            return None
        return Pixels(
            array, header.height, header.width, (0.0, 0.0, header.width / reduction, header.height / reduction)
        )


def eval_reader(
    config: Mapping[str, object],
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    on: torch.device | str = "cpu",
) -> EvalReader | None:
    """For what `resolve_model_data_config` gives; None where only `create_transform` knows how."""
    size = cast("tuple[int, int, int]", config["input_size"])
    share = cast("float", config["crop_pct"])
    plain = config["crop_mode"] == "center" and config["interpolation"] in RESIZABLE and 0 < share <= 1
    if not plain or size[0] != 3 or size[1] != size[2]:
        return None
    mean, std = (cast("Sequence[float]", config[key]) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        return None
    return EvalReader(size[1], share, cast("str", config["interpolation"]), mean, std, max_pixels, on)
