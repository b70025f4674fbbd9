"""What is read beside the usual formats, and what is said of what is not."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from vertebra.data import DecodeError, decode
from vertebra.data.decode import inspect
from vertebra.data.formats import without_large_text

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/>%s</x:xmpmeta>'


def encoded(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002 - Pillow's name
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def itxt(text: bytes, packed: bool = True) -> bytes:
    body = zlib.compress(text) if packed else text
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([packed]) + b"\0\0\0" + body)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"note\0\0" + zlib.compress(b"x" * 2_000_000)),
        chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(b"x" * 50_000_000)),
        chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_500_000))),
        chunk(b"zTXt", b"note\0\0" + zlib.compress(b"x" * 1_000_000)) * 70,  # each may be, together they may not
        chunk(b"tEXt", b"note\0" + b"x" * 1_000_000) * 70,
    ],
    ids=["zTXt", "iTXt", "iCCP", "many zTXt", "many tEXt"],
)
def test_a_png_is_read_whatever_its_metadata_unpack_to(extra: bytes, before: bool) -> None:
    raw = encoded(Image.fromarray(PIXELS), "PNG")
    at = 33 if before else len(raw) - 12  # behind the header, or behind the pixels
    content = raw[:at] + extra + raw[at:]
    if before or b"iCCP" not in extra:
        with pytest.raises(ValueError, match=r"too large|[Tt]oo much memory"), Image.open(io.BytesIO(content)) as image:
            image.load()
    assert np.array_equal(np.asarray(decode(content)), PIXELS)
    assert (inspect(content).width, inspect(content).height) == (40, 48)


def test_a_long_history_does_not_hide_which_way_is_up() -> None:
    raw = encoded(Image.fromarray(PIXELS), "PNG")
    for long in (b"", b"x" * 2_000_000):
        content = raw[:33] + itxt(XMP % long) + raw[33:]
        assert np.array_equal(np.asarray(decode(content)), np.rot90(PIXELS, -1)), len(long)


def test_only_what_is_too_large_is_left_out() -> None:
    kept = chunk(b"tEXt", b"Author\0me") + chunk(b"zTXt", b"small\0\0" + zlib.compress(b"text"))
    raw = encoded(Image.fromarray(PIXELS), "PNG")
    assert without_large_text(raw[:33] + kept + raw[33:]) is None
    large = chunk(b"zTXt", b"note\0\0" + zlib.compress(b"x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1)))
    assert without_large_text(raw[:33] + large + kept + raw[33:]) == raw[:33] + kept + raw[33:]
    assert without_large_text(b"GIF89a") is None


def tiff(values: NDArray[np.generic], **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4", "f8"])
@pytest.mark.parametrize("bands", [2, 3, 4, 13])
def test_a_tiff_of_bands_is_called_one(bands: int, kind: str, big: bool) -> None:
    """Each that Pillow does not read, of bands side by side or apart."""
    told = {"u": "integers", "i": "signed integers", "f": "reals"}[kind[0]]
    expected = rf"<bytes>: is a TIFF of {bands} bands of {8 * int(kind[1])}-bit ({told}|values)"
    values = np.ones((6, 5, bands), kind)
    for apart in (False, True):
        content = tiff(
            np.moveaxis(values, -1, 0) if apart else values,
            bigtiff=big,
            photometric="minisblack",
            planarconfig="separate" if apart else "contig",
        )
        if (bands, kind, apart) == (2, "u1", False):
            assert decode(content).size == (5, 6)  # grey and alpha
            continue
        with pytest.raises(DecodeError, match=expected):
            decode(content)


def test_bands_of_16_bits_that_lie_apart_are_not_misread() -> None:
    """Pillow takes the two bytes of a value for two pixels."""
    values = np.full((3, 16, 20), 200, np.uint16)
    with pytest.raises(DecodeError, match="is a TIFF of 3 bands of 16-bit values apart from each other"):
        decode(tiff(values, photometric="rgb", planarconfig="separate"))
    eight = tiff(values.astype(np.uint8), photometric="rgb", planarconfig="separate")
    assert np.array_equal(np.asarray(decode(eight)), np.full((16, 20, 3), 200, np.uint8))


def test_every_lossless_jpeg_of_the_odd_images_is_called_one(shared_data: Path) -> None:
    found = sorted((shared_data / "odd-images").glob("*lossless*.jpg"))
    unread = [path for path in found if not isinstance(attempt(path), Image.Image)]
    assert len(unread) > 20
    for path in unread:
        bits = path.name.removeprefix("random").partition("_")[0]
        assert f"{path}: is a lossless JPEG of {bits}-bit values" in str(attempt(path))


def attempt(path: Path) -> Image.Image | str:
    try:
        return decode(path)
    except DecodeError as error:
        return str(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><body>404", "is a web page"),
        (b"\n<html>", "is a web page"),
        (b"<?xml version='1.0'?><svg xmlns='...'>", "is an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (b"%PDF-1.7 ", "is a PDF"),
        (b"8BPS\0\1", "is a Photoshop document"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL image"),
        (b"\x93NUMPY\1\0", "is a numpy array"),
        (b'{"error": "denied"}', "is JSON text"),
        (b"Not found\n", "not an image, but text"),
        (b"\0\0\0\x14ftypisom\0\0\2\0isommp41", "is a video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "is a camera's raw file"),
        (b"\0\0\0\x18ftypavis\0\0\0\0avifmiaf", "is an AVIF of a kind"),
        (bytes(range(1, 200)), "not an image, or damaged beyond recognition"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(content: bytes, said: str) -> None:
    with pytest.raises(DecodeError, match=f"^<bytes>: {said}"):
        decode(content)


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, format="HEIF", **options)
    return buffer.getvalue()


def smooth() -> Image.Image:
    return Image.fromarray(PIXELS[:6, :5]).resize((60, 48), Image.Resampling.BICUBIC)


def test_heic_is_read_upright() -> None:
    photo = smooth()
    assert np.abs(np.asarray(decode(heic(photo, quality=95)), float) - np.asarray(photo, float)).mean() < 8
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(heic(photo, quality=95, exif=exif.tobytes()))
    assert np.abs(np.asarray(turned, float) - np.rot90(np.asarray(photo, float), -1)).mean() < 8
    header = inspect(heic(photo))
    assert (header.format, header.width, header.height, header.orientation) == ("HEIF", 60, 48, 1)
    assert "HEIF" not in Image.OPEN  # what others open stays theirs


def test_heic_that_is_cut_or_too_large_is_refused() -> None:
    content = heic(smooth())
    with pytest.raises(DecodeError, match="truncated or corrupt"):
        decode(content[: len(content) // 2])
    with pytest.raises(DecodeError, match="too many pixels for max_pixels=100"):
        decode(content, max_pixels=100)


def test_without_its_reader_heic_is_named_with_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").write_bytes(heic(smooth()))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DecodeError, match=r"a.HEIC: is a HEIC or HEIF photo, .*: pip install pillow-heif"):
        decode(tmp_path / "a.HEIC")
