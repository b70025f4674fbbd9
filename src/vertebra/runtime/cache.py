"""Compiled artefacts in the user's cache folder: each whole or absent, the least used removed first."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor, nn

from vertebra.spec import VertebraError, parse_object

_MANIFEST = "files.json"
_HALF_MADE = ".building-"
"""Then the number of the process that builds, and a dash."""
_FORGOTTEN = 24 * 3600
"""Seconds after which nobody builds any more: the process was killed."""


def root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else $VERTEBRA_CACHE, else vertebra/ in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("VERTEBRA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vertebra"


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

    Of two processes that build the same thing, the second's work is dropped. Raises as `limit` does, and
    `VertebraError` where the disk takes no more.
    """
    limit()  # a wrong one shall not be found after minutes of compiling
    with _kept_in(entry.parent):
        entry.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{_HALF_MADE}{os.getpid()}-", dir=entry.parent))
    try:
        with _kept_in(entry.parent):
            yield folder
            sizes = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
            (folder / _MANIFEST).write_text(json.dumps(sizes))
        if not whole(entry):
            shutil.rmtree(entry, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was faster by a moment: its artefact is as good
                folder.rename(entry)
        with contextlib.suppress(OSError):  # others prune beside us; whoever builds next goes on with it
            prune(entry.parent, keep=entry)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _kept_in(folder: Path) -> Generator[None]:
    """What the system says of a full or closed disk, with what to do."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(folder)
        if elsewhere or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise  # a compiler that may not be run, for one
        raise VertebraError(
            f"compiled models cannot be kept in {folder}: {error.strerror}; make room there, or name another "
            "folder with VERTEBRA_CACHE"
        ) from error


def used(entry: Path) -> None:
    """Note that an artefact was wanted now."""
    with contextlib.suppress(OSError):  # a cache that others own may be read-only
        os.utime(entry)


def size(folder: Path) -> int:
    """Bytes below a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0


def drop_half_made(folder: Path, process: int) -> None:
    """Remove what a process that was ended left half made in `folder`."""
    for half in folder.glob(f"{_HALF_MADE}{process}-*"):
        shutil.rmtree(half, ignore_errors=True)


def prune(folder: Path, keep: Path) -> None:
    """Remove the artefacts that were wanted longest ago until the rest fits `limit()`; never `keep`.

    What is half made goes after a day. Raises OSError where another process removes something at this moment.
    """
    for half in folder.glob(f"{_HALF_MADE}*"):
        if time.time() - half.stat().st_mtime > _FORGOTTEN:
            shutil.rmtree(half, ignore_errors=True)
    entries = [e for e in folder.iterdir() if e.is_dir() and e != keep and not e.name.startswith(_HALF_MADE)]
    entries.sort(key=lambda e: e.stat().st_mtime, reverse=True)
    left = limit() - size(keep)
    for entry in entries:
        left -= size(entry)
        if left < 0:
            shutil.rmtree(entry, ignore_errors=True)
