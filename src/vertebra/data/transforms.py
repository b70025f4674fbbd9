"""The steps from an RGB image to the normalised tensor that a model was trained on.

Images are PIL images or tensors (..., channels, height, width), uint8 or floats on the 0..1 scale. Sizes are pixels,
(height, width). From PIL images, the numbers are bit for bit those that published checkpoints were measured with.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Num
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F1
from torchvision.transforms.v2 import functional as kernels

from vertebra.data.decode import Reduced
from vertebra.data.draws import uniform
from vertebra.spec.errors import VertebraError, unknown_name

F2 = cast("Any", kernels)  # annotated for tensors only, though they take PIL images as well

INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
    "box": InterpolationMode.BOX,
    "hamming": InterpolationMode.HAMMING,
}
OF_PILLOW = (InterpolationMode.LANCZOS, InterpolationMode.BOX, InterpolationMode.HAMMING)
"""Filters that tensors cannot be resized with."""
RANDOM_INTERPOLATIONS = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
"""What `interpolation="random"` draws from."""

Fit = Literal["cover", "contain", "squash"]
AnyImage = Image.Image | Num[Tensor, "... c h w"]

LONGEST = 64
"""Of a strip longer than this many times its shorter side, `RandomResizeKeepRatio` takes the middle."""
ENORMOUS = 2**22
"""Pixels. A resized image above this, and above 16 times its crop's pixels, is never made; see `Resize`."""


def interpolation_mode(name: str) -> InterpolationMode:
    if name not in INTERPOLATIONS:
        raise unknown_name("interpolation", name, INTERPOLATIONS)
    return INTERPOLATIONS[name]


