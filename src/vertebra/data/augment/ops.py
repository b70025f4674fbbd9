"""The operations of AutoAugment and its successors by name, and what a magnitude of 0..10 means to each.

Names ending in "Increasing" grow more severe with the magnitude; their plain namesakes keep the original ranges, in
which a middle magnitude may leave the image as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from PIL import Image

from vertebra.data.augment import kernels
from vertebra.data.augment.kernels import Colour, Pixels, Resampling
from vertebra.spec.errors import VertebraError, unknown_name

_NORMAL = NormalDist()

LEVELS = 10
"""Magnitudes run from 0 to this."""

DRAWS = 5
"""Uniform numbers that one operation consumes, whether it happens or not: so a state of the generator says all."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What geometric operations need besides their argument. `fill` is a colour of 0..255."""

    fill: Colour = (128, 128, 128)
    resampling: tuple[Resampling, ...] = ("bilinear", "bicubic")
    """One is drawn each time."""
    translate: float = 0.45
    """The share of the side by which level 10 translates."""


Argument = Callable[[float, float], float]
"""(level, random sign) -> the operation's argument."""


def _either(level: float, sign: float) -> float:
    return max(0.1, 1 + sign * 0.09 * level)


def _enhance(level: float, _sign: float) -> float:
    return 0.1 + 0.18 * level


def _solarize(level: float, _sign: float) -> float:
    return min(256, int(level / LEVELS * 256))


def _posterize(level: float, _sign: float) -> float:
    return int(level / LEVELS * 4)


ARGUMENTS: dict[str, Argument | None] = {
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
    "Rotate": lambda level, sign: sign * 3 * level,  # degrees
    "Posterize": _posterize,  # bits kept
    "PosterizeIncreasing": lambda level, sign: 4 - _posterize(level, sign),
    "PosterizeOriginal": lambda level, sign: 4 + _posterize(level, sign),
    "Solarize": _solarize,
    "SolarizeIncreasing": lambda level, sign: 256 - _solarize(level, sign),
    "SolarizeAdd": lambda level, _sign: min(128, int(level / LEVELS * 110)),
    "Color": _enhance,
    "ColorIncreasing": _either,
    "Contrast": _enhance,
    "ContrastIncreasing": _either,
    "Brightness": _enhance,
    "BrightnessIncreasing": _either,
    "Sharpness": _enhance,
    "SharpnessIncreasing": _either,
    "ShearX": lambda level, sign: sign * 0.03 * level,
    "ShearY": lambda level, sign: sign * 0.03 * level,
    "TranslateXRel": lambda level, sign: sign * level / LEVELS,  # times Surroundings.translate
    "TranslateYRel": lambda level, sign: sign * level / LEVELS,
    "Desaturate": lambda level, _sign: min(1.0, max(0.5, 0.5 + 0.05 * level)),
    "GaussianBlur": lambda level, _sign: min(2.0, max(0.1, 0.1 + 0.19 * level)),  # sigma in pixels
    "GaussianBlurRand": lambda level, _sign: min(1.0, max(0.0, level / LEVELS)),  # share of the range of sigmas
}

_PLAIN: dict[str, Callable[[Pixels, float], Pixels]] = {
    "Posterize": kernels.posterize,
    "Solarize": kernels.solarize,
    "SolarizeAdd": kernels.solarize_add,
    "Color": kernels.colour,
    "Contrast": kernels.contrast,
    "Brightness": kernels.brightness,
    "Sharpness": kernels.sharpness,
    "Desaturate": kernels.desaturate,
    "GaussianBlur": kernels.blur,
}
_BARE = {"AutoContrast": kernels.autocontrast, "Equalize": kernels.equalize, "Invert": kernels.invert}
_GEOMETRIC = {
    "Rotate": kernels.rotate,
    "ShearX": kernels.shear_x,
    "ShearY": kernels.shear_y,
    "TranslateXRel": kernels.translate_x,
    "TranslateYRel": kernels.translate_y,
}


def apply(name: str, pixels: Pixels, argument: float | None, around: Surroundings, chance: float = 0.0) -> Pixels:
    """One operation with its argument; `chance` (0..1) chooses among `around.resampling`, or the blur's sigma."""
    kernel = name.removesuffix("Increasing").removesuffix("Original")
    if kernel in _BARE:
        return _BARE[kernel](pixels)
    assert argument is not None, name
    if kernel in _GEOMETRIC:
        scale = around.translate if kernel.startswith("Translate") else 1
        resampling = around.resampling[min(int(chance * len(around.resampling)), len(around.resampling) - 1)]
        return _GEOMETRIC[kernel](pixels, argument * scale, around.fill, resampling)
    if kernel == "GaussianBlurRand":
        return kernels.blur(pixels, 0.1 + chance * (2.0 * argument - 0.1))
    return _PLAIN[kernel](pixels, argument)


@dataclass(frozen=True, slots=True)
class Op:
    """An operation that happens with probability `p`, at a magnitude that varies by `noise`.

    `noise` is a standard deviation; infinite, it draws the level evenly from 0 to `magnitude`. `top` bounds the level.
    """

    name: str
    p: float = 0.5
    magnitude: float = LEVELS
    noise: float = 0.0
    top: float = LEVELS

    def __post_init__(self) -> None:
        if self.name not in ARGUMENTS:
            raise unknown_name("augmentation", self.name, ARGUMENTS)

    def level(self, chance: float) -> float:
        """The level that a uniform number in 0..1 stands for."""
        level = self.magnitude
        if self.noise == float("inf"):
            level *= chance
        elif self.noise > 0:
            level += self.noise * _NORMAL.inv_cdf(min(max(chance, 2**-26), 1 - 2**-26))
        return min(max(level, 0.0), self.top)

    def __call__(self, pixels: Pixels, around: Surroundings, draws: list[float]) -> Pixels:
        """`draws`: `DRAWS` numbers in 0..1, for happening, level, sign, and choice; the first is the caller's."""
        _, happens, level, sign, choice = draws
        if happens >= self.p:
            return pixels
        argument = ARGUMENTS[self.name]
        value = None if argument is None else argument(self.level(level), -1.0 if sign < 0.5 else 1.0)
        return apply(self.name, pixels, value, around, choice)


def as_pixels(image: Any) -> tuple[Pixels, Callable[[Pixels], Any]]:
    """An RGB image as an array (h, w, 3), and the way back to what it was: a PIL image or a uint8 tensor (3, h, w)."""
    if isinstance(image, Image.Image):
        if image.mode == "RGB":
            return np.asarray(image), Image.fromarray
        raise VertebraError(f"cannot augment an image of mode {image.mode}: convert it (image.convert('RGB'))")
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
        return image.permute(1, 2, 0).contiguous().numpy(), as_tensor
    what = (
        f"a tensor {tuple(image.shape)} of {image.dtype}" if isinstance(image, torch.Tensor) else type(image).__name__
    )
    raise VertebraError(f"cannot augment {what}: give an RGB PIL image, or a uint8 tensor (3, height, width)")


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """To uint8 (3, h, w), laid out pixel by pixel (channels last), which collates and normalises fastest."""
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)
