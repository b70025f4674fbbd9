"""JPEGs straight to arrays, where simplejpeg is installed (the extras `fast` and `train` bring it).

It is libjpeg-turbo, as Pillow is, hence equal pixel for pixel; but Pillow keeps four bytes a pixel and copies twice on
the way there. Whatever is unusual is left to `decode`, which also says what is wrong.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import ExifTags, Image

from vertebra.data.boundary import open_regular, read_regular
from vertebra.data.decode import FILE_FAULTS, pillow_silenced
from vertebra.data.padding import coarse, mend_pixels

_START = b"\xff\xd8"
_PROGRESSIVE = 0xC2
_PLAIN = frozenset((0xC0, 0xC1, _PROGRESSIVE))
"""Start-of-frame markers of Huffman-coded JPEGs: baseline, extended, progressive."""
_APP1 = 0xE1
"""Where EXIF and XMP are, either of which may say which way is up."""
_START_OF_SCAN = 0xDA
_TABLES = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
"""Segments that may stand between the frame's header and its scan."""
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)
"""What ends a scan: in its data, 0 follows each 255, or the number of a restart."""
_END = b"\xff\xd9"
_TALLEST = 65500
"""Rows that libjpeg decodes."""
_KEPT = 2**26
"""Bytes of pixels, 22 megapixels' worth, up to which a thread keeps its room for them."""
_WORTH, _SHARE = 2**13, 16
"""Pixels below the rows that are wanted, and one in how many: for fewer, stopping early costs what it saves."""


class _Room(threading.local):
    """Where a thread's pixels go. A new place for each would come as pages to be zeroed: a fifth of a photo's time."""

    pixels = np.empty(0, np.uint8)

    def of(self, count: int) -> NDArray[np.uint8] | None:
        """For `count` bytes; None where that is too much to keep."""
        if count > _KEPT:
            return None
        if len(self.pixels) < count:
            self.pixels = np.empty(count, np.uint8)
        return self.pixels


_room = _Room()
_MARKS = np.array((1, 254, 7, 85, 248), np.uint8)
"""Put where the last row comes, to see whether it came."""


class Header(NamedTuple):
    """Of a JPEG with one or three 8-bit components. Pixels, as stored."""

    height: int
    width: int
    turnable: bool
    """It holds what may say that it is to be turned."""
    place: int
    """Where its height is written, in bytes from the start: two, the upper one first."""


def jpeg_content(path: Path) -> bytes | None:
    """The file's bytes, where it is a JPEG by its first two; None of any other, of which nothing more is read."""
    try:
        with open_regular(path) as file:
            start = file.read(len(_START))
        return read_regular(path) if start == _START else None
    except (OSError, ValueError):
        return None  # `decode` says what is wrong