def image_size(image: object) -> tuple[int, int]:
    """(height, width); the place where anything that is no image is refused."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, Tensor) and image.ndim >= 3:
        return image.shape[-2], image.shape[-1]
    what = f"a tensor of shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
    raise VertebraError(f"cannot transform {what}: give a PIL image, or a tensor (..., channels, height, width)")


def resize(image: AnyImage, size: tuple[int, int], mode: InterpolationMode) -> AnyImage:
    """To (height, width), antialiased."""
    check_filter(image, mode)
    return F2.resize(image, list(size), mode, antialias=True)


def check_filter(image: object, mode: InterpolationMode) -> None:
    if isinstance(image, Tensor) and mode in OF_PILLOW:
        raise VertebraError(
            f"a tensor cannot be resized with {mode.value!r}: give a PIL image, or use 'bicubic' or 'bilinear'"
        )


class Resize(nn.Module):
    """To `size` pixels: an int is the shorter side; (height, width) is covered, contained or squashed to (`fit`).

    `window` is the (height, width) that a centre crop keeps afterwards. Resize and crop stay two steps, because Pillow
    rounds differently when it does both at once (about 1.5% of a photo's values, measured). But where the resized image
    would be enormous, as of a strip of 100,000 x 1, only that window is computed.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        interpolation: InterpolationMode,
        *,
        fit: Fit = "cover",
        window: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.interpolation = interpolation
        self.fit: Fit = fit
        self.window = window

    def forward(self, image: AnyImage | Reduced) -> AnyImage:
        """Of a `Reduced` image the size is that of the whole one, as if it had been decoded in full."""
        box = None
        if isinstance(image, Reduced):
            source, box, image = (image.height, image.width), image.box, image.image
        else:
            source = image_size(image)
        check_filter(image, self.interpolation)
        target = self.target_size(*source)
        if self.window is not None and math.prod(target) > max(ENORMOUS, 16 * math.prod(self.window)):
            return self._only_window(image, source, target, self.window, box)
        if box is not None:
            return cast("Image.Image", image).resize((target[1], target[0]), self._resample, box=box)
        return resize(image, target, self.interpolation)

    @property
    def _resample(self) -> Image.Resampling:
        return getattr(Image.Resampling, self.interpolation.name)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what an image of this size is resized to."""
        if isinstance(self.size, int):
            shorter = min(height, width)
            # Truncated, not rounded: so do the transforms that checkpoints were trained with.
            return int(self.size * height / shorter), int(self.size * width / shorter)
        if self.fit == "squash":
            return self.size
        choose = min if self.fit == "cover" else max
        ratio = choose(height / self.size[0], width / self.size[1])
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _only_window(
        self,
        image: AnyImage,
        source: tuple[int, int],
        target: tuple[int, int],
        window: tuple[int, int],
        box: tuple[float, float, float, float] | None,
    ) -> AnyImage:
        size = [min(w, t) for w, t in zip(window, target, strict=True)]
        first = [round((t - s) / 2) for t, s in zip(target, size, strict=True)]  # where CenterCrop begins
        scale = [t / n for t, n in zip(target, source, strict=True)]  # target pixels a source pixel
        begin = [f / k for f, k in zip(first, scale, strict=True)]
        end = [min((f + s) / k, n) for f, s, k, n in zip(first, size, scale, source, strict=True)]
        if isinstance(image, Image.Image):
            left, top, right, bottom = box or (0.0, 0.0, float(source[1]), float(source[0]))
            across, along = (right - left) / source[1], (bottom - top) / source[0]
            x, y = (left + begin[1] * across, left + end[1] * across), (top + begin[0] * along, top + end[0] * along)
            seen = (x[0], y[0], min(x[1], right), min(y[1], bottom))
            return image.resize((size[1], size[0]), self._resample, box=seen)
        # Tensors have no resize from a box with fractions: whole source pixels around it, then the crop.
        low = [math.floor(b) for b in begin]
        high = [math.ceil(e) for e in end]
        part = image[..., low[0] : high[0], low[1] : high[1]]
        lengths = [max(s, round((h - b) * k)) for s, h, b, k in zip(size, high, low, scale, strict=True)]
        part = resize(part, (lengths[0], lengths[1]), self.interpolation)
        corner = [min(round(f - b * k), n - s) for f, b, k, n, s in zip(first, low, scale, lengths, size, strict=True)]
        return F2.crop(part, corner[0], corner[1], size[0], size[1])

    def extra_repr(self) -> str:
        fit = "" if isinstance(self.size, int) else f", fit={self.fit}"
        return f"size={self.size}, interpolation={self.interpolation.value}{fit}"


class CenterCropOrPad(nn.Module):
    """The middle `size` (height, width); an image that is smaller gets a border of `fill` (0..255 a channel), or, with
    None, of its own mirror image.
    """

    def __init__(self, size: tuple[int, int], fill: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.size = size
        self.fill = fill

    def forward(self, image: AnyImage) -> AnyImage:
        height, width = image_size(image)
        missing = max(self.size[0] - height, 0), max(self.size[1] - width, 0)
        if any(missing):
            top, left = (self.before(n) for n in missing)
            image = self._pad(image, (left, top, missing[1] - left, missing[0] - top))
        return self.crop(image)

    def before(self, missing: int) -> int:
        """How much of the border lies above, or left."""
        return missing // 2

    def crop(self, image: AnyImage) -> AnyImage:
        """`size` of an image that has as much."""
        return F2.center_crop(image, list(self.size))

    def _pad(self, image: AnyImage, border: tuple[int, int, int, int]) -> AnyImage:
        """By `border`: left, top, right, below."""
        if self.fill is None:
            return _mirrored(image, border)
        fill = list(self.fill)
        if isinstance(image, Tensor) and image.is_floating_point():
            fill = [level / 255 for level in fill]
        return F2.pad(image, list(border), fill=fill)

    def extra_repr(self) -> str:
        return f"size={self.size}, fill={'mirror' if self.fill is None else self.fill}"


class RandomCropOrPad(CenterCropOrPad):
    """The same at a random place, in the border or in the image."""

    def before(self, missing: int) -> int:
        return int(torch.randint(missing + 1, ()).item())

    def crop(self, image: AnyImage) -> AnyImage:
        top, left = (self.before(n - s) for n, s in zip(image_size(image), self.size, strict=True))
        return F2.crop(image, top, left, *self.size)


def _mirrored(image: AnyImage, border: tuple[int, int, int, int]) -> AnyImage:
    """As numpy's `reflect`, which goes to and fro where the border is wider than the image."""
    left, top, right, below = border
    if isinstance(image, Image.Image):
        beside = ((top, below), (left, right)) + ((0, 0),) * (len(image.getbands()) > 1)
        return Image.fromarray(np.pad(np.asarray(image), beside, mode="reflect"))
    height, width = image_size(image)
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(length), beside, mode="reflect")).to(image.device)
        for length, beside in ((height, (top, below)), (width, (left, right)))
    )
    return image[..., rows, :][..., columns]


