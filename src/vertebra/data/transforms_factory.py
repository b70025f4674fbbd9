"""`create_transform` and its parts, under the names and with the defaults that code in this field already uses."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torchvision.transforms import v2

from vertebra.data.augment.erasing import EraseMode, RandomErasing
from vertebra.data.augment.kernels import Resampling
from vertebra.data.augment.ops import Surroundings
from vertebra.data.augment.policies import auto_augment as make_policy
from vertebra.data.augment.reader import TrainReader
from vertebra.data.config import (
    DEFAULT_CROP_MODE,
    DEFAULT_CROP_PCT,
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
)
from vertebra.data.transforms import (
    OF_PILLOW,
    RANDOM_INTERPOLATIONS,
    CenterCropOrPad,
    Normalize,
    RandomCropOrPad,
    RandomResizedCrop,
    RandomResizeKeepRatio,
    Resize,
    ToBytes,
    ToTensor,
    TrimBorder,
    interpolation_mode,
)
from vertebra.spec.errors import VertebraError, unknown_name

Numbers = float | Sequence[float]

CROP_MODES = ("center", "squash", "border")
TRAIN_CROP_MODES = ("rrc", "rkrc", "rkrr")


def create_transform(
    input_size: int | Sequence[int] = 224,
    is_training: bool = False,
    no_aug: bool = False,
    train_crop_mode: str | None = None,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: Numbers | None = 0.4,
    color_jitter_prob: float | None = None,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "bilinear",
    mean: Numbers = IMAGENET_DEFAULT_MEAN,
    std: Numbers = IMAGENET_DEFAULT_STD,
    re_prob: float = 0.0,
    re_mode: EraseMode = "const",
    re_count: int = 1,
    re_num_splits: int = 0,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    tf_preprocessing: bool = False,
    use_prefetcher: bool = False,
    normalize: bool = True,
    separate: bool = False,
    naflex: bool = False,
    patch_size: int | tuple[int, int] = 16,  # noqa: ARG001 - naflex's, as the three below
    max_seq_len: int = 576,  # noqa: ARG001
    patchify: bool = False,
    patchify_channels_last: bool = True,  # noqa: ARG001
    patchify_flatten: bool = True,  # noqa: ARG001
    **unknown: object,
) -> Any:
    """An image's way to a tensor: evaluation by default, augmentation with `is_training` (`no_aug`: without it).

    `input_size` is a side, (height, width) or (channels, height, width). The other parameters are those of
    `transforms_imagenet_eval` and `transforms_imagenet_train`; those of the way not taken have no effect, so that one
    dictionary serves both. `use_prefetcher` leaves normalising to who reads, as `normalize=False`. An option that does
    not exist raises `UnknownOptionError`. A `v2.Compose`; with `separate`, three that follow each other.
    """
    for name in unknown:
        raise unknown_name("option", name, sorted(_OPTIONS), where="create_transform")
    _not_here(tf_preprocessing=tf_preprocessing, naflex=naflex, patchify=patchify)
    if separate and (no_aug or not is_training):
        raise VertebraError("separate=True splits augmentation: give is_training=True, and not no_aug=True")
    normalize = normalize and not use_prefetcher
    if not is_training:
        return transforms_imagenet_eval(
            input_size, crop_pct, crop_mode, crop_border_pixels, interpolation, mean, std, normalize=normalize
        )
    if no_aug:
        return transforms_noaug_train(input_size, interpolation, mean, std, normalize=normalize)
    return transforms_imagenet_train(
        input_size,
        scale,
        ratio,
        train_crop_mode,
        hflip,
        vflip,
        color_jitter,
        color_jitter_prob,
        grayscale_prob=grayscale_prob,
        gaussian_blur_prob=gaussian_blur_prob,
        auto_augment=auto_augment,
        interpolation=interpolation,
        mean=mean,
        std=std,
        re_prob=re_prob,
        re_mode=re_mode,
        re_count=re_count,
        re_num_splits=re_num_splits,
        normalize=normalize,
        separate=separate,
    )


def _not_here(**asked: object) -> None:
    """Raise for an option of the field's that changes something, and is not done here."""
    for name, value in asked.items():
        if value:
            raise VertebraError(f"{name}={value!r}: transforms here have no such thing; leave it out")


