"""A model -> one safetensors file that needs nothing beside it: weights, architecture, preprocessing, licence."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vertebra.hub.factory import describe
from vertebra.hub.pretrained import METADATA_KEY
from vertebra.models.backbone import Backbone
from vertebra.spec import State, WeightsError, files


def save_model(
    model: Backbone,
    path: str | Path,
    *,
    extra: Mapping[str, Any] | None = None,
    state: State | None = None,
    half: bool = False,
) -> Path:
    """Write `model` to `path` (.safetensors): a whole file or none. `extra` joins the record in its metadata.

    A file that is there is written over, as by `torch.save`.

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
    try:
        with files.beside(path) as folder:
            save_file(tensors, folder / path.name, metadata=metadata)
            files.put([folder / path.name], path.parent)
    except (OSError, SafetensorError) as error:
        reason = as_os_error(error)
        raise WeightsError(f"cannot write {path}: {reason.strerror or reason}; nothing was changed") from reason
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
