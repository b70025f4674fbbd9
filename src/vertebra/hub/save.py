"""A model -> one safetensors file that needs nothing beside it: weights, architecture, preprocessing, licence."""

import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vertebra.hub.factory import describe
from vertebra.hub.pretrained import METADATA_KEY
from vertebra.models.backbone import Backbone
from vertebra.spec import State, WeightsError


def save_model(
    model: Backbone,
    path: str | Path,
    *,
    extra: Mapping[str, Any] | None = None,
    state: State | None = None,
    half: bool = False,
) -> Path:
    """Write `model` to `path` (.safetensors): a whole file or none. `extra` joins the record in its metadata.

    `state` stands in the place of the model's own parameters and buffers (their average, or what was spread).
    `half`: kernels and matrices in float16, for half the size; norms and biases, which are small, stay as they are.

    `load_model(path)` and `vertebra classify --model path` read it back.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} must end in .safetensors")
    metadata = {"format": "pt", METADATA_KEY: json.dumps({**describe(model), **(extra or {})})}
    own = model.state_dict() if state is None else state
    tensors = {key: value.detach().contiguous() for key, value in own.items()}
    if half:
        tensors = {key: halved(value) for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder: safetensors writes under names of its own making, which nobody could tell once the process was killed.
    beside = path.parent / f".{path.name}.{os.getpid()}-{threading.get_ident()}"
    try:
        beside.mkdir(exist_ok=True)
        save_file(tensors, beside / path.name, metadata=metadata)
        (beside / "new").touch()  # has the rights of any new file; safetensors' own is for its owner alone
        (beside / path.name).chmod(stat.S_IMODE((beside / "new").stat().st_mode))
        with (beside / path.name).open("rb") as file:
            os.fsync(file.fileno())
        (beside / path.name).replace(path)
    except (OSError, SafetensorError) as error:
        reason = as_os_error(error)
        raise WeightsError(f"cannot write {path}: {reason.strerror or reason}; nothing was changed") from reason
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def as_os_error(error: OSError | SafetensorError) -> OSError:
    """For a full disk, safetensors has an error of its own that names the system's by number."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def halved(value: Tensor) -> Tensor:
    """In float16 where it is a kernel or a matrix. Raises `WeightsError` for values beyond float16's range."""
    if value.ndim < 2 or not value.is_floating_point():
        return value
    small = value.half()
    if bool((small.isinf() & value.isfinite()).any()):
        raise WeightsError(f"weights up to {float(value.abs().max()):.3g} do not fit float16; save without half")
    return small