_OPTIONS = tuple(name for name in create_transform.__annotations__ if name not in ("unknown", "return"))


def transforms_imagenet_eval(
    img_size: int | Sequence[int] = 224,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    interpolation: str = "bilinear",
    mean: Numbers = IMAGENET_DEFAULT_MEAN,
    std: Numbers = IMAGENET_DEFAULT_STD,
    use_prefetcher: bool = False,
    normalize: bool = True,
) -> v2.Compose:
    """Resize to img_size / crop_pct (rounded down), keep the middle, scale to 0..1, normalise.

    `crop_mode`: "center" resizes the shorter side, "squash" both sides (the aspect ratio is lost), "border" the longer
    side and fills what is missing with the mean. `normalize=False`, or `use_prefetcher`, ends with uint8.
    `crop_border_pixels` are cut off on all sides before that.
    """
    size = _square(_last_two(img_size))
    steps: list[nn.Module] = [TrimBorder(crop_border_pixels)] if crop_border_pixels else []
    steps += _resize_and_crop(size, interpolation, crop_pct, crop_mode, mean)
    return v2.Compose([*steps, *_finish(mean, std, normalize and not use_prefetcher)])


def transforms_imagenet_train(
    img_size: int | Sequence[int] = 224,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    train_crop_mode: str | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: Numbers | None = 0.4,
    color_jitter_prob: float | None = None,
    force_color_jitter: bool = False,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "random",
    mean: Numbers = IMAGENET_DEFAULT_MEAN,
    std: Numbers = IMAGENET_DEFAULT_STD,
    re_prob: float = 0.0,
    re_mode: EraseMode = "const",
    re_count: int = 1,
    re_num_splits: int = 0,  # noqa: ARG001 - splits of a batch; this is an image
    use_prefetcher: bool = False,
    normalize: bool = True,
    separate: bool = False,
) -> Any:
    """A random crop, flips, colours, erasing; with `separate` three `v2.Compose`: crop and flips, colours, the rest.

    `train_crop_mode`: "rrc" resizes a random part (`scale`: share of the area, `ratio`: width to height); "rkrc" and
    "rkrr" resize the image to cover `img_size`, at times larger (`scale`: share of the area that is seen) or of another
    aspect (`ratio`), and keep its middle (rkrc) or a random part (rkrr), mirrored where something is missing.

    `color_jitter` is one strength for brightness, contrast and saturation, or three (four with hue) strengths.
    `auto_augment` names a policy (`vertebra.data.augment.policies`); but for "3a", it takes the jitter's place.
    `force_color_jitter` lets it stand beside. `interpolation="random"` draws bilinear or bicubic for each image.
    Erasing needs `normalize`, and is left out with `use_prefetcher`.
    """
    normalize = normalize and not use_prefetcher
    size = _square(_last_two(img_size))
    geometry = [*_random_crop(size, interpolation, scale, ratio, train_crop_mode or "rrc"), *_flips(hflip, vflip)]
    jitter = color_jitter if force_color_jitter else _jitter_beside(auto_augment, color_jitter)
    policy = _policy(auto_augment, interpolation, mean)
    colour = [*policy, *_colour(jitter, color_jitter_prob, grayscale_prob, gaussian_blur_prob)]
    erasing = _erasing(re_prob if normalize else 0, re_mode, re_count)
    parts = geometry, colour, [*_finish(mean, std, normalize), *erasing]
    if separate:
        return tuple(v2.Compose(steps or [nn.Identity()]) for steps in parts)
    return v2.Compose([step for steps in parts for step in steps])


