"""Where foreign files come in: regular ones alone, and no more of them than a photo may have."""

from __future__ import annotations

import os
import stat
from io import FileIO

from vertebra.spec.errors import VertebraError

MOST = 2**29
"""Bytes of one photo, packed or unpacked: those of an uncompressed one of as many pixels as are decoded (0.5 GB)."""
_STEP = 2**20
_AT_ONCE = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"))
"""A pipe opens only once somebody writes into it, unless one does not wait."""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """A file, or what a link leads to, for reading and without a buffer.

    Raises `VertebraError` for what cannot be opened, and for a pipe or a device, which may never end.
    """
    try:
        descriptor = os.open(path, _AT_ONCE)
    except (OSError, ValueError) as error:
        raise VertebraError(f"{os.fspath(path)}: cannot be read: {_cause(error)}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise VertebraError(f"{os.fspath(path)}: is {kind}, not a regular file; it may never end, and is not read")
    return FileIO(descriptor)


def read_regular(path: str | os.PathLike[str], most: int = MOST, expected: int | None = None) -> bytes:
    """All of a file. `expected`: its size, where it is known; saves to ask for it. Raises `VertebraError`."""
    name = os.fspath(path)
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size if expected is None else expected
            refuse_large(name, size, most)
            content = file.read(size + 1)  # the end is met at once
            if len(content) <= size:
                return content
            pieces, held = [content], len(content)
            while piece := file.read(_STEP):  # it has grown, or is one of those that know no size, as in /proc
                pieces.append(piece)
                held += len(piece)
                refuse_large(name, held, most)
        except OSError as error:
            raise VertebraError(f"{name}: cannot be read: {_cause(error)}") from error
    return b"".join(pieces)


def refuse_large(name: str, size: int, most: int = MOST) -> None:
    """Raise `VertebraError` for more bytes than `most`."""
    if size > most:
        raise VertebraError(f"{name}: has {size:,} bytes, and at most {most:,} are read")


def _cause(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
