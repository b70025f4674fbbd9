"""Which formats are read, and what a file is that is not: another format, or a rare kind of one of these."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import re
import struct
import zlib
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

# What cameras, scanners and the web produce. Left out on purpose: EPS and WMF (external programs, platform code), and
# formats without a signature (TGA, PCX, ...), as which any garbage might be read.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI", "DDS", "SGI")

# A corrupt file makes Pillow's readers fail in any of these ways (they trust the offsets and counts in it).
FILE_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)

HEIF = "pillow-heif"
"""The package that reads HEIC and HEIF."""
_HEVC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_AVIF = frozenset((b"avif", b"avis"))
_HEAD = 1024
"""Bytes by which a file's kind is told."""
_SIGNATURES = (
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (rb"8BPS", "a Photoshop document"),
    (rb"%PDF-", "a PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00....(?s:.){32} EMF", "a Windows metafile"),
    (rb"v/1\x01", "an OpenEXR image"),
    (rb"#\?RADIANCE|#\?RGBE", "a Radiance HDR image"),
    (rb"SIMPLE  =", "a FITS image"),
    (rb"\x00{128}DICM", "a DICOM image"),
    (rb"FUJIFILMCCD-RAW|FOVb", "a camera's raw file"),
    (rb"\x93NUMPY", "a numpy array"),
    (rb"PK\x03\x04", "a zip"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb"Rar!\x1a", "a RAR archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (rb"RIFF....AVI |\x1aE\xdf\xa3|\x00\x00\x01\xba|FLV", "a video"),
    (rb"version https://git-lfs", "a Git LFS pointer (git lfs pull gets the file)"),
    (rb"(?i:(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<svg)", "an SVG drawing"),
    (rb"(?i:(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype )?html)", "a web page"),
    (rb"\s*[\[{]\s*[\"{\[\]}]", "JSON text"),
)
_KNOWN = tuple((re.compile(pattern, re.DOTALL), kind) for pattern, kind in _SIGNATURES)


def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(stream: BinaryIO) -> Image.Image:
    """The image, its pixels unread. Raises what Pillow raises; `UnidentifiedImageError` says what the file is."""
    start = stream.tell()
    if _is_heif(stream.read(_HEAD)):
        if importlib.util.find_spec("pillow_heif") is None:
            raise UnidentifiedImageError(f"is a HEIC or HEIF photo, which {HEIF} reads: pip install {HEIF}")
        stream.seek(start)
        # Its class, called by itself: registered, it would change what everybody's Image.open takes in this process.
        return importlib.import_module("pillow_heif").HeifImageFile(stream)
    stream.seek(start)
    try:
        image = Image.open(stream, formats=formats())
    except UnidentifiedImageError as error:
        stream.seek(start)
        raise UnidentifiedImageError(what_is(stream)) from error
    if image.format == "TIFF":
        _quiet_libtiff()
    return image


@functools.cache
def _quiet_libtiff() -> None:
    """Libtiff writes its errors to the terminal by itself, without the file's name; what it answers says enough. No
    other way keeps threads apart: to turn the terminal away for a moment would take their lines, too.
    """
    try:
        handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):  # a Pillow without it, or with another way of linking
        return
    handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    handler(None)


def _is_heif(head: bytes) -> bool:
    brands = _brands(head)
    return bool(brands & _HEVC) or (not brands & _AVIF and bool(brands & {b"mif1", b"msf1"}))


def _brands(head: bytes) -> frozenset[bytes]:
    """What an ISO base media file says that it may be read as; none of any other."""
    if head[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return frozenset((head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))))


def what_is(stream: BinaryIO) -> str:
    """The predicate of a sentence on a file that could not be read as an image: "is ..."."""
    start = stream.tell()
    head = stream.read(_HEAD)
    if brands := _brands(head):
        if brands & _AVIF:
            return "is an AVIF of a kind that its reader (libavif) does not know, or is damaged; save it as JPEG or PNG"
        return "is a camera's raw file, not an image read here" if b"crx " in brands else "is a video, not an image"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        stream.seek(start)
        if kind := tiff_kind(stream):
            return f"is {kind}, which is not read here; save what shows it to an eye as RGB or grey of 8 bits"
    if head[:2] == b"\xff\xd8":
        stream.seek(start)
        if kind := _jpeg_kind(stream.read(2**18)):
            return f"is {kind}, which is not read here; save it as an ordinary JPEG or as PNG"
    for pattern, kind in _KNOWN:
        if pattern.match(head):
            return f"is {kind}, not an image of a format read here ({', '.join(formats())})"
    if head and not any(byte < 9 or 13 < byte < 27 for byte in head):
        return f"not an image, but text, or damaged beyond recognition; formats read here: {', '.join(formats())}"
    return f"not an image, or damaged beyond recognition; formats read here: {', '.join(formats())}"


