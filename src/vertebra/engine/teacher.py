"""The model that a student learns from: its answers for the student's own images, in the student's classes.

b batch, c channels, h w height and width in pixels, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vertebra.data import labels_for, resolve_model_data_config
from vertebra.engine.config import DistillConfig
from vertebra.hub.factory import load_model
from vertebra.models.backbone import Backbone
from vertebra.runtime.machine import native_bf16
from vertebra.spec import VertebraError, did_you_mean


class Teacher:
    """Takes batches as the student gets them: augmented, mixed, and normalised with the student's mean and std."""

    def __init__(
        self, model: Backbone, classes: Sequence[str], student: dict[str, Any], size: int | None, device: torch.device
    ) -> None:
        config = cast("dict[str, Any]", resolve_model_data_config(model))
        self.model = model.eval().requires_grad_(False).to(device)
        self.columns = _columns(model, classes).to(device)
        self.size: tuple[int, int] = (size, size) if size else config["input_size"][-2:]
        self.low_precision = native_bf16(device)

        def vector(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=device).view(-1, 1, 1)

        ratio = vector(student["std"]) / vector(config["std"])
        shift = (vector(student["mean"]) - vector(config["mean"])) / vector(config["std"])
        same = torch.equal(ratio, torch.ones_like(ratio)) and not shift.any()
        self.affine = None if same else (ratio, shift)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits."""
        if self.affine is not None:
            images = images * self.affine[0] + self.affine[1]
        if images.shape[-2:] != self.size:
            smaller = images.shape[-1] > self.size[1]
            images = F.interpolate(images, self.size, mode="bicubic", align_corners=False, antialias=smaller)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.low_precision):
            logits: Tensor = self.model(images)
        return logits.float()[:, self.columns]


def load_teacher(
    config: DistillConfig, classes: Sequence[str], student: dict[str, Any], device: torch.device
) -> Teacher | None:
    """The teacher that a run names, or None. `student` is the student's data configuration (mean, std)."""
    if config.teacher is None:
        return None
    model = load_model(config.teacher, weights=config.weights)
    if config.image_size and hasattr(model, "set_input_size"):
        cast("Any", model).set_input_size(config.image_size)
    return Teacher(model, classes, student, config.image_size, device)


def _columns(model: Backbone, classes: Sequence[str]) -> Tensor:
    """Where the student's classes stand among the teacher's, by name; without names, in the same order."""
    known = labels_for(model.num_classes, model.pretrained_cfg)
    if known is None:
        if model.num_classes == len(classes):
            return torch.arange(len(classes))
        raise VertebraError(
            f"the teacher's {model.num_classes} classes have no names, and the data has {len(classes)} classes: "
            "use a teacher that was trained on this data"
        )
    where = {name: index for index, name in reversed(list(enumerate(known)))}
    missing = [name for name in classes if name not in where]
    if missing:
        raise VertebraError(
            f"the teacher does not know class {missing[0]!r} ({len(missing)} of {len(classes)} are unknown to it)"
            f"{did_you_mean(missing[0], known) or '; name folders as it does with data.names=FILE.csv'}"
        )
    return torch.tensor([where[name] for name in classes])
