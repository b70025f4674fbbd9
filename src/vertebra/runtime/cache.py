"""Compiled artefacts in the user's cache folder: each whole or absent, the least used removed first."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor, nn

from vertebra.spec import VertebraError, files, parse_object
from vertebra.spec.cache import reason

_MANIFEST = "files.json"
_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a disk says that takes no more."""


class CacheError(VertebraError):
    """What was compiled cannot be kept."""


def compiled(folder: Path) -> Path:
    """Where in a cache folder the artefacts lie."""
    return folder / "compiled"


def limit() -> int:
    """Bytes that the artefacts may take together: $VERTEBRA_CACHE_GB, else 20 GB. Raises `VertebraError`."""
    given = os.environ.get("VERTEBRA_CACHE_GB") or "20"
    try:
        wanted = float(given)
    except ValueError:
        wanted = -1.0
    if not 0 <= wanted < math.inf:
        raise VertebraError(f"VERTEBRA_CACHE_GB={given!r}: give a number of gigabytes from 0 on, as 20 or 0.5")
    return int(wanted * 1e9)


def tensor_hash(tensor: Tensor) -> str:
    """Of its bytes alone, without a copy of them."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """Of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """Without a copy, where it lies in this machine's memory in one piece."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def key(**facts: object) -> str:
    """32 characters for all that decides what an artefact holds."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def whole(entry: Path) -> bool:
    """Whether an artefact is there with every file in its full length."""
    try:
        sizes = parse_object((entry / _MANIFEST).read_bytes(), str(entry / _MANIFEST))
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def building(entry: Path) -> Generator[Path]:
    """An empty folder to write into; it becomes `entry` when the block ends well, and vanishes when it does not.

    Of two processes that build the same thing, the second's work is dropped. Raises as `limit` does, and `CacheError`
    where nothing can be kept.
    """
    limit()  # a wrong one shall not be found after minutes of compiling
    with contextlib.ExitStack() as beside:
        with _kept_in(entry.parent, wholly=True):
            folder = beside.enter_context(files.beside(entry)) / entry.name
            folder.mkdir()
        with _kept_in(entry.parent):
            yield folder
        with _kept_in(entry.parent, wholly=True):
            sizes = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
            (folder / _MANIFEST).write_text(json.dumps(sizes))
            if not whole(entry):
                shutil.rmtree(entry, ignore_errors=True)
                files.put_folder(folder, entry)  # unless another process was faster: its artefact is as good
    with contextlib.suppress(OSError):  # others prune beside us; whoever builds next goes on with it
        prune(entry.parent, keep=entry)


@contextlib.contextmanager
def for_now() -> Generator[Path]:
    """An empty folder to write into where nothing can be kept; it stays when the block ends well.

    Raises `CacheError` where there is not even that.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="vertebra-"))
    except OSError as error:
        raise CacheError(
            f"nothing can be compiled: there is no folder to write in ({error.strerror}); name one with VERTEBRA_CACHE"
            " or TMPDIR"
        ) from error
    try:
        with _kept_in(folder):
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def _kept_in(folder: Path, *, wholly: bool = False) -> Generator[None]:
    """What the system says of a full or closed disk, with what to do. `wholly`: nothing else is done in the block."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(folder)
        if not wholly and (elsewhere or error.errno not in _CLOSED):
            raise  # a compiler that may not be run, for one
        room = "make room there, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise CacheError(
            f"compiled models cannot be kept in {folder}: {reason(folder, error)}; {room}name another folder with "
            "VERTEBRA_CACHE"
        ) from error


def used(entry: Path) -> None:
    """Note that an artefact was wanted now."""
    with contextlib.suppress(OSError):  # a cache that others own may be read-only
        os.utime(entry)


def size(folder: Path) -> int:
    """Bytes below a folder; of one that may not be read, none."""
    with contextlib.suppress(PermissionError):
        return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0
    return 0


def prune(folder: Path, keep: Path) -> None:
    """Remove the artefacts that were wanted longest ago until the rest fits `limit()`; never `keep`.

    Raises OSError where another process removes something at this moment.
    """
    entries = [e for e in folder.iterdir() if e.is_dir() and e != keep and not files.is_half(e)]
    entries.sort(key=lambda e: e.stat().st_mtime, reverse=True)
    left = limit() - size(keep)
    for entry in entries:
        left -= size(entry)
        if left < 0:
            shutil.rmtree(entry, ignore_errors=True)
