"""A `torch.export` archive (.pt2) read as `export_model` writes it: a graph, tensors, and nothing that is unpickled."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

from vertebra.runtime.private import pt2_reader
from vertebra.spec import VertebraError

_PROGRAM = "models/model.json"
_RAW = ("weight_", "tensor_")
"""How members begin that hold a tensor's bytes and nothing else."""


def read_program(path: Path) -> ExportedProgram:
    """The program. Raises `VertebraError` for a file that is damaged, or that torch would unpickle anything of.

    Not by `torch.export.load`: where this fails, that goes on with an older format, which is pickles throughout.
    """
    try:
        what = _unpickled(PT2ArchiveReader(str(path)))  # torch's own: of a crafted zip, others may read other members
        if not what:
            return pt2_reader()(str(path)).exported_programs["model"]
    except (RuntimeError, AssertionError, LookupError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VertebraError(f"{path} cannot be read: {reason}; export the model anew") from error
    raise VertebraError(
        f"{path} was not written by `vertebra export`: {what}, through which torch runs its author's code; export the"
        " model anew"
    )


def _unpickled(reader: PT2ArchiveReader) -> str:
    """The first member that is more than data, and why; "" where there is none."""
    names = [name.lower() for name in reader.get_file_names()]  # torch finds members in any case
    if len(set(names)) < len(names):
        return "two members share a name"
    for name in names:
        if name.startswith("data/aotinductor/"):
            return f"{name} is machine code"
        if name.startswith("models/") and name != _PROGRAM:
            return f"{name} is a second program"
        if name.endswith(".pt") and not _only_tensors(reader.read_bytes(name)):
            return f"{name} pickles more than tensors"
        if name.endswith("_config.json") and not _raw_bytes(reader.read_bytes(name)):
            return f"{name} names pickles"
    return ""


def _only_tensors(data: bytes) -> bool:
    """Whether torch's first try succeeds; after a failure it would unpickle whatever is there."""
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError):
        return not data  # which torch leaves alone
    return True


def _raw_bytes(config: bytes) -> bool:
    """Whether a table of weights or constants has each of them as plain bytes."""
    try:
        entries: dict[str, dict[str, Any]] = json.loads(config)["config"]
        return all(e["use_pickle"] is False and e["path_name"].startswith(_RAW) for e in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError):  # not as torch writes it
        return False
