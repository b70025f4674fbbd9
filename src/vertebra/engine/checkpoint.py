"""Everything that a run needs to go on, in one file that is there whole or not at all."""

from __future__ import annotations

import errno
import io
import pickle
import random
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vertebra.engine.settings import differences
from vertebra.spec import VertebraError, files

FOLDER = "checkpoints"
KEEP = 2
"""Checkpoints that stay: the newest, and the one before it."""
_FORMAT = 2


class CheckpointError(VertebraError):
    """A checkpoint that cannot be written, read, or gone on from."""


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write `state` as the checkpoint after `step` updates; older ones than the last `KEEP` are then deleted.

    Whatever goes wrong, the checkpoints that were there stay as they are.
    """
    path = _path(folder, step)
    content = io.BytesIO()
    torch.save({"format": _FORMAT, "step": step, **state}, content)
    write_whole(path, content.getbuffer())
    for old in all_in(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """The file as given, or as it was before. Raises `CheckpointError`."""
    try:
        files.write_whole(path, content)
    except OSError as error:
        raise CheckpointError(cannot_write(path, error, len(content))) from error


_NO_ROOM = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or ask for a larger quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
}


def cannot_write(path: Path, error: OSError, size: int | None = None) -> str:
    """One line: which file of a run, why (and on which disk, if one is full), what to do, what to go on from."""
    folder = path.parent.parent if path.parent.name == FOLDER else path.parent
    whole = [p for p in all_in(folder) if p != path]
    reason = f"{error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        disk = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        room = shutil.disk_usage(disk)
        while not disk.is_mount():
            disk = disk.parent
        reason += f" (the disk at {disk} has {room.free / 1e6:.1f} MB free of {room.total / 1e6:.1f} MB)"
    then = f"go on with --resume auto: {whole[-1]} is whole" if whole else "give the same command with --resume auto"
    todo = _NO_ROOM.get(error.errno or 0, "mend that")
    named = f"{path}" if size is None else f"{path} ({size / 1e6:.1f} MB)"
    return f"cannot write {named}: {reason}; {todo}, then {then}"


def all_in(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted((folder / FOLDER).glob("step-*.pt"))


def load_latest(folder: Path) -> dict[str, Any]:
    """The newest checkpoint that can be read; a damaged one is named in a warning. Raises where there is none."""
    paths = all_in(folder)
    for path in reversed(paths):
        try:
            return load(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; going on from the one before it", stacklevel=2)
    what = "none that can be read" if paths else "none"
    raise CheckpointError(f"{folder} holds no checkpoint to go on from ({what} in {folder / FOLDER})")


def load_step(folder: Path, step: int) -> dict[str, Any]:
    """The checkpoint after `step` updates, which another process has read."""
    path = _path(folder, step)
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}, from which the first process goes on; give an --out that all of them see"
        )
    return load(path)


def _path(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"step-{step:09d}.pt"


_DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)
"""As what a damaged zip, pickle or tensor shows itself."""


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("it was changed or damaged after it was written")
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of a training run of this version")
    return state


def check_same(state: Mapping[str, Any], config: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise, naming the differences, where a checkpoint is of another config or other data than the run at hand. More
    epochs it may have, or fewer than it was to have: it goes on as another run.
    """
    now = config.get("epochs")
    changed = differences({**state["config"], "epochs": now}, {**config, "epochs": now})
    if changed:
        raise CheckpointError(
            f"cannot resume under another config ({'; '.join(changed[:5])}); undo that, or start another --out"
        )
    at = state.get("state", {"epoch": 0, "step": 0})
    done = at["epoch"] + bool(at["step"])
    if now is not None and now < done and now != state["config"].get("epochs"):
        raise CheckpointError(f"epochs={now}: the run is in epoch {done}; give as many, or start another --out")
    old, new = state["data"], data
    found: list[str] = []
    if old["classes"] != new["classes"]:
        gone, come = (
            sorted(set(a) - set(b)) for a, b in ((old["classes"], new["classes"]), (new["classes"], old["classes"]))
        )
        found.append(f"classes: {', '.join([*(f'-{n}' for n in gone), *(f'+{n}' for n in come)][:5]) or 'other order'}")
    for name in sorted({*old["parts"], *new["parts"]}):
        a, b = old["parts"].get(name), new["parts"].get(name)
        if a is None or b is None:
            found.append(f"split {name}: {'is new' if a is None else 'is gone'}")
        elif a["images"] != b["images"]:
            found.append(f"split {name}: {a['images']} images, now {b['images']}")
        elif a != b:
            found.append(f"split {name}: other names, sizes or labels")
    if found:
        raise CheckpointError(
            f"cannot resume over other data ({'; '.join(found)}); restore it, or start anew with another --out"
        )


def random_state() -> dict[str, Any]:
    """Of every generator that the process draws from by default."""
    numpy = np.random.get_state(legacy=False)
    inner: Any = numpy["state"]
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {"key": torch.from_numpy(inner["key"].astype(np.int64)), "pos": int(inner["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of `random_state`; GPUs' only where there are as many."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {"key": key, "pos": numpy["state"]["pos"]}})
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
