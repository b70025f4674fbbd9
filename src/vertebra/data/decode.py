"""Bytes to pixels: any photo in, an upright RGB image of 8 bits a channel out, or one `DecodeError`."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from vertebra.data.boundary import open_regular
from vertebra.data.formats import FILE_FAULTS, PNG, misread, open_image, without_large_text
from vertebra.data.padding import coarse, mend_image
from vertebra.spec.errors import VertebraError

DEFAULT_MAX_PIXELS = 178_956_970
"""About 0.5 GB of RGB; where Pillow, too, begins to refuse."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(VertebraError):
    """An image that cannot be read; one line that names the file and the cause."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """An image, or a JPEG decoded at 1/2, 1/4 or 1/8 of its size, whose sides are then rounded up to whole pixels."""

    image: Image.Image
    """Upright RGB."""
    height: int
    """Of the whole image, upright. Whatever is resized or cropped is laid out by these sides."""
    width: int
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the whole image in `image`, in its pixels: what lies outside is the padding of a
    last block."""


def decode(
    source: bytes | str | os.PathLike[str] | BinaryIO,
    *,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    at_least: int | None = None,
) -> Image.Image:
    """Read one image: mode RGB, 8 bits a channel, upright as EXIF says; of an animation, the first frame.

    Transparent parts become white; 16-bit levels keep their upper 8 bits; embedded colour profiles are not applied.
    A `str` is a path; a binary file is read from where it stands. `max_pixels` (width x height, `None` for no limit)
    is checked before pixels are loaded. With `at_least`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long
    as its shorter side keeps that many pixels: several times faster where a small image is all that is wanted. Its
    sides are then rounded: where anything is measured in it, `decode_reduced` says where the image lies.
    Raises `DecodeError`. Safe to call from several threads.
    """
    return decode_reduced(source, max_pixels=max_pixels, at_least=at_least).image


def decode_reduced(
    source: bytes | str | os.PathLike[str] | BinaryIO,
    *,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    at_least: int | None = None,
) -> Reduced:
    """`decode`, and where the whole image lies in what it gives."""
    if max_pixels is not None and max_pixels < 1:
        raise DecodeError(f"max_pixels={max_pixels}: give a positive number of pixels, or None for no limit")
    name, reopen = _opener(source)
    with pillow_silenced():
        try:
            with reopen() as stream:
                return _read(stream, name, max_pixels, at_least)
        except Image.DecompressionBombError:
            pass  # Pillow's limit at that moment, which another thread may have set: only max_pixels decides
        with _pillow_limit(max_pixels):
            try:
                with reopen() as stream:
                    return _read(stream, name, max_pixels, at_least)
            except Image.DecompressionBombError as error:
                raise _too_large(name, max_pixels, str(error)) from error


@dataclass(frozen=True, slots=True)
class Header:
    """What an encoded image says of itself."""

    format: str
    """One of `FORMATS`."""
    mode: str
    """Pillow's, as "RGB", "CMYK" or "I;16"."""
    width: int
    """Pixels, as stored: before EXIF turns it."""
    height: int
    orientation: int
    """EXIF's; 1: upright."""
    frames: int
    """Of an animation, or pages; 1: a still image."""
    deep: bool
    """More than 8 bits a channel."""
    alpha: bool
    """An alpha channel, or a transparent colour."""


def inspect(content: bytes) -> Header:
    """Format, size and mode of an encoded image, without its pixels. Raises `DecodeError`.

    A PNG whose EXIF follows its pixels counts as upright.
    """
    with pillow_silenced():
        try:
            with open_image(_bytes_stream(content, "<bytes>")) as image:
                deep = image.mode.startswith(("I", "F")) or ";16" in str(getattr(image, "tile", ""))
                late = image.format == "PNG" and "exif" not in image.info  # to look for it would decode the pixels
                return Header(
                    "JPEG" if image.format == "MPO" else image.format or "",  # a JPEG with a preview behind it
                    image.mode,
                    image.width,
                    image.height,
                    1 if late else _orientation(image),
                    _frames(image),
                    deep,
                    image.has_transparency_data,
                )
        except Image.DecompressionBombError as error:
            raise _too_large("<bytes>", None, str(error)) from error
        except FILE_FAULTS as error:
            lighter = without_large_text(content)
            if lighter is None:
                raise _unreadable("<bytes>", error) from error
            return inspect(lighter)


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1)) if image.format in ("GIF", "PNG", "WEBP", "AVIF", "TIFF") else 1
    except FILE_FAULTS:
        return 1  # the first frame is fine, and no other is used


