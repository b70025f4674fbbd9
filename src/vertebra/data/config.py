"""Which preprocessing a model wants: its checkpoint's values, where the caller gives no other.

Sizes are pixels, channels first: (channels, height, width). mean and std are on the 0..1 scale.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import cast

from vertebra.spec.errors import VertebraError
from vertebra.spec.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    DPN_MEAN,
    DPN_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
)

DEFAULT_CROP_PCT = 0.875
DEFAULT_CROP_MODE = "center"
IMAGENET_DEFAULT_MEAN = IMAGENET_MEAN
IMAGENET_DEFAULT_STD = IMAGENET_STD
IMAGENET_INCEPTION_MEAN = INCEPTION_MEAN
IMAGENET_INCEPTION_STD = INCEPTION_STD
IMAGENET_DPN_MEAN = DPN_MEAN
IMAGENET_DPN_STD = DPN_STD
OPENAI_CLIP_MEAN = CLIP_MEAN
OPENAI_CLIP_STD = CLIP_STD

_DEFAULTS: dict[str, object] = {
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "crop_pct": DEFAULT_CROP_PCT,
    "crop_mode": DEFAULT_CROP_MODE,
}

_log = logging.getLogger(__name__)


def resolve_data_config(
    args: Mapping[str, object] | None = None,
    pretrained_cfg: Mapping[str, object] | None = None,
    model: object = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, object]:
    """What `create_transform` needs: input_size, interpolation, mean, std, crop_pct, crop_mode.

    `args` wins over the configuration (`pretrained_cfg`, else the model's own), and that over the defaults; an absent,
    `None`, empty or zero entry is not given. `args` is often `vars()` of a whole command line, so other keys in it are
    allowed. `img_size` in it means a square. `use_test_size` prefers the checkpoint's test_input_size and
    test_crop_pct. `verbose` logs the result.
    """
    if not args and not pretrained_cfg and model is None:
        raise VertebraError("no source for a data configuration: give args, pretrained_cfg or model")
    given = args or {}
    config = pretrained_cfg or _config_of(model)
    input_size = _input_size(given, config, use_test_size)
    resolved: dict[str, object] = {"input_size": input_size}
    for key, default in _DEFAULTS.items():
        stored = config.get(key)
        if key == "crop_pct" and use_test_size:
            stored = config.get("test_crop_pct") or stored
        resolved[key] = given.get(key) or stored or default
    for key in ("mean", "std"):
        if given.get(key) is not None:
            resolved[key] = _per_channel(key, given[key], _channels(given))
    if verbose:
        _log.info("data configuration: %s", ", ".join(f"{key}={value}" for key, value in resolved.items()))
    return resolved


def resolve_model_data_config(
    model: object,
    args: Mapping[str, object] | None = None,
    pretrained_cfg: Mapping[str, object] | None = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, object]:
    """`resolve_data_config` with the model first."""
    return resolve_data_config(args, pretrained_cfg, model, use_test_size, verbose)


def _config_of(model: object) -> Mapping[str, object]:
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        if isinstance(config, Mapping) and config:
            return cast("Mapping[str, object]", config)
    return {}


def _channels(given: Mapping[str, object]) -> int:
    """As the caller gives them: the convention is that a configuration's input_size has no say in this."""
    if given.get("input_size") is not None:
        return _three("input_size", given["input_size"])[0]
    for key in ("in_chans", "chans"):
        count = given.get(key)
        if count is not None:
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise VertebraError(f"{key}={count!r}: give a positive whole number of channels")
            return count
    return 3


def _input_size(given: Mapping[str, object], config: Mapping[str, object], use_test_size: bool) -> Sequence[int]:
    stored = config.get("input_size") or (_channels(given), 224, 224)
    if use_test_size:
        stored = config.get("test_input_size") or stored
    stored_size = _three("input_size", stored)
    size = given.get("input_size")
    if size is not None:
        return tuple(_three("input_size", size))
    side = given.get("img_size")
    if side is None:
        return stored_size
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise VertebraError(f"img_size={side!r}: give one positive whole number (a square, in pixels), or input_size")
    return (_channels(given), side, side)


def _three(name: str, value: object) -> Sequence[int]:
    sizes = _sequence(value)
    if sizes is None or len(sizes) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise VertebraError(f"{name}={value!r}: give (channels, height, width), three positive whole numbers")
    return cast("Sequence[int]", sizes)


def _per_channel(name: str, value: object, channels: int) -> tuple[float, ...]:
    numbers = _sequence(value)
    if numbers is None or not all(isinstance(n, (int, float)) for n in numbers) or len(numbers) not in (1, channels):
        raise VertebraError(f"{name}={value!r}: give a sequence of 1 or {channels} numbers, one a channel")
    values = tuple(cast("Sequence[float]", numbers))
    return values * channels if len(values) == 1 else values


def _sequence(value: object) -> Sequence[object] | None:
    """Lists and tuples; a string is a sequence, too, but never meant as one here."""
    return cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else None
