"""What may stand for an image, or for several, where one is asked for.

c channels, h w height and width in pixels.
"""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from vertebra.data import DecodeError, decode
from vertebra.data.members import Member, list_folder, list_zip
from vertebra.data.remote import Remote, is_url
from vertebra.spec import PHOTO, VertebraError

Pixels = np.ndarray[Any, Any] | Tensor
"""A decoded image: (h, w, 3) of an array, (3, h, w) of a tensor, RGB; uint8, or floats from 0 to 1. Grey and RGBA do,
too."""
Source = bytes | str | os.PathLike[str] | BinaryIO | Image.Image | Member | Remote | Pixels
"""An encoded image (its bytes, its path or address, a binary file, an archive's member) or a decoded one."""
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def read(source: Source, reader: Callable[[Any], Tensor], max_pixels: int | None) -> Tensor:
    """What `reader`, which takes encoded images and RGB ones, makes of it. Raises `VertebraError`."""
    if isinstance(source, np.ndarray | Tensor):
        source = image_of(source)
    elif isinstance(source, str) and is_url(source):
        source = Remote(source)
    if isinstance(source, Member | Remote):
        return named(source, reader)
    return reader(upright_rgb(source, max_pixels) if isinstance(source, Image.Image) else source)


def several(source: object) -> Sequence[Source] | Iterable[Source] | None:
    """The images of a source that is more than one; None of one."""
    if isinstance(source, str) and is_url(source):
        return None
    if isinstance(source, str | os.PathLike):
        path = Path(cast("str", source)).expanduser()
        if path.is_dir():
            return [member for member in list_folder(path) if PHOTO.search(member.inner)]
        return zipped(path) if path.suffix.lower() == ".zip" else None
    if isinstance(source, np.ndarray | Tensor):
        return list(cast("Iterable[Pixels]", source)) if source.ndim == 4 else None
    encoded = isinstance(source, bytes | Image.Image | Member | Remote) or hasattr(source, "read")
    return None if encoded or not isinstance(source, Iterable) else cast("Iterable[Source]", source)


def zipped(path: Path) -> list[Member]:
    """The photos of a zip, by the ends of their names."""
    return [member for member in list_zip(path) if PHOTO.search(member.inner)]


def image_of(pixels: Pixels) -> Image.Image:
    """Raises `VertebraError` for a shape or a type that is no image's."""
    shape = tuple(pixels.shape)
    array = np.asarray(_whole(pixels) if isinstance(pixels, Tensor) else pixels)
    if isinstance(pixels, Tensor) and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    floats = np.issubdtype(array.dtype, np.floating)
    channels = array.shape[2] if array.ndim == 3 else 1
    if (
        array.ndim not in (2, 3)
        or channels not in (1, 3, 4)
        or not (floats or array.dtype == np.uint8)
        or not array.size
    ):
        raise VertebraError(
            f"pixels of shape {shape} and type {pixels.dtype}: give RGB, an array (h, w, 3) or a tensor (3, h, w), of "
            "uint8 or of floats from 0 to 1"
        )
    if floats:
        if not (array.min() >= 0 and array.max() <= 1):
            raise VertebraError(
                "pixels below 0 or above 1: give levels from 0 to 1 (or uint8); what is normalised already goes to "
                "`answer`, as a batch"
            )
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if channels == 1 and array.ndim == 3 else array))


def _whole(pixels: Tensor) -> Tensor:
    """Of a type that numpy has, too."""
    here = pixels.detach().cpu()
    return here.float() if here.is_floating_point() else here


def named(source: Member | Remote, read: Callable[[bytes], Tensor]) -> Tensor:
    """With its name in the error, where it is no image."""
    content = source.read()
    try:
        return read(content)
    except DecodeError as error:
        raise DecodeError(f"{source.name}: {str(error).removeprefix('<bytes>: ')}") from error


def upright_rgb(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """A decoded image as `decode` would give it: through a file in memory, unless it is plain RGB already."""
    name = getattr(image, "filename", "") or "<image>"
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "RGB" and not upright.has_transparency_data:
            return upright
        buffer = io.BytesIO()
        upright.save(buffer, "PNG" if upright.mode in _PNG_MODES else "TIFF")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{name}: cannot be read: {error}") from error
    return decode(buffer.getvalue(), max_pixels=max_pixels)
