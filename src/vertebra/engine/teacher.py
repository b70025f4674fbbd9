"""The model that a student learns from: its answers for the student's own images, in the student's classes.

b batch, c channels, h w height and width in pixels, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from safetensors.torch import load_file, save
from torch import Tensor

from vertebra.data import create_transform, labels_for, resolve_model_data_config
from vertebra.data.datasets import Part
from vertebra.data.labels import places
from vertebra.engine.checkpoint import write_whole
from vertebra.engine.config import DistillConfig
from vertebra.engine.evaluate import eval_loader
from vertebra.hub.factory import load_model
from vertebra.models.backbone import Backbone
from vertebra.runtime import cache
from vertebra.runtime.machine import native_bf16
from vertebra.runtime.optimize import optimize
from vertebra.spec import VertebraError, did_you_mean

ASKED_AT_ONCE = 64
"""Images."""


class Teacher:
    """Takes batches as the student gets them: augmented, mixed, and normalised with the student's mean and std."""

    def __init__(
        self,
        model: Backbone,
        classes: Sequence[str],
        student: dict[str, Any],
        size: int | None,
        device: torch.device,
        *,
        fast: bool = False,
    ) -> None:
        config = cast("dict[str, Any]", resolve_model_data_config(model))
        self.model = model.eval().requires_grad_(False).to(device)
        self.fast = fast
        self.columns = _columns(model, classes).to(device)
        self.size: tuple[int, int] = (size, size) if size else config["input_size"][-2:]
        self.low_precision = native_bf16(device)

        def vector(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=device).view(-1, 1, 1)

        ratio = vector(student["std"]) / vector(config["std"])
        shift = (vector(student["mean"]) - vector(config["mean"])) / vector(config["std"])
        same = torch.equal(ratio, torch.ones_like(ratio)) and not shift.any()
        self.affine = None if same else (ratio, shift)

    @cached_property
    def run(self) -> Callable[[Tensor], Tensor]:
        """Compiled with the first question: remembered answers need none."""
        return optimize(self.model) if self.fast else self.model

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b c h w"], indices: Tensor) -> Float[Tensor, "b k"]:
        """Logits."""
        if self.affine is not None:
            images = images * self.affine[0] + self.affine[1]
        if images.shape[-2:] != self.size:
            smaller = images.shape[-1] > self.size[1]
            images = F.interpolate(images, self.size, mode="bicubic", align_corners=False, antialias=smaller)
        return self.answer(images)

    def answer(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits for images as the teacher itself takes them."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.low_precision):
            logits: Tensor = self.run(images)
        return logits.float()[:, self.columns]


def load_teacher(
    config: DistillConfig, classes: Sequence[str], student: dict[str, Any], device: torch.device
) -> Teacher | None:
    """The teacher that a run names, or None. `student` is the student's data configuration (mean, std)."""
    if config.teacher is None:
        return None
    model = load_model(config.teacher, weights=config.weights)
    if config.image_size:
        model.set_input_size(config.image_size)
    return Teacher(model, classes, student, config.image_size, device, fast=config.optimize)


class Remembered:
    """A teacher's answers to whole images of a split, by their positions in it: no cost in training.

    They are kept in `folder`, in a file of float16 logits (n, k) named after the images, the teacher's weights and what
    it saw; where that file is there, the teacher is not asked.
    """

    def __init__(
        self, teacher: Teacher, part: Part, folder: Path, *, workers: int = 0, console: Console | None = None
    ) -> None:
        seen = {"images": part.fingerprint(), "size": teacher.size, "columns": teacher.columns.tolist()}
        path = folder.expanduser() / f"{cache.key(**seen, teacher=cache.weights_hash(teacher.model))}.safetensors"
        known = (
            load_file(path)["logits"] if path.is_file() else torch.full((len(part), len(teacher.columns)), torch.nan)
        )
        missing = known.isnan().any(1).nonzero().flatten().tolist()  # all; or what could not be read, and now may be
        if missing:
            path.parent.mkdir(parents=True, exist_ok=True)  # before the teacher is asked for hours
            known = known.half().index_copy(0, torch.tensor(missing), _ask(teacher, part, missing, workers, console))
            write_whole(path, save({"logits": known}))
        self.logits = known.to(teacher.columns.device)
        self.part = part

    def __call__(self, images: Tensor, indices: Tensor) -> Float[Tensor, "b k"]:
        """Logits. Raises where there are none, as the image could not be read when the teacher was asked."""
        logits = self.logits[indices.to(self.logits.device)].float()
        unknown = logits.isnan().any(1)
        if unknown.any():
            name = self.part.samples[int(indices[unknown.cpu()][0])].name
            raise VertebraError(
                f"{name} can be read now, and could not when the teacher was asked: start again with --resume auto, "
                "and it is asked about that"
            )
        return logits


@torch.inference_mode()
def _ask(teacher: Teacher, part: Part, chosen: Sequence[int], workers: int, console: Console | None) -> Tensor:
    """(n, k) in half precision, of the chosen images; nan where one cannot be read, which training skips too."""
    part = part.choose(chosen)
    config = cast("dict[str, Any]", resolve_model_data_config(teacher.model))
    whole: dict[str, Any] = {**config, "input_size": (3, *teacher.size), "crop_pct": 1.0}
    loader, finish = eval_loader(
        part, create_transform(**whole, is_training=False), batch_size=ASKED_AT_ONCE, workers=workers
    )
    logits = torch.full((len(part), len(teacher.columns)), torch.nan)
    columns = "teacher", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=console is None, transient=True) as progress:
        task = progress.add_task("", total=len(part))
        try:
            for batch in loader.epoch(0):
                if len(batch.labels):
                    images = finish(batch.images.to(teacher.columns.device))
                    logits[batch.indices] = teacher.answer(images).cpu()
                progress.advance(task, len(batch.labels) + len(batch.skipped))
        finally:
            loader.close()
    return logits.half()


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
    found, missing = places(classes, known)
    if missing:
        raise VertebraError(
            f"the teacher does not know class {missing[0]!r} ({len(missing)} of {len(classes)} are unknown to it)"
            f"{did_you_mean(missing[0], known) or '; name folders as it does with data.names=FILE.csv'}"
        )
    return torch.tensor(found)