def jpeg_header(content: bytes) -> Header | None:
    """None for all but JPEGs with one or three 8-bit components."""
    if content[:2] != _START:
        return None
    at, end, turnable = 2, len(content), False
    while at + 10 <= end and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _PLAIN:
            if content[at + 4] != 8 or content[at + 9] not in (1, 3):
                return None
            height, width = content[at + 5] << 8 | content[at + 6], content[at + 7] << 8 | content[at + 8]
            return Header(height, width, turnable, at + 5) if height and width else None
        if marker < 0xC0 or 0xD0 <= marker <= _START_OF_SCAN or (marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return None
        turnable = turnable or marker == _APP1
        at += 2 + (content[at + 2] << 8 | content[at + 3])
    return None


def orientation(content: bytes, header: Header) -> int | None:
    """1 to 8, as EXIF numbers them; of a broken EXIF block 1, as `decode` takes it; None where only `decode` can tell,
    because Pillow opens no image as large.
    """
    if not header.turnable:
        return 1
    with pillow_silenced():
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                found = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Image.DecompressionBombError:
            return None
        except FILE_FAULTS:
            return 1
    return found if found in range(2, 9) else 1


def decode_stored(
    content: bytes, header: Header, reduction: int = 1, rows: int | None = None
) -> UInt8[np.ndarray, "h w 3"] | None:
    """The pixels of a JPEG as they are stored, at 1/`reduction` (1, 2, 4 or 8) of its size; with `rows`, only so many
    from the top, which are the same and come sooner.

    They are the caller's until the same thread calls again, which may write over them. None where `decode` has to do
    it: without simplejpeg, or because of anything unusual in the file.
    """
    if reduction > 1 and coarse(_samplings(content, header)):
        return None
    pixels = _decode_stored(content, header, reduction, rows)
    if pixels is not None:
        mend_pixels(pixels, header.height, header.width, reduction)
    return pixels


def _decode_stored(
    content: bytes, header: Header, reduction: int, rows: int | None
) -> UInt8[np.ndarray, "h w 3"] | None:
    decoder = _simplejpeg()
    if decoder is None:
        return None
    if rows is not None and _stops_early(content, header, rows * reduction):
        return _upper(decoder, content, header, reduction, rows)
    height, width = -(-header.height // reduction), -(-header.width // reduction)
    least = (0, 0) if reduction == 1 else (height, width)
    try:
        pixels = decoder(content, min_height=least[0], min_width=least[1], buffer=_room.of(height * width * 3))
    except ValueError:  # of anything that libjpeg only warns of, too
        return None
    return pixels[:rows] if pixels.shape == (height, width, 3) else None


def _stops_early(content: bytes, header: Header, rows: int) -> bool:
    """Whether it pays not to decode what lies below `rows` (as stored), and nothing there could be wrong: a single scan
    from the first row to the last, behind which the file ends as it should.
    """
    unseen = header.height - rows
    if unseen * header.width < _WORTH or unseen * _SHARE < header.height or header.height > _TALLEST:
        return False
    if content[header.place - 4] == _PROGRESSIVE:
        return False
    at = header.place - 3 + (content[header.place - 3] << 8 | content[header.place - 2])
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, after = content[at + 1], at + 2 + (content[at + 2] << 8 | content[at + 3])
        if marker == _START_OF_SCAN:
            found = _MARKER.search(content, after)
            return found is not None and found[0] == _END
        if marker not in _TABLES:
            return False
        at = after
    return False


def _upper(
    decoder: Callable[..., NDArray[np.uint8]], content: bytes, header: Header, reduction: int, rows: int
) -> UInt8[np.ndarray, "h w 3"] | None:
    """The first `rows`, of 1/`reduction` of the size."""
    # libjpeg stops where the header says that the image ends.
    stored = min(header.height, (rows + _blend(content, header)) * reduction)
    content = b"".join((content[: header.place], stored.to_bytes(2, "big"), content[header.place + 2 :]))
    height, width = -(-stored // reduction), -(-header.width // reduction)
    count = height * width * 3
    room = _room.of(count)
    room = np.empty(count, np.uint8) if room is None else room
    last = room[count - width * 3 : count]
    last[:] = marks = np.resize(_MARKS, len(last))
    least = (0, 0) if reduction == 1 else (height, width)
    try:
        # Not strict: it warns that more follows. Then simplejpeg takes an error for another warning, and leaves the
        # room as it was.
        pixels = decoder(content, min_height=least[0], min_width=least[1], buffer=room, strict=False)
    except ValueError:
        return None
    return pixels[:rows] if pixels.shape == (height, width, 3) and not np.array_equal(last, marks) else None


def _blend(content: bytes, header: Header) -> int:
    """From how many rows below a row its colours may come, because they are stored for several rows at once."""
    heights = {height for _, height in _samplings(content, header)}
    return max(heights) if len(heights) > 1 else 0


def _samplings(content: bytes, header: Header) -> list[tuple[int, int]]:
    """Of each component, its factors along a row and along a column."""
    count = content[header.place + 4]
    return [(each >> 4, each & 15) for each in content[header.place + 6 : header.place + 6 + 3 * count : 3]]


@functools.cache
def _simplejpeg() -> Callable[..., NDArray[np.uint8]] | None:
    """Its decoder, where it is installed."""
    if importlib.util.find_spec("simplejpeg") is None:
        return None
    return importlib.import_module("simplejpeg").decode_jpeg