class TrimBorder(nn.Module):
    """Without the outer `pixels` on all four sides."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        if pixels < 0:
            raise VertebraError(f"crop_border_pixels={pixels}: give 0 or more")
        self.pixels = pixels

    def forward(self, image: AnyImage) -> AnyImage:
        height, width = image_size(image)
        if min(height, width) <= 2 * self.pixels:
            raise VertebraError(f"crop_border_pixels={self.pixels} leaves nothing of an image of {height}x{width}")
        return F2.crop(image, self.pixels, self.pixels, height - 2 * self.pixels, width - 2 * self.pixels)

    def extra_repr(self) -> str:
        return f"pixels={self.pixels}"


class ToTensor(nn.Module):
    """To float32 on the 0..1 scale; a float tensor is taken as being on it."""

    def forward(self, image: AnyImage) -> Float[Tensor, "... c h w"]:
        image_size(image)
        if isinstance(image, Image.Image):
            return F1.to_tensor(image)
        if image.dtype == torch.uint8:
            return image.to(torch.float32).div(255)  # a division, as for PIL images: 1/255 rounds differently
        if image.is_floating_point():
            return image
        raise VertebraError(f"a tensor of {image.dtype} has no known scale: give uint8 (0..255) or floats (0..1)")


class ToBytes(nn.Module):
    """To a uint8 tensor; what remains when `normalize=False` leaves scale and normalisation to the caller."""

    def forward(self, image: AnyImage) -> Num[Tensor, "... c h w"]:
        image_size(image)
        return F2.pil_to_tensor(image) if isinstance(image, Image.Image) else image


class Normalize(nn.Module):
    """(x - mean) / std, channel by channel; `mean` and `std` are tensors (channels,) on the 0..1 scale."""

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.mean = torch.atleast_1d(torch.as_tensor(mean, dtype=torch.float32))
        self.std = torch.atleast_1d(torch.as_tensor(std, dtype=torch.float32))
        if not (self.std > 0).all():
            raise VertebraError(f"std={std}: every value must be above 0")
        if 1 not in (len(self.mean), len(self.std)) and len(self.mean) != len(self.std):
            raise VertebraError(f"mean={mean} and std={std} differ in their number of channels")

    def forward(self, image: Float[Tensor, "... c h w"]) -> Float[Tensor, "... c h w"]:
        channels = max(len(self.mean), len(self.std))
        if channels not in (1, image.shape[-3]):
            raise VertebraError(
                f"the image has {image.shape[-3]} channels, mean and std have {channels}: "
                "convert it (image.convert('RGB')), or give mean and std for its channels"
            )
        mean = self.mean.to(image).view(-1, 1, 1)
        return image.sub(mean).div_(self.std.to(image).view(-1, 1, 1))

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"


class RandomResizedCrop(v2.RandomResizedCrop):
    """A random part of the image, resized to `size`; one of `interpolations` is drawn each time."""

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        ratio: tuple[float, float],
        interpolations: tuple[InterpolationMode, ...],
    ) -> None:
        super().__init__(size, scale=scale, ratio=ratio, interpolation=interpolations[0], antialias=True)
        self.output_size = size
        self.interpolations = interpolations

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        if not flat_inputs:  # torchvision leaves out what is no image, and would hand it on as it is
            raise VertebraError("cannot transform what is no image: give a PIL image, or a tensor (..., c, h, w)")
        image_size(flat_inputs[0])
        choice = int(torch.randint(len(self.interpolations), ()).item()) if len(self.interpolations) > 1 else 0
        return {**super().make_params(flat_inputs), "interpolation": self.interpolations[choice]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        check_filter(inpt, params["interpolation"])
        return F2.resized_crop(inpt, **params, size=list(self.output_size), antialias=True)

    def extra_repr(self) -> str:
        modes = " ".join(mode.value for mode in self.interpolations)
        return f"size={self.output_size}, scale={self.scale}, ratio={self.ratio}, interpolation={modes}"


class RandomResizeKeepRatio(nn.Module):
    """To cover `size` (height, width); for half of the images larger, so that `size` is a share from `scale` of what it
    was, and for half, drawn apart, of another aspect, by a factor from `ratio` (even in its logarithm). One of
    `interpolations` is drawn.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        ratio: tuple[float, float],
        interpolations: tuple[InterpolationMode, ...],
    ) -> None:
        super().__init__()
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.interpolations = interpolations

    def forward(self, image: AnyImage) -> AnyImage:
        height, width = image_size(image)
        if max(height, width) > LONGEST * min(height, width):  # of a strip, only what a crop can see is resized
            side = LONGEST * min(height, width)
            image = F2.center_crop(image, [min(height, side), min(width, side)])
            height, width = image_size(image)
        cover = min(height / self.size[0], width / self.size[1])
        factor = 1 / math.sqrt(uniform(*self.scale)) if uniform(0, 1) < 0.5 else 1.0
        low, high = (math.log(bound) for bound in self.ratio)
        wider = math.sqrt(math.exp(uniform(low, high))) if uniform(0, 1) < 0.5 else 1.0
        size = max(1, round(height * factor / wider / cover)), max(1, round(width * factor * wider / cover))
        choice = int(torch.randint(len(self.interpolations), ()).item()) if len(self.interpolations) > 1 else 0
        return resize(image, size, self.interpolations[choice])

    def extra_repr(self) -> str:
        modes = " ".join(mode.value for mode in self.interpolations)
        return f"size={self.size}, scale={self.scale}, ratio={self.ratio}, interpolation={modes}"
