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
from vertebra.data.jpeg import decode_stored, jpeg_header, orientation


def encoded(size: tuple[int, int] = (61, 47), mode: str = "RGB", **options: Any) -> bytes:
    levels = np.random.default_rng(3).integers(0, 256, (7, 9, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).resize(size).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def of(content: bytes, reduction: int = 1, rows: int | None = None) -> np.ndarray | None:
    header = jpeg_header(content)
    assert header is not None
    return decode_stored(content, header, reduction, rows)


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
        found = None if header is None or orientation(content, header) != 1 else decode_stored(content, header)
        if found is not None:
            assert np.array_equal(found, np.asarray(decode(content))), path
            seen += 1
    assert seen > 12


@given(
    st.tuples(st.integers(9, 200), st.integers(1, 300)),  # up to 8 wide, it cannot be told by how much it is reduced
    st.sampled_from([1, 2, 4, 8]),
    st.floats(0, 1),
    st.fixed_dictionaries(
        {"subsampling": st.sampled_from([0, 1, 2]), "progressive": st.booleans(), "mode": st.sampled_from("LR")},
        optional={"restart_marker_rows": st.just(1), "keep_rgb": st.just(True), "optimize": st.just(True)},
    ),
)
@settings(deadline=None, max_examples=200)
def test_the_upper_rows_are_those_of_the_whole(
    size: tuple[int, int], reduction: int, share: float, options: dict[str, Any]
) -> None:
    options["mode"] = "RGB" if options["mode"] == "R" else "L"
    if options.get("keep_rgb") or options["mode"] == "L":
        del options["subsampling"]
    content = encoded(size, **options)
    whole = of(content, reduction)
    assert whole is not None
    whole = whole.copy()  # the next is decoded into the same place
    rows = max(1, round(share * len(whole)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WORTH", 1)
        upper = of(content, reduction, rows)
    assert upper is not None
    assert np.array_equal(upper, whole[:rows])


def test_decoding_stops_at_the_last_row_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not in a file that was cut off, of which `decode` says so."""
    heights = list[int]()
    decoder = module._simplejpeg()
    assert decoder is not None

    def watched(content: bytes, **options: Any) -> np.ndarray:
        heights.append(len(pixels := decoder(content, **options)))
        return pixels

    monkeypatch.setattr(module, "_simplejpeg", lambda: watched)
    content = encoded((300, 400), subsampling=2)
    for reduction, rows, height in ((1, 100, 102), (2, 100, 102), (1, 390, 400), (1, None, 400)):
        found = of(content + b"and what phones put behind", reduction, rows)
        assert found is not None
        assert (len(found), heights.pop()) == (rows or 400, height)
    assert of(content[: len(content) * 3 // 4], rows=100) is None


def behind(content: bytes, marker: bytes, after: int = 0) -> int:
    """The place of what follows a marker."""
    return content.index(marker, after) + 2


def broken() -> dict[str, bytes]:
    """JPEGs that Pillow refuses, or reads otherwise than their upper part alone would be."""
    content, progressive = encoded((300, 400)), encoded((300, 400), progressive=True)
    header = jpeg_header(content)
    assert header is not None
    scan, place = behind(content, b"\xff\xda"), header.place
    second = behind(progressive, b"\xff\xc4", behind(progressive, b"\xff\xda"))
    stuffed = content.rindex(b"\xff\x00") + 1
    params = scan + content[scan + 1] - 3
    return {
        "a table between scans": progressive[: second + 2] + b"\xff" + progressive[second + 3 :],
        "only the first scan": progressive[: second - 2] + b"\xff\xd9",
        "a marker below": content[:stuffed] + b"\x02" + content[stuffed + 1 :],
        "another image behind a cut": content[: len(content) * 3 // 4] + content,
        "too tall": content[:place] + b"\xff\xff" + content[place + 2 :],
        "a warning, then an error": content[: scan + 4] + b"\x33" + content[scan + 5 : params + 1] + b"\x3e"
        + content[params + 2 :],
    }  # fmt: skip


@pytest.mark.parametrize("name", broken())
def test_what_is_wrong_below_the_rows_is_seen(name: str) -> None:
    """And nothing is handed out that the image before has left."""
    content = broken()[name]
    assert of(encoded((300, 400))) is not None
    found = of(content, rows=100)
    try:
        expected = np.asarray(decode(content))
    except DecodeError:
        assert found is None
    else:
        assert found is None or np.array_equal(found, expected[:100])


@given(
    st.sampled_from([{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0, "quality": 95}]),
    st.integers(1, 30_000),
    st.integers(0, 400),
    st.one_of(st.binary(max_size=4), st.integers(0, 255).map(lambda value: bytes((255, value))), st.just(bytes(200))),
    st.booleans(),
    st.sampled_from([None, 5, 30, 100]),
)
@settings(deadline=None, max_examples=300)
def test_damage_is_left_to_pillow_or_read_as_by_it(
    options: dict[str, Any], place: int, lost: int, put: bytes, end: bool, rows: int | None
) -> None:
    """Something else stands where something was, perhaps to the end."""
    content = encoded((200, 150), **options)
    place %= len(content)
    damaged = content[:place] + put + (content[place + lost :] if end else b"")
    header = jpeg_header(damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WORTH", 1)
        found = None if header is None else decode_stored(damaged, header, rows=rows)
    if found is None:
        return
    try:
        expected = decode(damaged)
    except DecodeError as error:
        pytest.fail(f"read, though Pillow refuses it: {error}")
    assert np.array_equal(found, np.asarray(expected)[:rows])


@pytest.mark.parametrize("way", range(10))
def test_exif_tells_the_way_up(way: int) -> None:
    content = encoded(exif=turned(way))
    header = jpeg_header(content)
    assert header is not None
    assert orientation(content, header) == (way if way in range(1, 9) else 1)


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
    header = jpeg_header(content)
    assert header is not None
    assert orientation(content, header) is None


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
