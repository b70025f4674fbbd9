"""JPEGs decoded at 1/2, 1/4 or 1/8: every reader sees the picture where the exact way sees it, to a few hundredths of a
pixel, whatever the sides, the orientation and the resolution of the colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from vertebra.data import create_train_reader, create_transform, decode, jpeg
from vertebra.data.augment.reader import TrainReader
from vertebra.data.decode import decode_reduced
from vertebra.data.eval_reader import OVERSIZE, eval_reader
from vertebra.engine.reading import split

SIDE = 48
APART = 0.06
"""Pixels of the answer. A side taken as rounded up, or a crop as by another size, moves it by 0.1 to 1."""
CONFIG: dict[str, Any] = {
    "input_size": (3, SIDE, SIDE),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
SIDES = st.integers(2 * OVERSIZE * 54, 1000)
"""Of a shorter side from 216 pixels on, everything is reduced."""
BRIGHTNESS = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
SAMPLING = st.sampled_from(["444", "422", "420", "440", "411", "Gray"])


def photo(width: int, height: int, sampling: str = "444", orientation: int = 1) -> bytes:
    """Soft spots of all colours, about three pixels of the answer wide."""
    spots = [max(2, round(side / min(width, height) * SIDE / 3)) for side in (height, width)]
    levels = np.random.default_rng(width * height).integers(0, 256, (*spots, 3), dtype=np.uint8)
    image = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
    if sampling == "Gray":
        pixels, space = np.asarray(image.convert("L"))[..., None], "GRAY"
    else:
        pixels, space = np.asarray(image), "RGB"
    content: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=97, colorspace=space, colorsubsampling=sampling
    )
    if orientation == 1:
        return content
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    block = exif.tobytes()
    return content[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + content[2:]


def displacement(exact: torch.Tensor, quick: torch.Tensor) -> float:
    """How far `quick` lies from `exact`, in pixels, where it lies farthest: a shift and a scale along each side, by
    least squares over the gradients (Lucas and Kanade, 1981). By brightness: colours are stored coarser."""
    a, b = ((x.double() * BRIGHTNESS).sum(0, keepdim=True).numpy() for x in (exact, quick))
    middle = (a + b) / 2
    gy, gx = np.gradient(middle, axis=(1, 2))
    places = np.linspace(-1, 1, a.shape[1])
    y, x = places[None, :, None], places[None, None, :]
    system = np.stack([(gx + 0 * x).ravel(), (gx * x).ravel(), (gy + 0 * y).ravel(), (gy * y).ravel()], 1)
    found = np.linalg.lstsq(system, (a - b).ravel(), rcond=None)[0]
    return float(max(abs(found[0]) + abs(found[1]), abs(found[2]) + abs(found[3])))


def exactly(content: bytes) -> torch.Tensor:
    return create_transform(**CONFIG, is_training=False)(decode(content))


def test_displacement_is_what_it_says() -> None:
    image = decode(photo(600, 600))
    wide = [image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(d, 0, 500 + d, 500)) for d in (0, 5)]
    one, other = (torch.from_numpy(np.array(x)).permute(2, 0, 1).float() for x in wide)
    assert displacement(one, other) == pytest.approx(5 / 500 * SIDE, rel=0.15)
    assert displacement(one, one) == 0


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SAMPLING, st.integers(1, 8))
def test_a_photo_is_answered_as_it_lies(width: int, height: int, sampling: str, orientation: int) -> None:
    content = photo(width, height, sampling, orientation)
    read = eval_reader({**CONFIG, "crop_mode": "center"})
    assert read is not None
    assert displacement(exactly(content), read(content)) < APART


@settings(deadline=None, max_examples=40)
@given(SIDES, SIDES, SAMPLING, st.integers(1, 8))
def test_a_photo_is_measured_as_it_lies(width: int, height: int, sampling: str, orientation: int) -> None:
    content = photo(width, height, sampling, orientation)
    steps = split(create_transform(**CONFIG, is_training=False), exact=False)
    assert steps.at_least is not None
    assert steps.batch is not None
    assert displacement(exactly(content), steps.batch(steps(content)[None])[0]) < APART


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SAMPLING, st.integers(1, 8), st.integers(0, 2**31))
def test_a_photo_is_trained_on_where_it_was_drawn(
    width: int, height: int, sampling: str, orientation: int, seed: int
) -> None:
    """The same draws cut the same part out of a reduced image as out of the whole one."""
    content = photo(width, height, sampling, orientation)
    read = create_train_reader(SIDE, scale=(0.3, 1.0), interpolation="bicubic", color_jitter=0.0)
    assert isinstance(read, TrainReader)
    ways = list[torch.Tensor]()
    for source in (decode(content), content):
        torch.manual_seed(seed)
        ways.append(read.crop(source).float())
    assert displacement(*ways) < APART


@pytest.mark.parametrize("orientation", range(1, 9))
def test_where_the_picture_lies_is_told(orientation: int) -> None:
    reduced = decode_reduced(photo(403, 301, orientation=orientation), at_least=100)
    upright = (403, 301) if orientation < 5 else (301, 403)
    assert (reduced.width, reduced.height) == upright
    left, top, right, bottom = reduced.box
    assert (right - left, bottom - top) == (upright[0] / 2, upright[1] / 2)
    assert 0 in (left, reduced.image.width - right)
    assert 0 in (top, reduced.image.height - bottom)


def test_nothing_is_reduced_without_being_asked() -> None:
    whole = decode_reduced(photo(403, 301))
    assert (whole.height, whole.width, whole.box) == (301, 403, (0, 0, 403, 301))


@pytest.mark.parametrize("way", ["simplejpeg", "Pillow"])
def test_what_pads_the_last_block_is_not_seen(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder may put anything beside the picture. Here white, beyond its last column of seven."""
    if way == "Pillow":
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    grey = np.full((480, 480, 3), 90, np.uint8)
    padded = grey.copy()
    padded[:, 473:] = padded[473:] = 255
    content = bytearray(simplejpeg.encode_jpeg(padded, quality=97, colorspace="RGB", colorsubsampling="444"))
    header = jpeg.jpeg_header(bytes(content))
    assert header is not None
    content[header.place : header.place + 4] = (473).to_bytes(2, "big") * 2
    read = eval_reader({**CONFIG, "crop_mode": "center", "crop_pct": 1.0})
    assert read is not None
    exact = create_transform(**{**CONFIG, "crop_pct": 1.0}, is_training=False)(decode(bytes(content)))
    apart = (read(bytes(content)) - exact).abs()
    assert apart.max() < 3 / 127


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411"])
def test_colours_stay_as_sharp_as_the_answer_shows(sampling: str) -> None:
    """Those of 4:1:1 are reduced as much again: it is decoded at twice the size."""
    for width, height in ((461, 611), (250, 306), (530, 799)):
        content, read = photo(width, height, sampling), eval_reader({**CONFIG, "crop_mode": "center"})
        steps = split(create_transform(**CONFIG, is_training=False), exact=False)
        assert read is not None
        assert steps.batch is not None
        for seen in (read(content), steps.batch(steps(content)[None])[0]):
            assert (seen - exactly(content)).abs().mean() < 2 / 127


@settings(deadline=None, max_examples=40)
@given(st.integers(60, 400), st.integers(60, 400), SAMPLING, st.integers(1, 8), st.integers(0, 99))
def test_what_is_not_reduced_is_trained_on_bit_for_bit(
    width: int, height: int, sampling: str, orientation: int, seed: int
) -> None:
    """And the crops that are drawn are the same, reduced or not."""
    content, boxes, seen = photo(width, height, sampling, orientation), list[Any](), list[torch.Tensor]()
    for source in (content, decode(content)):
        read = Watched((SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
        read.boxes = []
        seen.append(read(source))
        boxes.append(read.boxes)
    assert boxes[0] == boxes[1]
    assert min(boxes[0][-1][2:]) >= 2 * SIDE or torch.equal(*seen)


class Watched(TrainReader):
    """Keeps the crops that it drew."""

    boxes: list[tuple[int, int, int, int]]

    def _box(self, height: int, width: int, draws: list[float]) -> tuple[int, int, int, int]:
        self.boxes.append(super()._box(height, width, draws))
        return self.boxes[-1]
