"""The graph that is exported: which inputs it takes, what lies around the model, which sizes may vary.

b batch, c channels, h w height and width in pixels, k classes.
"""

import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vertebra.data import resolve_model_data_config
from vertebra.export.resample import DECOMPOSITIONS, Photo, photo_shape
from vertebra.hub.registry import REGISTRY
from vertebra.models.backbone import Backbone
from vertebra.runtime.private import export_error
from vertebra.spec import VertebraError

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Plan:
    """A module ready for `torch.export`, an example of its input, and what of that may vary."""

    module: nn.Module
    example: Tensor
    dynamic: dict[int, Any]
    multiple: int | None
    """Height and width may be any multiple of this; None: fixed, or any (photos)."""

    def program(self) -> ExportedProgram:
        """The traced graph. Raises `VertebraError` where the model cannot take what was asked for."""
        try:
            program = torch.export.export(self.module, (self.example,), dynamic_shapes=(self.dynamic,))
        except export_error() as error:
            reason = str(error).partition("Suggested fixes")[0]
            raise VertebraError(f"torch.export cannot trace the model: {' '.join(reason.split())[:400]}") from error
        found = {node.target for node in program.graph.nodes}
        # Only where there is something to replace: it traces the graph anew, which takes longer than the export did.
        return program.run_decompositions(DECOMPOSITIONS) if found & DECOMPOSITIONS.keys() else program


class _Whole(nn.Module):
    """[photo ->] float32 image -> model in its own type -> float32 logits [-> probabilities]."""

    def __init__(self, model: Backbone, photo: Photo | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.photo = photo
        self.model = model
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        if self.photo is not None:
            image = self.photo(image)
        logits = self.model(image.to(self.dtype)).to(torch.float32)
        return logits if self.photo is None else logits.softmax(-1)


def plan(model: Backbone, *, dtype: torch.dtype, with_preprocess: bool, dynamic_size: bool, batch: int | None) -> Plan:
    """What to trace for `model` (in eval mode, on the CPU); the model itself is left as it is.

    Raises `VertebraError` for what cannot be combined.
    """
    config: dict[str, Any] = resolve_model_data_config(model)
    inner = any_size(model) if dynamic_size else copy.deepcopy(model)
    whole = _Whole(inner.to(dtype), Photo(config) if with_preprocess else None, dtype).eval()
    count = batch or 2  # 1 would be taken for a constant
    if with_preprocess:
        shape, example = photo_shape(), torch.zeros(count, 320, 400, 3, dtype=torch.uint8)
    else:
        height, width = (int(n) for n in config["input_size"][-2:])
        multiple = size_multiple(model) if dynamic_size else 0
        height, width = _example_size(height, multiple, 2), _example_size(width, multiple, 3)
        example = torch.zeros(count, model.in_chans, height, width)
        shape: dict[int, Any] = {0: Dim("batch", min=1)}
        if dynamic_size:
            shape |= {2: multiple * Dim("rows", min=2), 3: multiple * Dim("columns", min=2)}
    if batch is not None:
        del shape[0]
    return Plan(whole, example, shape, size_multiple(model) if dynamic_size else None)


def _example_size(native: int, multiple: int, more: int) -> int:
    """Height and width differ from each other and from the native size, so that no equality is taken for a rule."""
    return native if multiple == 0 else (native // multiple + more) * multiple


def photo_plan(model: Backbone) -> Plan:
    """The preprocessing alone."""
    example = torch.zeros(2, 320, 400, 3, dtype=torch.uint8)
    return Plan(Photo(resolve_model_data_config(model)), example, photo_shape(), None)


def size_multiple(model: Backbone) -> int:
    """Pixels of which height and width must be multiples: the patch, or a CNN's whole reduction."""
    return max(stage["reduction"] for stage in model.feature_info)


def any_size(model: Backbone) -> Backbone:
    """A copy that takes images of other sizes: a CNN does already, a ViT resamples its position embedding."""
    if "dynamic_img_size" not in {f.name for f in fields(model.config)}:
        return copy.deepcopy(model)
    changed: dict[str, Any] = {"dynamic_img_size": True, "num_classes": model.num_classes}
    family = REGISTRY.family(str(model.pretrained_cfg["architecture"]))
    with torch.device("meta"):
        other: Backbone = family.build(replace(model.config, **changed))
    other.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    return other.eval()