def create_train_reader(
    input_size: int | Sequence[int] = 224,
    *,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: Numbers | None = 0.4,
    color_jitter_prob: float | None = None,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "random",
    mean: Numbers = IMAGENET_DEFAULT_MEAN,
    generator: torch.Generator | None = None,
) -> TrainReader:
    """`create_transform(is_training=True)` from encoded bytes or a path to uint8 (3, h, w).

    Normalise and erase whole batches behind it, with `NormalizeBatch` and `RandomErasingBatch`; `mean` only fills what
    `auto_augment` leaves empty. `generator` serves crop, flips and policy; jitter, grey and blur draw from torch's own.
    """
    modes = RANDOM_INTERPOLATIONS if interpolation == "random" else (interpolation_mode(interpolation),)
    if not set(modes).isdisjoint(OF_PILLOW):
        raise VertebraError(f"a tensor cannot be resized with {interpolation!r}: use 'bicubic' or 'bilinear'")
    jitter = _jitter_beside(auto_augment, color_jitter)
    colour = _colour(jitter, color_jitter_prob, grayscale_prob, gaussian_blur_prob)
    return TrainReader(
        _square(_last_two(input_size)),
        scale=_interval("scale", scale or (0.08, 1.0)),
        ratio=_interval("ratio", ratio or (3 / 4, 4 / 3)),
        interpolations=modes,
        hflip=_probability("hflip", hflip),
        vflip=_probability("vflip", vflip),
        steps=[*_policy(auto_augment, interpolation, mean, generator), *colour],
        generator=generator,
    )


def transforms_noaug_train(
    img_size: int | Sequence[int] = 224,
    interpolation: str = "bilinear",
    mean: Numbers = IMAGENET_DEFAULT_MEAN,
    std: Numbers = IMAGENET_DEFAULT_STD,
    use_prefetcher: bool = False,
    normalize: bool = True,
) -> v2.Compose:
    """Nothing random: an int `img_size` resizes the shorter side and crops, (height, width) squashes."""
    return v2.Compose(
        [*_plain(_last_two(img_size), interpolation), *_finish(mean, std, normalize and not use_prefetcher)]
    )


def _last_two(size: int | Sequence[int]) -> int | tuple[int, int]:
    sizes = cast("tuple[object, ...]", (size,) if isinstance(size, int) else tuple(size))
    if not 1 <= len(sizes) <= 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise VertebraError(
            f"input_size={size!r}: give a side, (height, width) or (channels, height, width), in pixels above 0"
        )
    whole = cast("tuple[int, ...]", sizes)
    return whole[0] if len(whole) == 1 else (whole[-2], whole[-1])


