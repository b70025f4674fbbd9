"""The image operations that augmentation draws from, on RGB pixels: uint8 (h, w, 3) in, a new or the same array out.

Pillow's results, sooner where that pays. Measured at 224 x 224 on one core: a bicubic shear takes Pillow 2.4 ms and
`_slide` 0.4 ms, sharpening 1.0 and 0.4 ms. `_slide` computes in single precision where Pillow does in double, so that
some values differ by one level of 255; everything else is equal value for value. No operation writes to its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]
Resampling = Literal["bilinear", "bicubic"]

_FEW = 44 * 44
"""Pixels; below, Pillow's own loops beat the fixed cost of a dozen operations."""

_LEVELS = np.arange(256, dtype=np.uint8)
_RAMP = Image.frombytes("L", (256, 1), _LEVELS.tobytes())


def _through_pillow(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    return np.asarray(change(Image.fromarray(pixels)))


def autocontrast(pixels: Pixels) -> Pixels:
    width = pixels.shape[1]
    rows = pixels.reshape(len(pixels), -1)  # whole rows first: those are contiguous
    low = rows.min(0).reshape(width, 3).min(0)[:, None]
    span = rows.max(0).reshape(width, 3).max(0)[:, None].astype(np.float64) - low
    scale = 255.0 / np.maximum(span, 1)
    stretched = np.minimum(np.maximum(_LEVELS * scale + -low.astype(np.float64) * scale, 0), 255).astype(np.uint8)
    return _each_through(pixels, np.where(span > 0, stretched, _LEVELS))


def equalize(pixels: Pixels) -> Pixels:
    count = np.asarray(Image.fromarray(pixels).histogram(), np.int64).reshape(3, 256)
    brightest = 255 - (count[:, ::-1] > 0).argmax(1)
    step = (pixels.size // 3 - count[[0, 1, 2], brightest])[:, None] // 255
    below = count.cumsum(1) - count
    even = np.minimum((step // 2 + below) // np.maximum(step, 1), 255).astype(np.uint8)
    return _each_through(pixels, np.where(step > 0, even, _LEVELS))


def _each_through(pixels: Pixels, tables: Pixels) -> Pixels:
    """Every value looked up in its channel's table (3, 256)."""
    starts = np.tile(np.array((0, 256, 512), np.int16), pixels.shape[1])
    return tables.reshape(-1).take(pixels.reshape(len(pixels), -1) + starts).reshape(pixels.shape)


def _through(pixels: Pixels, table: bytes) -> Pixels:
    """Every value looked up."""
    return np.frombuffer(bytearray(pixels.tobytes()).translate(table), np.uint8).reshape(pixels.shape)


def invert(pixels: Pixels) -> Pixels:
    return ~pixels


def posterize(pixels: Pixels, bits: float) -> Pixels:
    """Keep the upper `bits` of 8."""
    return pixels if bits >= 8 else pixels & np.uint8(256 - 2 ** (8 - int(bits)) if int(bits) > 0 else 0)


def solarize(pixels: Pixels, threshold: float) -> Pixels:
    """Invert what is not below `threshold`."""
    return pixels ^ np.negative((pixels >= int(threshold)).view(np.uint8))  # 1 becomes 255


def solarize_add(pixels: Pixels, add: float) -> Pixels:
    """Add 0..128 to every value below 128."""
    return pixels + (pixels < 128).view(np.uint8) * np.uint8(int(add))


def colour(pixels: Pixels, factor: float) -> Pixels:
    return _through_pillow(pixels, lambda image: ImageEnhance.Color(image).enhance(factor))


def contrast(pixels: Pixels, factor: float) -> Pixels:
    count = np.asarray(Image.fromarray(pixels).convert("L").histogram(), np.int64)
    mean = int(float((count * np.arange(256)).sum()) / float(count.sum()) + 0.5)
    return _through(pixels, Image.blend(Image.new("L", _RAMP.size, mean), _RAMP, factor).tobytes())


def brightness(pixels: Pixels, factor: float) -> Pixels:
    return _through(pixels, Image.blend(Image.new("L", _RAMP.size), _RAMP, factor).tobytes())


def desaturate(pixels: Pixels, share: float) -> Pixels:
    return colour(pixels, 1 - share)


def blur(pixels: Pixels, sigma: float) -> Pixels:
    return _through_pillow(pixels, lambda image: image.filter(ImageFilter.GaussianBlur(radius=sigma)))


def sharpness(pixels: Pixels, factor: float) -> Pixels:
    """Pillow's SMOOTH kernel (ones, 5 in the middle, over 13), and the image moved away from it or towards it."""
    height, width, _ = pixels.shape
    if height * width < 48 * 48 or min(height, width) < 3:
        return _through_pillow(pixels, lambda image: ImageEnhance.Sharpness(image).enhance(factor))
    wide = pixels.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1]
    rows += wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1]
    total += rows[:, 2:]
    total += wide[1:-1, 1:-1] << 2
    total <<= 1
    total += 13  # half of the divisor: rounded, as Pillow does
    smooth = pixels.copy()  # Pillow leaves the border as it is
    smooth[1:-1, 1:-1] = total // 26
    return np.asarray(Image.blend(Image.fromarray(smooth), Image.fromarray(pixels), factor))


def rotate(pixels: Pixels, degrees: float, fill: Colour, resampling: Resampling) -> Pixels:
    return _through_pillow(pixels, lambda image: image.rotate(degrees, _mode(resampling), fillcolor=fill))


def shear_x(pixels: Pixels, factor: float, fill: Colour, resampling: Resampling) -> Pixels:
    height, width, _ = pixels.shape
    if height * width < _FEW:
        return _affine(pixels, (1, factor, 0, 0, 1, 0), fill, resampling)
    return _slide(pixels, factor * (np.arange(height) + 0.5), fill, resampling)


def shear_y(pixels: Pixels, factor: float, fill: Colour, resampling: Resampling) -> Pixels:
    height, width, _ = pixels.shape
    if height * width < _FEW:
        return _affine(pixels, (1, 0, 0, factor, 1, 0), fill, resampling)
    offsets = factor * (np.arange(width) + 0.5)
    whole = np.floor(offsets)
    rows = np.arange(-1, height + 2)[:, None] + np.clip(whole, -height - 1, height + 1).astype(np.int64)
    np.clip(rows, 0, height - 1, out=rows)
    rows *= width
    rows += np.arange(width)
    taken = pixels.reshape(-1, 3).view("V3").take(rows).view(np.uint8)  # three bytes at once
    values = torch.from_numpy(taken.reshape(height + 3, width * 3)).float()
    near = [values[i : i + height] for i in range(4)]
    result = _between(near, np.repeat(offsets - whole, 3), resampling)
    first, last = (np.clip(np.ceil(end - offsets - 0.5), 0, height).astype(np.int32) for end in (0, height))
    _fill_outside(result, np.arange(height, dtype=np.int32)[:, None], np.repeat(first, 3), np.repeat(last, 3), fill)
    return result.reshape(pixels.shape)


def translate_x(pixels: Pixels, share: float, fill: Colour, resampling: Resampling) -> Pixels:
    height, width, _ = pixels.shape
    offset = share * width
    if height * width < _FEW or abs(share) >= 1:
        return _affine(pixels, (1, 0, offset, 0, 1, 0), fill, resampling)
    whole = math.floor(offset)
    padded, before = _padded(pixels, whole, whole)
    values = torch.from_numpy(padded.reshape(height, -1)[:, (before + whole - 1) * 3 :]).float()
    result = _between(
        [values[:, 3 * i : 3 * (i + width)] for i in range(4)], np.full((1, 1), offset - whole), resampling
    )
    first, last = 3 * max(0, math.ceil(-offset - 0.5)), 3 * max(0, math.ceil(width - offset - 0.5))
    result[:, :first] = _line(fill, width)[:first]
    result[:, last:] = _line(fill, width)[last:]
    return result.reshape(pixels.shape)


def translate_y(pixels: Pixels, share: float, fill: Colour, resampling: Resampling) -> Pixels:
    height, width, _ = pixels.shape
    offset = share * height
    if height * width < _FEW or abs(share) >= 1:
        return _affine(pixels, (1, 0, 0, 0, 1, offset), fill, resampling)
    whole = math.floor(offset)
    taken = pixels[np.clip(np.arange(-1, height + 2) + whole, 0, height - 1)].reshape(height + 3, width * 3)
    values = torch.from_numpy(taken).float()
    result = _between([values[i : i + height] for i in range(4)], np.full((1, 1), offset - whole), resampling)
    result[: max(0, math.ceil(-offset - 0.5))] = _line(fill, width)
    result[max(0, math.ceil(height - offset - 0.5)) :] = _line(fill, width)
    return result.reshape(pixels.shape)


def _mode(resampling: Resampling) -> Image.Resampling:
    return Image.Resampling.BICUBIC if resampling == "bicubic" else Image.Resampling.BILINEAR


def _affine(pixels: Pixels, matrix: tuple[float, ...], fill: Colour, resampling: Resampling) -> Pixels:
    kind, mode = Image.Transform.AFFINE, _mode(resampling)
    return _through_pillow(pixels, lambda image: image.transform(image.size, kind, matrix, mode, fillcolor=fill))


def _slide(pixels: Pixels, offsets: NDArray[np.floating[Any]], fill: Colour, resampling: Resampling) -> Pixels:
    """Row y of the result is row y of `pixels`, read `offsets[y]` pixels further right; outside lies `fill`.

    What a general affine map computes in two dimensions is one here: the row's neighbours have weight 0.
    """
    height, width, _ = pixels.shape
    whole = np.floor(offsets)
    start = np.clip(whole, -width - 1, width + 1).astype(np.int64)  # further away there is only fill
    padded, before = _padded(pixels, int(start.min()), int(start.max()))
    length, line = (width + 3) * 3, padded.shape[1] * 3
    windows = np.lib.stride_tricks.as_strided(padded.reshape(-1), (padded.size - length + 1, length), (1, 1))
    values = torch.from_numpy(windows[np.arange(height) * line + (start + before - 1) * 3]).float()
    near = [values[:, 3 * i : 3 * (i + width)] for i in range(4)]
    result = _between(near, (offsets - whole)[:, None], resampling)
    first, last = (np.clip(np.ceil(end - offsets - 0.5), 0, width).astype(np.int32)[:, None] for end in (0, width))
    _fill_outside(result, np.repeat(np.arange(width, dtype=np.int32), 3), first, last, fill)
    return result.reshape(pixels.shape)


def _fill_outside(
    result: Pixels, place: NDArray[np.int32], first: NDArray[np.int32], last: NDArray[np.int32], fill: Colour
) -> None:
    """Of `result` (h, 3 w), what does not lie from `first` to before `last`."""
    kind = np.int16 if max(result.shape) < 2**15 else np.int32  # half as wide, half of the time
    where = place.astype(kind)
    outside = where < first.astype(kind)
    outside |= where >= last.astype(kind)
    np.copyto(result, _line(fill, result.shape[1] // 3), where=outside)


def _padded(pixels: Pixels, least: int, most: int) -> tuple[Pixels, int]:
    """Room for reading `least` to `most` pixels further right, and how much of it is on the left.

    Two pixels on each side repeat the border. What lies further out is read, too, but `fill` comes over it.
    """
    height, width, _ = pixels.shape
    before, after = max(2, 1 - least), max(2, 2 + most)
    padded = np.empty((height, before + width + after, 3), np.uint8)
    padded[:, before : before + width] = pixels
    for out in (1, 2):
        padded[:, before - out] = pixels[:, 0]
        padded[:, before + width + out - 1] = pixels[:, -1]
    return padded, before


def _line(colour: Colour, width: int) -> Pixels:
    return np.tile(np.array(colour, np.uint8), width)


def _between(near: list[torch.Tensor], part: NDArray[np.floating[Any]], resampling: Resampling) -> Pixels:
    """The values at `part` (0..1) from the second of four neighbours towards the third."""
    if resampling == "bilinear":
        return torch.lerp(near[1], near[2], torch.from_numpy(part.astype(np.float32))).numpy().astype(np.uint8)
    # Keys' kernel with -0.5 (times 2: Pillow's). A little more than 1 in all, lest equal neighbours be rounded down.
    square, cube = part * part, part * part * part
    weights = (2 * square - part - cube, 1 + 4e-6 - 2 * square + cube, part + square - cube, cube - square)
    factors = [torch.from_numpy(weight.astype(np.float32)) for weight in weights]
    total = near[0] * factors[0]
    for values, factor in zip(near[1:], factors[1:], strict=True):
        total.addcmul_(values, factor)
    return total.clamp_(0, 255).numpy().astype(np.uint8)