def _jpeg_kind(content: bytes) -> str:
    """Of a JPEG that few programs read, by its frame's header; "" of any other."""
    at = 2
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            lossless = "lossless " if marker in (0xC3, 0xC7, 0xCB, 0xCF) else ""
            coded = ", arithmetic coding" if marker > 0xC8 else ""
            bits = content[at + 4]
            rare = lossless or coded or bits != 8
            return f"a {lossless}JPEG of {bits}-bit values{coded}" if rare and 2 <= bits <= 16 else ""
        if marker == 0xF7:
            return "a JPEG-LS image"
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return ""


def tiff_kind(stream: BinaryIO) -> str:
    """What a TIFF says that its pixels are, as "a TIFF of 13 bands of 16-bit integers"; "" of one that is damaged."""
    try:
        start = stream.tell()
        header = stream.read(8)
        big = header[2:3] == b"+" or header[3:4] == b"+"
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(header + stream.read(8) if big else header)
        stream.seek(start + tags.next)
        tags.load(stream)
        size = tags[256], tags[257]
        bands, bits = tags.get(277, 1), max(tags.get(258, (1,)))
        kind = {1: "integers", 2: "signed integers", 3: "reals", 5: "complex integers", 6: "complex reals"}.get(
            max(tags.get(339, (1,))), "values"
        )
    except FILE_FAULTS:
        return ""
    apart = " apart from each other" if bands > 1 and tags.get(284) == 2 else ""
    shown = f"{bands} bands of {bits}-bit {kind}{apart}" if bands > 1 else f"{bits}-bit {kind}"
    coded = {1: "", 5: "", 8: "", 32946: "", 32773: ""}.get(tags.get(259, 1), f", compression {tags.get(259)}")
    return f"a TIFF of {shown} ({size[0]} x {size[1]}{coded})"


def misread(image: Image.Image) -> str:
    """What an image is that Pillow takes for another: its kind, or ""."""
    if image.format != "TIFF":
        return ""
    tags: Any = getattr(image, "tag_v2", {})
    bits = max(tags.get(258, (1,)))
    if tags.get(284) == 2 and tags.get(277, 1) > 1 and bits > 8:  # it reads their lower and upper bytes as pixels
        return f"a TIFF of {tags[277]} bands of {bits}-bit values apart from each other"
    return ""


PNG = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">I4s")
_TEXT = 2**24
"""Bytes of text, unpacked, up to which it is kept: XMP among it may say which way is up."""


def without_large_text(content: bytes) -> bytes | None:
    """A PNG without the text and colour profiles that unpack to more than Pillow takes (1 MiB), which no pixel depends
    on; None of what has none. Long XMP is kept, unpacked.
    """
    if not content.startswith(PNG):
        return None
    kept, at, left = [PNG], len(PNG), PngImagePlugin.MAX_TEXT_MEMORY // 2
    while at + 12 <= len(content):
        length, kind = _CHUNK.unpack_from(content, at)
        end = at + 12 + length
        chunk = content[at:end]
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            chunk, size = _bounded(kind, chunk)
            left -= size
            chunk = chunk if left >= 0 else b""
        kept.append(chunk)
        at = end
    kept.append(content[at:])
    whole = b"".join(kept)
    return whole if len(whole) != len(content) else None


def _bounded(kind: bytes, chunk: bytes) -> tuple[bytes, int]:
    """The chunk as it may stay, and the bytes of text in it."""
    body = chunk[8:-4]
    name, _, rest = body.partition(b"\0")
    head, packed = b"", rest[1:]
    if kind == b"iTXt":
        language, _, tail = rest[2:].partition(b"\0")
        translated, _, packed = tail.partition(b"\0")
        head = b"\0".join((name, b"\0\0" + language, translated, b""))
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] != b"\1"):
        return chunk, len(body)
    try:
        text = zlib.decompressobj().decompress(packed, _TEXT + 1)
    except zlib.error:
        return chunk, len(packed)
    if len(text) <= PngImagePlugin.MAX_TEXT_CHUNK:
        return chunk, len(text)
    if kind != b"iTXt" or len(text) > _TEXT:
        return b"", 0
    plain = head + text
    return _CHUNK.pack(len(plain), kind) + plain + struct.pack(">I", zlib.crc32(kind + plain)), len(text)
