"""The resize inside a graph is Pillow's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from vertebra.data import create_transform
from vertebra.export.bounds import BOUNDS
from vertebra.export.resample import Photo, decomposed_bicubic
from vertebra.runtime.compare import compare
from vertebra.spec import VertebraError


def config(**changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 64, 64),
        "interpolation": "bicubic",
        "crop_mode": "center",
        "crop_pct": 0.875,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        **changes,
    }


def noise(size: tuple[int, int], low: int = 0, high: int = 256) -> np.ndarray[Any, Any]:
    """(height, width, 3), the worst photo there is: every pixel independent."""
    return np.random.default_rng(0).integers(low, high, (size[1], size[0], 3), dtype=np.uint8)


def levels_off(pixels: np.ndarray[Any, Any], expected: Image.Image, options: dict[str, Any]) -> torch.Tensor:
    """Between a graph's answer to `pixels` and what `create_transform` makes of `expected`, in levels of 255."""
    found = Photo(config(**options))(torch.from_numpy(pixels).unsqueeze(0))[0]
    difference = found - create_transform(**config(**options))(expected)
    return (difference * torch.tensor(config()["std"]).view(-1, 1, 1) * 255).abs()


OPTIONS = [{}, {"interpolation": "bilinear"}, {"crop_mode": "squash"}, {"crop_pct": 1.0}]


@pytest.mark.parametrize("size", [(320, 200), (97, 151), (64, 64), (75, 90), (30, 41), (200, 213), (150, 1200)])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_photo_is_prepared_as_create_transform_prepares_it(size: tuple[int, int], options: dict[str, Any]) -> None:
    """Never more than a level off, and that rarely but where Pillow resizes the height first (some upright photos).

    Half the contrast, because the order also decides what is cut off at 0 and 255 in between.
    """
    pixels = noise(size, 64, 192)
    levels = levels_off(pixels, Image.fromarray(pixels), options)
    assert levels.max() < 1.01
    other_order = size[1] > size[0] and ("crop_mode" in options or size[1] > 2 * size[0])
    assert (levels > 0.5).float().mean() < (0.35 if other_order else 0.02)


@pytest.mark.parametrize("size", [(97, 151), (75, 90), (30, 41), (150, 1200)])
def test_columns_come_first_and_are_cut_off_at_0_and_255(size: tuple[int, int]) -> None:
    """All contrast, and Pillow told the order."""
    pixels = noise(size)
    squash = {"crop_mode": "squash", "crop_pct": 1.0}
    narrow = Image.fromarray(pixels).resize((64, size[1]), Image.Resampling.BICUBIC)
    levels = levels_off(pixels, narrow.resize((64, 64), Image.Resampling.BICUBIC), squash)
    assert levels.max() < 1.01
    assert (levels > 0.5).float().mean() < 0.06


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "lanczos"}, "'lanczos' cannot be put into a graph; allowed: bilinear, bicubic"),
        ({"crop_mode": "border"}, "crop_mode 'border'"),
        ({"input_size": (3, 64, 96)}, "at 64x96"),
        ({"input_size": (1, 64, 64)}, "takes 1 channels"),
        ({"crop_pct": 1.2}, "crop_pct=1.2"),
    ],
)
def test_what_a_graph_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VertebraError, match=message):
        Photo(config(**options))


@pytest.mark.parametrize("size", [(5, 9), (14, 14), (30, 7)])
def test_the_decomposed_bicubic_resize_is_torchs(size: tuple[int, int]) -> None:
    image = torch.randn(1, 4, 14, 14)
    expected = interpolate(image, size, mode="bicubic", antialias=True)
    assert torch.allclose(decomposed_bicubic(image, list(size), False, None), expected, atol=1e-5)


def test_bounds_find_a_shift_harmless_and_a_swap_not() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 10))
    same = compare(logits, logits + 3, BOUNDS["f32"])
    assert same.within(BOUNDS["f32"])
    swapped = logits[:, ::-1]
    assert not compare(logits, swapped, BOUNDS["int8"]).within(BOUNDS["int8"])
    assert compare(logits, swapped, BOUNDS["f32"]).flipped == 4
    assert not compare(logits, np.full_like(logits, np.nan), BOUNDS["int8"]).within(BOUNDS["int8"])
