"""A model -> one safetensors file that needs nothing beside it: weights, architecture, preprocessing, licence."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors.torch import save_file
from torch import Tensor

from vertebra.hub.factory import describe
from vertebra.hub.pretrained import METADATA_KEY
from vertebra.models.backbone import Backbone
from vertebra.spec import WeightsError


def save_model(
    model: Backbone, path: str | Path, *, extra: Mapping[str, Any] | None = None, half: bool = False
) -> Path:
    """Write `model` to `path` (.safetensors): a whole file or none. `extra` joins the record in its metadata.

    `half`: kernels and matrices in float16, for half the size; norms and biases, which are small, stay as they are.

    `load_model(path)` and `vertebra classify --model path` read it back.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} must end in .safetensors")
    metadata = {"format": "pt", METADATA_KEY: json.dumps({**describe(model), **(extra or {})})}
    state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    if half:
        state = {key: halved(value) for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        save_file(state, temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # the library lets nobody else read it
        temporary.replace(path)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def halved(value: Tensor) -> Tensor:
    """In float16 where it is a kernel or a matrix. Raises `WeightsError` for values beyond float16's range."""
    if value.ndim < 2 or not value.is_floating_point():
        return value
    small = value.half()
    if bool((small.isinf() & value.isfinite()).any()):
        raise WeightsError(f"weights up to {float(value.abs().max()):.3g} do not fit float16; save without half")
    return small
