"""A checkpoint file -> a flat dict of tensors. safetensors is read by mapping; pickles may hold nothing but tensors."""

import argparse
import json
import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vertebra.spec import State, WeightsError

WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put a state dict, averaged weights first."""

_PREFIXES = ("module.", "model.", "net.", "network.")
"""Where all names begin so: of DDP and `AveragedModel`, of Lightning's modules, of a training script's own."""
_COMPILED = re.compile(r"(?<![^.])_orig_mod\.")
"""What `torch.compile` puts before the names of what it compiled: the whole model, or a part anywhere in it."""
_AVERAGED = "n_averaged"
"""`AveragedModel`'s counter."""
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
"""Of a terminal, in torch's own messages."""
_CAUSE = re.compile(r"[Uu]nsupported (?:global: )?(GLOBAL \S+)")
"""What would have been called, in those messages."""
_MAPPED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "F64": torch.float64}


def read_file(path: Path | str) -> tuple[State, dict[str, str]]:
    """(state dict, metadata) of a checkpoint: what safetensors carries; of a pickle, the `wrapper` it had."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no checkpoint at {path}{'; it is a folder' if path.is_dir() else ''}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
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


def read_header(path: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors, and under `__metadata__` of itself, without reading them."""
    with path.open("rb") as raw:
        return json.loads(raw.read(int.from_bytes(raw.read(8), "little")))


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """The library checks the file; the usual types are then mapped here, at a quarter of its time for a tensor."""
    try:
        with safe_open(path, framework="pt") as file, path.open("rb") as raw:
            start = 8 + int.from_bytes(raw.read(8), "little")
            header = read_header(path)
            content = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)
            state = State()
            for key in file.keys():  # noqa: SIM118
                entry = header[key]
                dtype, (begin, end) = _MAPPED.get(entry["dtype"]), entry["data_offsets"]
                if dtype is None or begin == end:
                    state[key] = file.get_tensor(key)
                else:
                    count = (end - begin) // dtype.itemsize
                    flat = torch.frombuffer(content, dtype=dtype, count=count, offset=start + begin)
                    state[key] = flat.view(entry["shape"])
            return state, dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error


def _read_npz(path: Path) -> State:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    except (zipfile.BadZipFile, ValueError, TypeError, EOFError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as an .npz of arrays: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        # Read, not mapped: training scripts rewrite such files in place, under the feet of who maps them.
        # Training scripts keep their arguments beside the weights, as a Namespace, which holds data alone.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
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
    """The state dict inside what a training script saved: without wrapper keys, and without what DDP, averaging,
    Lightning and `torch.compile` put before names.
    """
    for key in wrappers(content):
        content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    state = {_COMPILED.sub("", key): value for key, value in cast("Mapping[str, Any]", content).items()}
    if all(key.startswith("module.") or key == _AVERAGED for key in state):
        state.pop(_AVERAGED, None)
    while prefix := next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    foreign = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise WeightsError(
            f"{path} holds no state dict: {foreign[0]!r} is a {type(state[foreign[0]]).__name__}, not a tensor"
        )
    return state
