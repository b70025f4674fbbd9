"""A model's answers over a whole split, and what they are worth. Training and `vertebra validate` call the same.

b batch, k classes, n images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vertebra.data.datasets import Part
from vertebra.data.loader import Batch, Loader, Order
from vertebra.engine.reading import Transform, split

BEST = 5
"""Answers kept for an image: its likeliest classes."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One row an image, in the order of the split."""

    indices: Tensor
    """(n,) positions in the split."""
    labels: Tensor
    """(n,) true classes."""
    best: Tensor
    """(n, min(5, k)) likeliest classes, best first."""
    confidence: Tensor
    """(n,) probability of the likeliest."""
    losses: Tensor
    """(n,) cross entropy."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Shares are 0..1; lists are in the order of the classes."""

    MAIN: ClassVar[str] = "top1"
    """The figure by which epochs are compared."""

    images: int
    skipped: int
    """Images that could not be read; they count nowhere else."""
    loss: float
    top1: float
    top5: float
    macro_f1: float
    """Mean of the classes' F1, of those that occur or were said."""
    ece: float
    """Expected calibration error, over 15 bins of the best class' probability."""
    recall: list[float]
    precision: list[float]
    f1: list[float]
    confusion: list[list[int]]
    """Rows: true classes; columns: answers."""

    def summary(self) -> dict[str, float]:
        """The numbers that stand for the whole."""
        return {name: getattr(self, name) for name in ("loss", "top1", "top5", "macro_f1", "ece")}


@dataclass(frozen=True, slots=True)
class Evaluation:
    metrics: Metrics
    answers: Answers
    skipped: list[tuple[int, str]]
    """(position in the split, why)"""


def eval_loader(
    part: Part,
    transform: Transform,
    *,
    batch_size: int,
    workers: int,
    size: int = 1,
    rank: int = 0,
    exact: bool = False,
) -> tuple[Loader, Callable[[Tensor], Tensor]]:
    """A split in order, each image once over all processes, and what finishes a batch on the device."""
    steps = split(transform, exact=exact)
    order = Order(images=len(part), batch_size=batch_size, shuffle=False, size=size, rank=rank)
    return Loader(part, steps, order, workers=workers, pin=torch.cuda.is_available()), steps.batch or (lambda x: x)


@torch.inference_mode()
def evaluate(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    num_classes: int,
    *,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Every image once, however many processes share the split; each of them gets the whole answer.

    `prepare` takes the loader's batch, on `device`, to what `forward` answers with (b, k) logits.
    """
    whole, real = torch.empty(0, dtype=torch.long), torch.empty(0)
    none = [whole, torch.empty(0, min(BEST, num_classes), dtype=torch.long), real, real]
    columns, skipped = collect(forward, batches, _answer, none, prepare=prepare, device=device)
    answers = Answers(*columns)
    return Evaluation(measure(answers, num_classes, len(skipped)), answers, skipped)


def collect(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    answer: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    none: list[Tensor],
    *,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device | str,
) -> tuple[list[Tensor], list[tuple[int, str]]]:
    """Positions in the split, and what `answer` keeps of (logits, labels), of all processes and in order; and what
    could not be read. `none`: the columns of no image at all.
    """
    rows: list[tuple[Tensor, ...]] = []
    skipped: list[tuple[int, str]] = []
    for batch in batches:
        skipped += batch.skipped
        if len(batch.labels):
            images = prepare(batch.images.to(device, non_blocking=True))
            rows.append((batch.indices, *answer(forward(images).float(), batch.labels.to(device))))
    nothing = [torch.empty(0, dtype=torch.long), *none]
    columns = [torch.cat(column) for column in zip(*rows, strict=True)] if rows else nothing
    columns, skipped = _of_all_processes(columns, skipped)
    order = columns[0].argsort()
    assert len(columns[0].unique()) == len(order), "an image was counted twice"
    return [column[order] for column in columns], sorted(skipped)


def _answer(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    probabilities = logits.softmax(-1)
    top = probabilities.topk(min(BEST, logits.shape[-1]))
    losses = F.cross_entropy(logits, labels, reduction="none")
    return labels.cpu(), top.indices.cpu(), top.values[:, 0].cpu(), losses.cpu()


def _of_all_processes(
    columns: list[Tensor], skipped: list[tuple[int, str]]
) -> tuple[list[Tensor], list[tuple[int, str]]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return columns, skipped
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, (columns, skipped))
    joined = [torch.cat(parts) for parts in zip(*(theirs for theirs, _ in gathered), strict=True)]
    return joined, [item for _, theirs in gathered for item in theirs]


def measure(answers: Answers, num_classes: int, skipped: int = 0) -> Metrics:
    """What the answers are worth. With no image at all, every number is nan."""
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_confusion_matrix

    n = len(answers.labels)
    if n == 0:
        nan, none = float("nan"), [float("nan")] * num_classes
        empty = [[0] * num_classes for _ in range(num_classes)]
        return Metrics(0, skipped, nan, nan, nan, nan, nan, none, none, none, empty)
    right = answers.best == answers.labels[:, None]
    confusion = multiclass_confusion_matrix(answers.best[:, 0], answers.labels, num_classes)
    hits, true, said = confusion.diag().double(), confusion.sum(1).double(), confusion.sum(0).double()
    f1 = 2 * hits / (true + said).clamp_min(1)
    occurs = (true + said) > 0
    confidence = answers.confidence.clamp(0, 1)
    return Metrics(
        images=n,
        skipped=skipped,
        loss=float(answers.losses.double().mean()),
        top1=float(right[:, 0].double().mean()),
        top5=float(right.any(1).double().mean()),
        macro_f1=float(f1[occurs].mean()),
        ece=float(binary_calibration_error(confidence, right[:, 0].long(), n_bins=15)),
        recall=(hits / true).tolist(),
        precision=(hits / said).tolist(),
        f1=f1.tolist(),
        confusion=confusion.tolist(),
    )


def worst(evaluation: Evaluation, count: int) -> list[int]:
    """Rows of `answers` whose answer is wrong, the surest first."""
    answers = evaluation.answers
    wrong = (answers.best[:, 0] != answers.labels).nonzero().flatten()
    order = answers.confidence[wrong].argsort(descending=True, stable=True)
    chosen: Sequence[int] = wrong[order][:count].tolist()
    return list(chosen)
