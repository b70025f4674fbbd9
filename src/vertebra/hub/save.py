"""A model -> one safetensors file that needs nothing beside it: weights, architecture, preprocessing, licence."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vertebra.hub.factory import METADATA_KEY, describe
from vertebra.models.backbone import Backbone
from vertebra.spec import WeightsError


def save_model(model: Backbone, path: str | Path, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Write `model` to `path` (.safetensors): a whole file or none. `extra` joins the record in its metadata.

    `load_model(path)` and `vertebra classify --model path` read it back.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} must end in .safetensors")
    metadata = {"format": "pt", METADATA_KEY: json.dumps({**describe(model), **(extra or {})})}
    state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(state, temporary, metadata=metadata)
        with Path(temporary).open("rb") as file:
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path
