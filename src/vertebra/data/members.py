"""Files in folders, zips and tars, listed once and read from any thread or process.

A member is a place in a container: its offset and length, found when the container is listed. Reading opens the file,
seeks and reads, so that no handle is shared and nothing has to be kept open.
"""

from __future__ import annotations

import io
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from vertebra.data.boundary import MOST, open_regular, read_regular, refuse_large
from vertebra.spec.errors import VertebraError
from vertebra.spec.photo import is_litter

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""A zip member's own header; its name and extra field follow, and then the data."""
_TAR_HEADER = 2**24
"""Bytes of a tar member's header, long names included: more is no name."""

_LINKS = 40
"""Links to links that are followed, as Linux does."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file; `offset` None: a file by itself, else its place in an archive."""

    container: str
    """Path of the archive, or of the file itself."""
    inner: str
    """Path inside the folder or archive, with forward slashes."""
    size: int
    """Bytes as stored."""
    offset: int | None = None
    """Tar: where the data begins. Zip: where the member's header begins."""
    packing: str = ""
    """"" as it is, "zip" (stored in a zip), "deflate" (compressed in a zip), "sparse" (in a tar, with holes)."""
    unpacked: int = 0
    """Zip: bytes when unpacked."""
    crc: int | None = None
    """Zip: checksum of the unpacked bytes."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.container if self.offset is None else f"{self.container}!{self.inner}"

    def read(self) -> bytes:
        """The file's bytes. Raises `VertebraError` where they cannot be had, are damaged, or are too many."""
        if self.offset is None:
            return read_regular(self.container, expected=self.size)
        if self.size > MOST or self.unpacked > MOST:  # its name takes time, a thousand times a second
            refuse_large(self.name, max(self.size, self.unpacked))
        if self.packing == "sparse":
            raise VertebraError(f"{self.name}: is stored with its holes left out; pack the tar anew without --sparse")
        try:
            with open_regular(self.container) as file:
                content = self._packed(file, self.offset)
            return self._unpack(content) if self.packing else content
        except OSError as error:
            raise VertebraError(f"{self.name}: cannot be read: {error.strerror or error}") from error
        except (struct.error, zlib.error, zipfile.BadZipFile) as error:
            raise VertebraError(f"{self.name}: the archive is damaged here: {error}") from error

    def _packed(self, file: FileIO, offset: int) -> bytes:
        file.seek(offset)
        if self.packing:
            header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if header[0] != b"PK\3\4":
                raise zipfile.BadZipFile("its header is not where the zip says")
            file.seek(header[-2] + header[-1], os.SEEK_CUR)
        content = file.read(self.size)
        if len(content) < self.size:
            raise zipfile.BadZipFile(f"it ends after {len(content):,} of {self.size:,} bytes")
        return content

    def _unpack(self, content: bytes) -> bytes:
        """Never more than one byte beyond what the zip says: it may lie."""
        if self.packing == "deflate":
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            content = inflater.decompress(content, self.unpacked + 1)
        if len(content) != self.unpacked:
            more = "more" if len(content) > self.unpacked else f"{len(content):,}"
            raise zipfile.BadZipFile(f"it unpacks to {more}, not to the {self.unpacked:,} bytes that the zip says")
        if zlib.crc32(content) != self.crc:
            raise zipfile.BadZipFile("its bytes do not match their checksum (CRC)")
        return content


def list_folder(root: Path) -> Iterator[Member]:
    """Every file below `root` in the order of their names; what systems keep there is passed over (`is_litter`).

    Links are followed, but for one to a folder that it lies in. Raises `VertebraError` for an unreadable folder.
    """
    return _below(root, "", frozenset())


def _below(folder: Path, inner: str, above: frozenset[str]) -> Iterator[Member]:
    """`inner`: what precedes a name inside the folder; `above`: the real paths of the folders around this one."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not is_litter(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise VertebraError(
            f"{folder}: cannot be read: {error.strerror or error}; what is in it would be missing"
        ) from error
    folders = list[str]()
    for entry in found:
        if _is_folder(entry):
            folders.append(entry.name)
        else:
            yield Member(str(folder / entry.name), inner + entry.name, _size(entry))
    for name in folders:
        yield from _below(folder / name, f"{inner}{name}/", above | {real})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size(entry: os.DirEntry[str]) -> int:
    """0 where a link leads nowhere: reading it names it."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def list_zip(path: Path) -> Iterator[Member]:
    """A zip's files in the order of their names; of several under one name, the last. Raises `VertebraError` for a
    broken, encrypted or exotic one.
    """
    try:
        with io.BufferedReader(open_regular(path)) as file, zipfile.ZipFile(file) as archive:
            # Older tools for Windows part folders by backslashes.
            infos = {info.filename.replace("\\", "/"): info for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error, OverflowError) as error:
        if isinstance(error, VertebraError):
            raise
        raise VertebraError(f"{path}: cannot be read as a zip: {error}") from error
    for name, info in sorted(infos.items()):
        if _hidden(name) or name.endswith("/"):
            continue
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise VertebraError(
                f"{path}!{name}: encrypted, or packed in a way other than 'stored' and 'deflate'; pack the zip anew"
            )
        packing = "zip" if info.compress_type == zipfile.ZIP_STORED else "deflate"
        yield Member(str(path), name, info.compress_size, info.header_offset, packing, info.file_size, info.CRC)


class _Headers(io.BufferedReader):
    """Read by `tarfile`, which believes a header of any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(_TAR_HEADER if size is None or size < 0 else min(size, _TAR_HEADER))


def list_tar(path: Path) -> Iterator[Member]:
    """An uncompressed tar's files in the order in which they lie there; a link is the file that it leads to, and empty
    where that is not in the archive. Raises `VertebraError` for a broken, compressed or cut one.
    """
    try:
        with _Headers(open_regular(path)) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            files = {posixpath.normpath(info.name): info for info in archive if not info.isdir()}
            for name in files:
                held = _followed(files, name)
                if not _hidden(name):
                    regular = held.isreg()
                    packing = "sparse" if held.issparse() else ""
                    yield Member(str(path), name, held.size if regular else 0, held.offset_data, packing)
            file.seek(archive.offset)
            closed = file.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, VertebraError):
            raise
        raise VertebraError(
            f"{path}: cannot be read as a tar: {error}; a compressed one has to be unpacked first"
        ) from error
    if not closed:
        raise VertebraError(
            f"{path}: is cut off (no empty block closes it), so that files may be missing; fetch or pack it again"
        )


def _followed(files: Mapping[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    """What holds the data, or the link itself where nothing does. A hard link names a file from the archive's root, a
    symbolic one from its own folder.
    """
    place = name
    for _ in range(_LINKS):
        info = files.get(place)
        if info is None or not (info.islnk() or info.issym()):
            return info or files[name]
        folder = posixpath.dirname(place) if info.issym() else ""
        place = posixpath.normpath(posixpath.join(folder, info.linkname))
    return files[name]


def _hidden(name: str) -> bool:
    return any(map(is_litter, name.removeprefix("./").split("/")))