def _square(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _resize_and_crop(
    size: tuple[int, int], interpolation: str, crop_pct: float | None, crop_mode: str | None, mean: Numbers
) -> list[nn.Module]:
    share = DEFAULT_CROP_PCT if crop_pct is None else crop_pct
    if not 0 < share < math.inf:
        raise VertebraError(f"crop_pct={crop_pct}: give a share above 0, as 0.875")
    mode = interpolation_mode(interpolation)
    larger = (math.floor(size[0] / share), math.floor(size[1] / share))
    match crop_mode or DEFAULT_CROP_MODE:
        case "center" if size[0] == size[1]:
            return [Resize(larger[0], mode, window=size), v2.CenterCrop(size)]
        case "center":
            return [Resize(larger, mode, fit="cover", window=size), v2.CenterCrop(size)]
        case "squash":
            return [Resize(larger, mode, fit="squash"), v2.CenterCrop(size)]
        case "border":
            values = [mean] if isinstance(mean, (int, float)) else mean
            fill = tuple(round(255 * value) for value in values)
            return [Resize(larger, mode, fit="contain"), CenterCropOrPad(size, fill)]
        case other:
            raise unknown_name("crop_mode", other, CROP_MODES)


def _plain(size: int | tuple[int, int], interpolation: str) -> list[nn.Module]:
    mode = interpolation_mode("bilinear" if interpolation == "random" else interpolation)
    window = _square(size)
    return [Resize(size, mode, fit="squash", window=window), v2.CenterCrop(window)]


def _random_crop(
    size: tuple[int, int],
    interpolation: str,
    scale: tuple[float, float] | None,
    ratio: tuple[float, float] | None,
    mode: str,
) -> list[nn.Module]:
    if mode not in TRAIN_CROP_MODES:
        raise unknown_name("train_crop_mode", mode, TRAIN_CROP_MODES)
    modes = RANDOM_INTERPOLATIONS if interpolation == "random" else (interpolation_mode(interpolation),)
    usual = ((0.08, 1.0), (3 / 4, 4 / 3)) if mode == "rrc" else ((0.8, 1.0), (0.9, 1 / 0.9))
    factors, aspects = _interval("scale", scale or usual[0]), _interval("ratio", ratio or usual[1])
    if mode == "rrc":
        return [RandomResizedCrop(size, factors, aspects, modes)]
    crop = CenterCropOrPad(size) if mode == "rkrc" else RandomCropOrPad(size)
    return [RandomResizeKeepRatio(size, factors, aspects, modes), crop]


def _flips(hflip: float, vflip: float) -> list[nn.Module]:
    steps = list[nn.Module]()
    if hflip > 0:
        steps.append(v2.RandomHorizontalFlip(p=_probability("hflip", hflip)))
    if vflip > 0:
        steps.append(v2.RandomVerticalFlip(p=_probability("vflip", vflip)))
    return steps


def _jitter_beside(auto_augment: str | None, jitter: Numbers | None) -> Numbers | None:
    """Policies change colours themselves; 3-Augment is meant to stand beside the jitter (DeiT III)."""
    return jitter if not auto_augment or "3a" in auto_augment else None


def _policy(
    config: str | None, interpolation: str, mean: Numbers, generator: torch.Generator | None = None
) -> list[nn.Module]:
    if not config:
        return []
    if interpolation not in ("random", "bilinear", "bicubic"):
        raise VertebraError(
            f"interpolation={interpolation!r} cannot rotate or shear, as auto_augment={config!r} does: "
            "use 'bilinear', 'bicubic' or 'random'"
        )
    values = (mean,) * 3 if isinstance(mean, (int, float)) else tuple(mean)
    if len(values) != 3:
        raise VertebraError(f"auto_augment={config!r} works on RGB images: give a mean of 3 values, not {len(values)}")
    red, green, blue = (min(255, round(255 * value)) for value in values)
    modes: tuple[Resampling, ...] = ("bilinear", "bicubic")
    around = Surroundings((red, green, blue), tuple(m for m in modes if interpolation in ("random", m)))
    return [make_policy(config, around, generator)]


def _colour(
    jitter: Numbers | None, jitter_prob: float | None, grayscale_prob: float, blur_prob: float
) -> list[nn.Module]:
    steps: list[nn.Module] = []
    if jitter:
        strengths = (float(jitter),) * 3 if isinstance(jitter, (int, float)) else tuple(jitter)
        if len(strengths) not in (3, 4):
            raise VertebraError(
                f"color_jitter={jitter}: give one strength, or those of brightness, contrast, saturation"
            )
        step: nn.Module = v2.ColorJitter(*strengths)
        if jitter_prob is not None:
            step = v2.RandomApply([step], _probability("color_jitter_prob", jitter_prob))
        steps.append(step)
    if grayscale_prob > 0:
        steps.append(v2.RandomGrayscale(p=_probability("grayscale_prob", grayscale_prob)))
    if blur_prob > 0:
        blur = v2.GaussianBlur(kernel_size=23, sigma=(0.1, 2.0))  # the kernel and sigmas of SimCLR at 224 pixels
        steps.append(v2.RandomApply([blur], p=_probability("gaussian_blur_prob", blur_prob)))
    return steps


def _finish(mean: Numbers, std: Numbers, normalize: bool) -> list[nn.Module]:
    return [ToTensor(), Normalize(mean, std)] if normalize else [ToBytes()]


def _erasing(probability: float, mode: EraseMode, count: int) -> list[nn.Module]:
    return [RandomErasing(_probability("re_prob", probability), mode, count)] if probability > 0 else []


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise VertebraError(f"{name}={value}: a probability lies between 0 and 1")
    return value


def _interval(name: str, bounds: tuple[float, float]) -> tuple[float, float]:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise VertebraError(f"{name}={bounds}: give (least, greatest), both above 0")
    return bounds[0], bounds[1]
