"""Every image of odd-images, made-up ones of every mode, and files that are no images."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vertebra.data import DecodeError, decode
from vertebra.spec.errors import VertebraError


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:  # noqa: A002 - Pillow's name
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data))


def attempt(source: bytes | Path, **options: int) -> Image.Image | str:
    """The image, or what the DecodeError says; any other error fails the test."""
    try:
        return decode(source, **options)
    except DecodeError as error:
        return str(error)


def is_rgb_or_refused(answer: Image.Image | str) -> bool:
    return answer.startswith("<bytes>: ") if isinstance(answer, str) else answer.mode == "RGB"


@pytest.fixture(scope="session")
def odd(shared_data: Path) -> Path:
    return shared_data / "odd-images"


def test_every_odd_image_is_decoded_or_refused_by_name(odd: Path) -> None:
    """Decoded are exactly those that index.csv says Pillow decodes; no format or size that we refuse is among them."""
    with (odd / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 246
    before = threading.active_count()
    wrong = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for row in rows:
            path = odd / row["file"]
            answer = attempt(path)
            if isinstance(answer, str):
                assert answer.startswith(f"{path}: ")
                assert "\n" not in answer
            else:
                assert type(answer) is Image.Image
                assert answer.mode == "RGB"
                assert not answer.info
            if isinstance(answer, str) == (row["decodes_with_pillow"] == "1"):
                wrong.append(row["file"])
    assert wrong == []
    assert caught == []
    assert threading.active_count() == before


def test_bytes_path_and_stream_answer_the_same(odd: Path) -> None:
    path = odd / "hopper_orientation_6.jpg"
    expected = np.asarray(decode(path))
    assert np.array_equal(np.asarray(decode(str(path))), expected)
    assert np.array_equal(pixels(path.read_bytes()), expected)
    with path.open("rb") as file:
        assert np.array_equal(np.asarray(decode(file)), expected)
    stream = io.BytesIO(b"header" + path.read_bytes())
    stream.seek(6)
    assert np.array_equal(np.asarray(decode(stream)), expected)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_exif_orientation_is_applied(odd: Path, suffix: str) -> None:
    """The same photo, stored in seven ways, comes out the same way up each time."""
    images = [np.asarray(decode(odd / f"hopper_orientation_{n}.{suffix}"), dtype=float) for n in range(2, 9)]
    for image in images[1:]:
        assert image.shape == images[0].shape
        difference = np.abs(image - images[0]).mean()
        assert difference < 6  # compression is lossy
        assert difference < np.abs(image - images[0][:, ::-1]).mean() / 2
        assert difference < np.abs(image - images[0][::-1]).mean() / 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_pixel_by_pixel(orientation: int, format: str) -> None:  # noqa: A002
    upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif.tobytes())
    image = decode(data)
    assert np.array_equal(np.asarray(image), upright)
    assert image.getexif().get(0x0112) is None  # nobody downstream turns it again


def test_tiff_orientation_8_swaps_the_sides(odd: Path) -> None:
    with Image.open(odd / "g4_orientation_8.tif") as stored:
        stored.load()
        assert decode(odd / "g4_orientation_8.tif").size == stored.size
    assert decode(odd / "rot1mir1.avif").size == (640, 427)


def test_broken_exif_leaves_the_pixels_alone(odd: Path) -> None:
    for name in ("exif_typeerror.jpg", "invalid-exif.jpg"):
        with Image.open(odd / name) as stored:
            assert np.array_equal(np.asarray(decode(odd / name)), np.asarray(stored.convert("RGB")))


@settings(deadline=None)
@given(levels=st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_16_bit_grey_is_scaled_not_clipped(levels: list[int]) -> None:
    array = np.array([levels], dtype=np.uint16)
    for format in ("PNG", "TIFF"):  # noqa: A001
        assert pixels(encoded(Image.fromarray(array), format))[0, :, 0].tolist() == [level >> 8 for level in levels]


def test_16_bit_big_endian_and_transparent(odd: Path) -> None:
    with Image.open(odd / "16bit.MM.deflate.tif") as image:
        assert image.mode == "I;16B"
        expected = np.asarray(image).astype(np.uint32) >> 8
    assert np.array_equal(np.asarray(decode(odd / "16bit.MM.deflate.tif"))[..., 0], expected)
    data = encoded(Image.fromarray(np.array([[7, 900]], dtype=np.uint16)), transparency=900)
    assert pixels(data)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 128, 255], [0, 128, 255]),
        ([0, 256, 65535], [0, 1, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([0, 500_000, 1_000_000], [0, 128, 255]),
        ([70_000, 70_000, 70_000], [0, 0, 0]),
    ],
)
def test_32_bit_integers(values: list[int], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 10.4, 255.0], [0, 10, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, np.nan, 1.0], [0, 0, 255]),
        ([0.0, np.inf, 1.0], [0, 0, 255]),
    ],
)
def test_32_bit_reals(values: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == expected


def test_16_bit_ppm_is_16_bit_even_when_dark() -> None:
    assert pixels(b"P5 2 1 65535\n" + bytes([0, 200, 1, 0]))[0, :, 0].tolist() == [0, 1]


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    expected = [[255, 255, 255], [10, 20, 30]]
    assert pixels(encoded(clear))[0].tolist() == expected
    half = pixels(encoded(Image.new("LA", (1, 1), (0, 128))))
    assert half[0, 0].tolist() == [127, 127, 127]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette, transparency=0))[0].tolist() == expected  # one clear entry
    assert pixels(encoded(palette, transparency=bytes([0, 255])))[0].tolist() == expected  # alpha an entry
    assert pixels(encoded(palette, "GIF", transparency=0))[0].tolist() == expected
    grey = Image.new("L", (2, 1))
    grey.putpixel((1, 0), 9)
    assert pixels(encoded(grey, transparency=0))[0].tolist() == [[255] * 3, [9] * 3]
    assert pixels(encoded(palette))[0].tolist() == [[255, 0, 0], [10, 20, 30]]  # nothing clear: nothing white


def test_cmyk_and_lab(odd: Path) -> None:
    paper = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert np.asarray(decode(encoded(paper, "JPEG", quality=100))).min() >= 254
    red = np.asarray(decode(odd / "lab-red.tif")).mean((0, 1))
    green = np.asarray(decode(odd / "lab-green.tif")).mean((0, 1))
    assert red.argmax() == 0
    assert green.argmax() == 1


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "PNG", "WEBP"):  # noqa: A001
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert pixels(data)[0, 0].tolist() == [255, 0, 0]


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")


@settings(deadline=None, max_examples=60)
@given(mode=st.sampled_from(MODES), width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99))
def test_any_mode_and_size_becomes_rgb(mode: str, width: int, height: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    image = image.convert("L").convert(mode) if mode in ("I", "F", "I;16", "LA") else image.convert(mode)
    format = "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "TIFF"  # noqa: A001
    result = decode(encoded(image, format))
    assert (result.mode, result.size) == ("RGB", (width, height))
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(np.asarray(result), noise)


@settings(deadline=None, max_examples=150)
@given(
    format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO"]),
    cut=st.floats(0, 1),
    damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
)
def test_damage_raises_a_decode_error_or_nothing(format: str, cut: float, damage: list[tuple[float, int]]) -> None:  # noqa: A002
    content = bytearray(encoded(Image.linear_gradient("L").resize((33, 17)).convert("RGB"), format))
    for place, value in damage:
        content[int(place * len(content))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_rgb_or_refused(attempt(bytes(content[: round(len(content) * cut)]), max_pixels=10_000))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(content: bytes) -> None:
    assert is_rgb_or_refused(attempt(content, max_pixels=10_000))


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.jpg").write_text("not a photo at all")
    (tmp_path / "cut.png").write_bytes(encoded(Image.effect_noise((64, 64), 50))[:2000])
    for name, cause in {
        "empty.jpg": "is empty",
        "notes.jpg": "not an image",
        "cut.png": "truncated or corrupt",
        "absent.jpg": "no such file",
        "": "is a folder",
    }.items():
        with pytest.raises(DecodeError, match=cause) as caught:
            decode(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(DecodeError, match=r"^<bytes>: is empty"):
        decode(b"")
    with pytest.raises(DecodeError, match="cannot decode a int"):
        decode(3)
    with pytest.raises(DecodeError, match="mode 'rb'"):
        decode(io.StringIO("text"))
    with pytest.raises(DecodeError):
        decode("a\0b.jpg")
    assert issubclass(DecodeError, VertebraError)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DecodeError, match="not a regular file"):
        decode(tmp_path / "pipe.jpg")


def test_eps_is_not_handed_to_a_program(odd: Path) -> None:
    with pytest.raises(DecodeError, match="not an image"):
        decode(odd / "pil_sample_cmyk.eps")


def test_max_pixels_is_checked_before_pixels_are_loaded(odd: Path) -> None:
    header_only = encoded(Image.new("L", (300, 200)))[:60]  # no pixels in it: reading any would say "truncated"
    with pytest.raises(DecodeError, match=r"300 x 200 = 60,000 pixels.*raise it"):
        decode(header_only, max_pixels=59_999)
    with pytest.raises(DecodeError, match="truncated"):
        decode(header_only, max_pixels=60_000)
    for name in ("decompression_bomb.gif", "decompression_bomb.ico"):
        with pytest.raises(DecodeError, match="too many pixels"):
            decode(odd / name)
    with pytest.raises(DecodeError, match="positive"):
        decode(header_only, max_pixels=0)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_max_pixels_reaches_above_pillows_own_limit(format: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: A002
    data = encoded(Image.new("RGB", (100, 60)), format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, max_pixels=6000).size == (100, 60)
        assert decode(data, max_pixels=None).size == (100, 60)
        with pytest.raises(DecodeError, match="too many pixels"):
            decode(data, max_pixels=2500)
        assert Image.MAX_IMAGE_PIXELS == 1000
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(DecodeError, match="too many pixels"):
            decode(data, max_pixels=5999)


def test_very_wide_and_one_pixel() -> None:
    assert decode(encoded(Image.new("RGB", (100_000, 1)))).size == (100_000, 1)
    assert pixels(encoded(Image.new("L", (1, 1), 7))).tolist() == [[[7, 7, 7]]]


def test_threads_leave_filters_and_limit_as_they_were(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # some files then go above Pillow's limit, some do not
    names = ["hopper_orientation_5.jpg", "16_bit_noise.tif", "tiny.png", "truncated_jpeg.jpg", "exif_typeerror.jpg"] * 8

    def size(name: str) -> tuple[int, int] | str:
        try:
            return decode(odd / name).size
        except DecodeError:
            return "refused"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        one_by_one = [size(name) for name in names]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(size, names)) == one_by_one
        assert list(warnings.filters) == filters
    assert Image.MAX_IMAGE_PIXELS == 5000
    assert one_by_one[:5] == [(128, 128), (32, 32), (4, 4), "refused", (800, 531)]


def test_the_name_in_the_package_is_the_function() -> None:
    import vertebra.data.decode

    assert callable(vertebra.data.decode)


def test_no_library_writes_to_the_terminal(shared_data: Path) -> None:
    """Libtiff would, for two of these files, in lines of its own without a file's name."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom vertebra.data import DecodeError, decode\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.tif*')):\n"
        "    try:\n        decode(path)\n    except DecodeError:\n        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(shared_data / "odd-images")], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
