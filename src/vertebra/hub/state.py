"""A checkpoint file -> a flat dict of tensors in memory of their own; pickles may hold nothing but tensors."""

import argparse
import json
import mmap
import os
import pickle
import re
import struct
import threading
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vertebra.spec import MissingFileError, State, WeightsError

WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict"),
    *("state_dict", "model_state_dict", "model", "net", "network", "module"),
)
"""Keys under which training scripts put a state dict, averaged weights first."""

_TORCHS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch's own wrappers put into names, wherever a part of a model was compiled or wrapped."""
_AVERAGED = "n_averaged"
"""A counter that torch's `AveragedModel` keeps beside the model, which it calls `module`."""
_HOLDERS = ("module.", "model.", "net.", "network.", "backbone.", "timm_model.")
"""What wrappers, Lightning's modules among them, call the model inside. No model here has a part of such a name."""
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
"""Of a terminal, in torch's own messages."""
_CAUSE = re.compile(r"[Uu]nsupported (?:global: )?(GLOBAL \S+)")
"""What would have been called, in those messages."""
_ZIP_FAULTS = (
    *(zipfile.BadZipFile, OSError, ValueError, EOFError, LookupError, RuntimeError, OverflowError),
    *(struct.error, zlib.error),
)
_SMALL, _PACKED = 2**28, 16
"""Bytes that a zip may always unpack to, and how many times its own size: what weights reach is less than 2."""
_NAMESPACE = (argparse.Namespace, "argparse.Namespace")
"""As torch takes it; not the class alone, which is what another thread may allow, and take back while we read."""
_unpickling = threading.Lock()
_MAPPED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "F64": torch.float64}


def read_file(path: Path | str, *, mapped: bool = False) -> tuple[State, dict[str, str]]:
    """(state dict, metadata) of a checkpoint: what safetensors carries; of a pickle, the `wrapper` it had.

    `mapped`: nobody ever writes to this file again, so that a safetensors' tensors may lie in it. Those of any other
    would change with it, and the process would die where it is cut.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no checkpoint at {path}{'; it is a folder' if path.is_dir() else ''}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty")
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path, mapped=mapped)
        return _inside(state, path), metadata
    _refuse_bomb(path)
    if path.suffix == ".npz":
        return _read_npz(path), {}
    content = _read_pickle(path)
    return unwrap(content, path), {"wrapper": ".".join(wrappers(content))}


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, without reading its tensors. Raises `WeightsError`."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error


def _read_safetensors(path: Path, *, mapped: bool) -> tuple[State, dict[str, str]]:
    """The library checks the file; tensors of the usual types are then views of one buffer: a quarter of its time for a
    mapped one, and for one that is read a sixth of what its `load_file` and a copy take.
    """
    try:
        with safe_open(path, framework="pt") as file, path.open("rb", buffering=0) as raw:
            header: dict[str, Any] = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
            content = _map_rest(raw) if mapped else _read_rest(raw)
            state = State()
            for key in file.keys():  # noqa: SIM118
                entry = header[key]
                dtype, (begin, end) = _MAPPED.get(entry["dtype"]), entry["data_offsets"]
                if dtype is None or begin == end:
                    tensor = file.get_tensor(key)
                    state[key] = tensor if mapped else tensor.clone()
                else:
                    count = (end - begin) // dtype.itemsize
                    flat = torch.frombuffer(content, dtype=dtype, count=count, offset=begin)
                    state[key] = flat.view(entry["shape"])
            return state, dict(file.metadata() or {})
    except (SafetensorError, ValueError, KeyError) as error:  # the latter: it was rewritten meanwhile
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error


def _refuse_bomb(path: Path) -> None:
    """Raise for a zip (.npz, or a pickle's) that unpacks to more than weights could be packed into it."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except _ZIP_FAULTS:
        return  # no zip, or a broken one: whoever reads it says so
    if unpacked > max(_SMALL, _PACKED * path.stat().st_size):
        raise WeightsError(
            f"{path} says that it unpacks to {unpacked:,} bytes, {unpacked // path.stat().st_size:,} times its own; no "
            "weights do, and it is not read"
        )


def _map_rest(raw: FileIO) -> memoryview:
    """What comes after the header; written to, it becomes this process's own, page by page."""
    return memoryview(mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY))[raw.tell() :]


def _read_rest(raw: FileIO) -> memoryview:
    # Of numpy's: large pages, and not filled with zeros first.
    content = np.empty(os.fstat(raw.fileno()).st_size - raw.tell(), np.uint8).data
    done = 0
    while done < len(content):  # a read gives 2 GB at most
        count = raw.readinto(content[done:])
        if not count:
            raise ValueError("it became shorter while it was read")
        done += count
    return content


def _read_npz(path: Path) -> State:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    except (*_ZIP_FAULTS, TypeError, MemoryError, SyntaxError, tokenize.TokenError) as error:
        raise WeightsError(f"{path} cannot be read as an .npz of arrays: {error or type(error).__name__}") from error


def _read_pickle(path: Path) -> Any:
    try:
        return _load_tensors(path)
    except pickle.UnpicklingError as error:
        # Not torch's own words, whose advice is to unpickle it nevertheless.
        found = _CAUSE.search(_COLOURS.sub("", str(error)))
        cause = f" ({found[1]})" if found else ""
        raise WeightsError(
            f"{path} is not a checkpoint of tensors alone, and nothing else is unpickled{cause}; if it is a checkpoint,"
            " convert it with the code that wrote it: torch.save(model.state_dict(), FILE)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(f"{path} cannot be read as a checkpoint: {reason}") from error


def _load_tensors(path: Path) -> Any:
    """Read, not mapped: training scripts rewrite such files in place, under the feet of who maps them.

    They keep their arguments beside the weights, as a Namespace, which holds data alone. What may be unpickled beyond
    tensors is one set for the whole process: it is touched for files that need it, by one thread at a time.
    """
    load = partial(torch.load, path, map_location="cpu", weights_only=True)
    try:
        return load()
    except pickle.UnpicklingError as error:
        if _NAMESPACE[1] not in str(error):
            raise
    with _unpickling, torch.serialization.safe_globals([_NAMESPACE]):
        return load()


def wrappers(content: Any) -> list[str]:
    """The keys, outermost first, that lead to the state dict inside what a training script saved."""
    path = list[str]()
    while isinstance(content, Mapping):
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        path.append(key)
        content = content[key]
    return path


def unwrap(content: Any, path: Path | str = "the checkpoint") -> State:
    """The state dict inside what a training script saved: without wrapper keys, and without what wrappers put before
    and into names. What stands beside the model is left out, with a warning that names it.
    """
    for key in wrappers(content):
        content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    state = _inside(cast("dict[str, Any]", dict(content)), path)
    foreign = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise WeightsError(
            f"{path} holds no state dict: {foreign[0]!r} is a {type(state[foreign[0]]).__name__}, not a tensor"
        )
    return state


def _inside(state: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """The model's own names. DDP has nothing beside its `module.`; other holders may have a loss, a projector."""
    state = {_TORCHS.sub("", key): value for key, value in state.items()}
    while holder := next((h for h in _HOLDERS if any(key.startswith(h) for key in state)), None):
        beside = [key for key in state if not key.startswith(holder) and key != _AVERAGED]
        if beside and holder == "module.":
            break
        if beside:
            named = ", ".join(beside[:4]) + (", ..." if len(beside) > 4 else "")
            warnings.warn(f"{path}: left out what stands beside {holder[:-1]!r} ({len(beside)}): {named}", stacklevel=2)
        state = {key.removeprefix(holder): value for key, value in state.items() if key.startswith(holder)}
    return state