def _opener(source: bytes | str | os.PathLike[str] | BinaryIO) -> tuple[str, Callable[[], BinaryIO]]:
    """What to call the source in messages, and how to read it (again) from its start."""
    if isinstance(source, bytes):
        return "<bytes>", lambda: _bytes_stream(source, "<bytes>")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return str(path), lambda: _file_stream(path)
    if not hasattr(source, "read"):
        raise DecodeError(f"cannot decode a {type(source).__name__}: give bytes, a path, or a file opened in mode 'rb'")
    label: object = getattr(source, "name", None)
    name = label if isinstance(label, str) else "<stream>"
    try:
        content = cast("bytes | str", source.read())
    except FILE_FAULTS as error:
        raise DecodeError(f"{name}: cannot be read: {_cause(error)}") from error
    if not isinstance(content, bytes):
        raise DecodeError(f"{name}: gives {type(content).__name__}, not bytes; open the file in mode 'rb'")
    return name, lambda: _bytes_stream(content, name)


def _bytes_stream(content: bytes, name: str) -> BinaryIO:
    if not content:
        raise DecodeError(f"{name}: is empty (0 bytes)")
    return io.BytesIO(content)


def _file_stream(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DecodeError(f"{path}: is a folder, not an image file")
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            raise DecodeError(f"{path}: is empty (0 bytes)")
        return io.BufferedReader(open_regular(path))
    except FileNotFoundError as error:
        raise DecodeError(f"{path}: no such file") from error
    except OSError as error:
        raise DecodeError(f"{path}: cannot be read: {error.strerror}") from error
    except VertebraError as error:
        raise DecodeError(str(error)) from error
    except ValueError as error:  # a NUL in the path
        raise DecodeError(f"{str(path)!r}: cannot be read: {error}") from error


def _read(stream: BinaryIO, name: str, max_pixels: int | None, at_least: int | None) -> Reduced:
    """Lets DecompressionBombError through: only the caller knows whether Pillow's own limit is the one that counts."""
    try:
        with open_image(stream) as image:
            if kind := misread(image):
                raise DecodeError(f"{name}: is {kind}, which is not read here; save them pixel by pixel")
            _check_size(image, name, max_pixels)
            width, height = image.size
            drafted = None if at_least is None else _draft(image, at_least)
            image.load()
            if drafted is not None:
                mend_image(image, height, width, round(width / drafted[1][2]))
            _check_size(image, name, max_pixels)  # an icon's header may lie about the picture inside
            if drafted is None:
                width, height = image.size
            right, bottom = image.size if drafted is None else drafted[1][2:]
            reduced = _turn_upright(Reduced(image, height, width, (0.0, 0.0, right, bottom)), _orientation(image))
            rgb = _to_rgb(reduced.image)
    except DecodeError:
        raise
    except FILE_FAULTS as error:
        stream.seek(0)
        start = stream.read(len(PNG))
        lighter = without_large_text(start + stream.read()) if start == PNG else None
        if lighter is None:
            raise _unreadable(name, error) from error
        return _read(io.BytesIO(lighter), name, max_pixels, at_least)
    rgb.info.clear()  # else a caller that applies the EXIF orientation would turn the image a second time
    return replace(reduced, image=rgb)


def _draft(image: Image.Image, at_least: int) -> tuple[str, tuple[int, int, float, float]] | None:
    """Have a JPEG decoded smaller, and say what becomes of it; other formats have nothing to leave out."""
    layers: list[tuple[int, int, int, int]] = getattr(image, "layer", [])
    shorter = 2 * at_least if coarse((across, down) for _, across, down, _ in layers) else at_least
    return image.draft(None, (shorter, shorter))


def _unreadable(name: str, error: BaseException) -> DecodeError:
    if isinstance(error, UnidentifiedImageError):
        return DecodeError(f"{name}: {error}")
    return DecodeError(f"{name}: truncated or corrupt: {_cause(error)}")


def _check_size(image: Image.Image, name: str, max_pixels: int | None) -> None:
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise _too_large(name, max_pixels, f"{image.width} x {image.height} = {image.width * image.height:,} pixels")


def _too_large(name: str, max_pixels: int | None, size: str) -> DecodeError:
    allowed = "Pillow's limit" if max_pixels is None else f"max_pixels={max_pixels:,}"
    return DecodeError(
        f"{name}: too many pixels for {allowed} ({size}); make it smaller, or, where max_pixels can be given, raise it"
    )


def _cause(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _turn_upright(stored: Reduced, orientation: int) -> Reduced:
    """What is padding at the right and below as stored may come to lie at the left and above."""
    if orientation not in _UPRIGHT:
        return stored
    height, width = stored.height, stored.width
    columns, rows = stored.image.size
    _, _, right, bottom = stored.box
    across = (columns - right, float(columns)) if orientation in (2, 3, 7, 8) else (0.0, right)
    along = (rows - bottom, float(rows)) if orientation in (3, 4, 6, 7) else (0.0, bottom)
    if orientation >= 5:  # rows become columns
        height, width, across, along = width, height, along, across
    image = stored.image.transpose(_UPRIGHT[orientation])
    return Reduced(image, height, width, (across[0], along[0], across[1], along[1]))


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except FILE_FAULTS:
        return 1  # a broken EXIF block cannot say which way is up, and the pixels are fine
    return found if found in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Always a new image of class Image.Image, so nothing holds on to the file."""
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        grey = Image.fromarray((levels >> 8).astype(np.uint8))
        key = image.info.get("transparency")
        if isinstance(key, int):
            grey.paste(255, mask=Image.fromarray((levels == key).astype(np.uint8) * 255))
        return grey.convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_8_bits(np.asarray(image).astype(np.float64), image)).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms  # rare, and it costs more to import than all of the above

        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        rgb = ImageCms.applyTransform(image, to_rgb)
        assert rgb is not None  # it is None only in place
        return rgb
    if image.has_transparency_data:
        straight = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(straight, mask=straight.getchannel("A"))
        return white
    return image.convert("RGB")


def _to_8_bits(levels: NDArray[np.float64], image: Image.Image) -> NDArray[np.uint8]:
    """Levels of a 32-bit image. Such files do not say which level is white, so the values have to.

    Integers up to 65,535 are 16-bit levels (up to 255: 8-bit ones, except in PPM, whose header scales them), reals
    up to 1 are a share of white; any other range is stretched from its least to its largest value.
    """
    levels = np.nan_to_num(levels, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(levels.min()), float(levels.max())
    if low >= 0 and image.mode == "F" and high <= 1:
        levels = np.rint(levels * 255)
    elif low >= 0 and high <= 255 and image.format != "PPM":
        levels = np.rint(levels)
    elif low >= 0 and high <= 65535 and image.mode == "I":
        levels = np.floor(levels / 256)
    else:
        span = high - low
        levels = np.rint((levels - low) * 255 / span) if span > 0 else np.zeros_like(levels)
    return levels.astype(np.uint8)


_silence = threading.Lock()
_silent_calls = 0
_filters: warnings.catch_warnings[None] | None = None


@contextmanager
def pillow_silenced() -> Generator[None]:
    """No warnings from Pillow. Filters are the process's: the first call in sets them, the last one out restores."""
    global _silent_calls, _filters  # noqa: PLW0603 - the warning filters that they count are global, too
    with _silence:
        if _silent_calls == 0:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _silent_calls += 1
    try:
        yield
    finally:
        with _silence:
            _silent_calls -= 1
            if _silent_calls == 0 and _filters is not None:
                _filters.__exit__(None, None, None)
                _filters = None


_limit = threading.Lock()


@contextmanager
def _pillow_limit(max_pixels: int | None) -> Generator[None]:
    """Pillow's process-wide limit set to the caller's. Only for images above the former, one at a time.

    Several of its readers (TIFF, WebP, GIF, ICO) check that global themselves; there is no other way past it.
    """
    with _limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
