"""Any number of classes an image: what such a run may not ask for, and what a model's answers are worth.

b batch, k classes, n images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vertebra.data.datasets import Dataset, one_each
from vertebra.data.loader import Batch
from vertebra.engine.config import RunConfig
from vertebra.engine.evaluate import collect
from vertebra.spec import VertebraError

LOSSES = ("bce", "focal_bce")
"""Those that ask one question a class."""
THRESHOLD = 0.5
"""Probability from which on a class counts as answered."""


def settle(config: RunConfig, dataset: Dataset) -> Dataset:
    """The data as the loss takes it. Raises `VertebraError` where a setting wants exactly one class an image."""
    if config.loss.kind not in LOSSES:
        dataset = one_each(dataset)  # columns of 0 and 1 in which each line has just one 1
    if not dataset.multi_label:
        return dataset
    if config.loss.kind not in LOSSES:
        raise VertebraError(
            f"{dataset.source} gives images several classes or none, and loss.kind={config.loss.kind} expects exactly "
            f"one class per image; set loss.kind=bce, or {LOSSES[1]}"
        )
    if config.distill.teacher is not None:
        raise VertebraError(
            f"{dataset.source} gives images several classes or none, and a teacher's answer is one class; "
            "leave distill.teacher out"
        )
    return dataset


def smoothed(targets: Tensor, smoothing: float) -> Tensor:
    """Rows (b, k) whose every answer moves by half of `smoothing` towards the middle; class numbers (b,) stay."""
    return targets * (1 - smoothing) + smoothing / 2 if targets.ndim == 2 else targets


@dataclass(frozen=True, slots=True)
class MultiAnswers:
    """One row an image, in the order of the split."""

    indices: Tensor
    """(n,) positions in the split."""
    labels: Tensor
    """(n, k) whether the image has the class."""
    probabilities: Tensor
    """(n, k) of each class by itself."""
    losses: Tensor
    """(n,) binary cross entropy, averaged over the classes."""


@dataclass(frozen=True, slots=True)
class MultiMetrics:
    """Shares are 0..1; lists are in the order of the classes; answers from `THRESHOLD` on count as said."""

    MAIN: ClassVar[str] = "map"

    images: int
    skipped: int
    """Images that could not be read; they count nowhere else."""
    loss: float
    map: float
    """Mean of the classes' average precision, of those that occur."""
    macro_f1: float
    """Mean of the classes' F1, of those that occur or were said."""
    micro_f1: float
    """F1 of all answers together."""
    ece: float
    """Expected calibration error, over 15 bins of every class's probability."""
    average_precision: list[float]
    """nan for a class that does not occur."""
    recall: list[float]
    precision: list[float]
    f1: list[float]
    occurs: list[int]
    """Images that have the class."""

    def summary(self) -> dict[str, float]:
        """The numbers that stand for the whole."""
        return {name: getattr(self, name) for name in ("loss", "map", "macro_f1", "micro_f1", "ece")}


@dataclass(frozen=True, slots=True)
class MultiEvaluation:
    metrics: MultiMetrics
    answers: MultiAnswers
    skipped: list[tuple[int, str]]
    """(position in the split, why)"""


@torch.inference_mode()
def evaluate_rows(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    num_classes: int,
    *,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device | str = "cpu",
) -> MultiEvaluation:
    """As `evaluate`, for batches with rows (b, k)."""
    none = [torch.empty(0, num_classes, dtype=torch.bool), torch.empty(0, num_classes), torch.empty(0)]
    columns, skipped = collect(forward, batches, _answer, none, prepare=prepare, device=device)
    answers = MultiAnswers(*columns)
    return MultiEvaluation(measure(answers, len(skipped)), answers, skipped)


def _answer(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    return labels.bool().cpu(), logits.sigmoid().cpu(), losses.cpu()


def measure(answers: MultiAnswers, skipped: int = 0) -> MultiMetrics:
    """What the answers are worth. With no image at all, every number is nan."""
    from torchmetrics.functional.classification import binary_calibration_error

    true, p = answers.labels, answers.probabilities
    n, classes = true.shape
    said = p >= THRESHOLD
    hits, said_of, true_of = ((rows.sum(0)).double() for rows in (true & said, said, true))
    f1 = 2 * hits / (true_of + said_of).clamp_min(1)
    occurs = (true_of + said_of) > 0
    ap = _average_precision(true, p)
    nan = float("nan")
    return MultiMetrics(
        images=n,
        skipped=skipped,
        loss=float(answers.losses.double().mean()),
        map=float(ap[~ap.isnan()].mean()),
        macro_f1=float(f1[occurs].mean()),
        micro_f1=float(2 * hits.sum() / (true_of + said_of).sum()),
        ece=float(binary_calibration_error(p.flatten(), true.flatten().long(), n_bins=15)) if n else nan,
        average_precision=ap.tolist(),
        recall=(hits / true_of).tolist(),
        precision=(hits / said_of).tolist(),
        f1=f1.tolist() if n else [nan] * classes,
        occurs=[int(count) for count in true_of.tolist()],
    )


def _average_precision(true: Tensor, p: Tensor) -> Tensor:
    """(k,), nan for a class without an image, for which it is not defined."""
    from torchmetrics.functional.classification import multilabel_average_precision

    out = torch.full((true.shape[1],), float("nan"), dtype=torch.double)
    there = true.any(0).nonzero().flatten()
    if len(there) == 1:  # torchmetrics wants two labels or more
        there = there.repeat(2)
    if len(there):
        out[there] = multilabel_average_precision(
            p[:, there], true[:, there].long(), num_labels=len(there), average="none"
        ).double()
    return out


def as_record(metrics: MultiMetrics, classes: Sequence[str]) -> dict[str, Any]:
    """An evaluation as JSON: the summary, a row a class."""
    m = metrics
    rows = zip(classes, m.average_precision, m.recall, m.precision, m.f1, m.occurs, strict=True)
    return {
        "images": m.images,
        "skipped": m.skipped,
        **m.summary(),
        "classes": [
            {"name": name, "ap": ap, "recall": recall, "precision": precision, "f1": f1, "images": images}
            for name, ap, recall, precision, f1, images in rows
        ],
    }
