"""JPEGs by simplejpeg: the pixels that Pillow gives, or none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vertebra.data import DecodeError, create_train_reader, decode
from vertebra.data import jpeg as module
from vertebra.data.jpeg import decode_upright, jpeg_header


def encoded(size: tuple[int, int] = (61, 47), mode: str = "RGB", **options: Any) -> bytes:
    levels = np.random.default_rng(3).integers(0, 256, (7, 9, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).resize(size).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def of(content: bytes, reduction: int = 1) -> np.ndarray | None:
    header = jpeg_header(content)
    assert header is not None
    return decode_upright(content, header, reduction)


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1, "quality": 95},
        {"subsampling": 2, "progressive": True},
        {"mode": "L"},
        {"exif": turned(1)},
        {"keep_rgb": True},
    ],
    ids=str,
)
def test_pixels_are_pillows(options: dict[str, Any], reduction: int) -> None:
    content = encoded((64 * 5, 64 * 3), **options)
    found = of(content, reduction)
    assert found is not None, "simplejpeg is missing: pip install 'vertebra[train]'"
    at_least = None if reduction == 1 else 64 * 3 // reduction
    assert np.array_equal(found, np.asarray(decode(content, at_least=at_least)))


def test_photos_and_odd_files_are_pillows(shared_data: Path) -> None:
    seen = 0
    for path in sorted((shared_data / "odd-images").iterdir()) + sorted((shared_data / "photos").glob("*.JPEG"))[::8]:
        content = path.read_bytes()
        header = jpeg_header(content)
        found = None if header is None else decode_upright(content, header)
        if found is not None:
            assert np.array_equal(found, np.asarray(decode(content))), path
            seen += 1
    assert seen > 12


@given(st.integers(1, 2000), st.integers(0, 255), st.integers(0, 2000))
@settings(deadline=None, max_examples=60)
def test_damage_is_left_to_pillow_or_read_as_by_it(place: int, value: int, cut: int) -> None:
    content = bytearray(encoded())
    content[place % len(content)] = value
    damaged = bytes(content[: len(content) - cut % len(content)])
    header = jpeg_header(damaged)
    found = None if header is None else decode_upright(damaged, header)
    if found is None:
        return
    try:
        expected = decode(damaged)
    except DecodeError as error:
        pytest.fail(f"read, though Pillow refuses it: {error}")
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_what_is_to_be_turned_is_left_to_pillow(orientation: int) -> None:
    assert of(encoded(exif=turned(orientation))) is None


@pytest.mark.parametrize("size", [(61, 47), (300, 500)])
def test_what_is_broken_in_its_exif_is_upright(size: tuple[int, int]) -> None:
    """Of the errors that Pillow raises there, some are its own, some Python's."""
    for exif in (b"II*\0\x08", b"II*\0\x08\0\0\0\1", b"MM", b"\xff" * 9):
        content = encoded(size, exif=b"Exif\0\0" + exif, dpi=(72, 72))
        expected = decode(content)
        assert np.array_equal(of(content), np.asarray(expected))
        assert create_train_reader(32)(content).shape == (3, 32, 32)


def test_what_pillow_opens_at_no_such_size_is_left_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded((300, 500), exif=turned(1))
    reader = create_train_reader(32, scale=(1.0, 1.0), ratio=(0.6, 0.6), hflip=0.0, color_jitter=None)
    torch.manual_seed(0)
    expected = reader(content)
    for limit in (300 * 500 - 1, 300 * 500 // 2 - 1):  # it warns, it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        torch.manual_seed(0)
        assert (reader(content).int() - expected.int()).abs().float().mean() < 10  # not reduced while it is decoded
    assert of(content) is None


@pytest.mark.parametrize("size", [(61, 47), (300, 500)])
def test_readers_answer_the_same_without_it(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and reduced while it is decoded; so a run goes on elsewhere with the same numbers."""
    content, results = encoded(size), []
    for _ in range(2):
        reader = create_train_reader(
            32, scale=(0.3, 1.0), auto_augment="rand-m9-mstd0.5-inc1", generator=torch.Generator().manual_seed(5)
        )
        results.append([reader(content) for _ in range(12)])
        monkeypatch.setattr(module, "_simplejpeg", lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
