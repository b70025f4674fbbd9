"""What training minimises. b batch, k classes; logits are taken in float32, whatever the model computes in.

Targets are class numbers (b,) or rows (b, k) of weights; what comes from mixup, or says several classes, is rows.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.data.mix import soft_targets
from vertebra.spec import VertebraError, unknown_name

LOSSES = ("cross_entropy", "bce", "focal", "focal_bce")
Outputs = Tensor | tuple[Tensor, Tensor]
"""Logits (b, k), or those of the class head and of the distillation head."""


def _check_smoothing(smoothing: float) -> float:
    if not 0 <= smoothing < 1:
        raise VertebraError(f"label_smoothing={smoothing}: give a share of at least 0 and below 1, as 0.1")
    return smoothing


def _rows(target: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """Rows as given (they were smoothed where they were made), or made of class numbers."""
    if target.ndim == 1:
        return soft_targets(target, logits.shape[-1], smoothing)
    if target.shape != logits.shape:
        raise VertebraError(
            f"targets of shape {tuple(target.shape)} do not fit logits of shape {tuple(logits.shape)}: "
            "give class numbers (b,) or rows (b, k)"
        )
    return target.to(logits.dtype)


class CrossEntropy(nn.Module):
    """Softmax cross entropy, averaged over the batch. `weight` (k,) scales classes, as torch does; for class numbers
    the average is weighted, too. Smoothing applies to class numbers only.

    `mean_weight`: that of all images of an update, where the batch is a part of it: the parts' average, weighted by
    their images, is then the loss of all in one batch. None: of the batch itself.
    """

    def __init__(self, smoothing: float = 0.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.smoothing = _check_smoothing(smoothing)
        self.register_buffer("weight", weight, persistent=False)
        self.weight: Tensor | None

    def forward(
        self, logits: Float[Tensor, "b k"], target: Tensor, *, mean_weight: Tensor | None = None
    ) -> Float[Tensor, ""]:
        logits = logits.float()
        if target.ndim == 1 and mean_weight is not None:
            total = F.cross_entropy(logits, target, weight=self.weight, label_smoothing=self.smoothing, reduction="sum")
            return total / (mean_weight * len(target))
        if target.ndim == 1:
            return F.cross_entropy(logits, target, weight=self.weight, label_smoothing=self.smoothing)
        return F.cross_entropy(logits, _rows(target, logits, 0.0), weight=self.weight)


class BinaryCrossEntropy(nn.Module):
    """One yes-or-no question a class: for several labels an image, or as in "ResNet strikes back" (arXiv:2110.00476).

    `target_threshold`: rows become 1 where they exceed it, 0 elsewhere. `sum_classes` sums over the classes instead of
    averaging. `weight` (k,) scales classes, `pos_weight` (k,) their positive answers.
    """

    def __init__(
        self,
        smoothing: float = 0.0,
        target_threshold: float | None = None,
        *,
        sum_classes: bool = False,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.smoothing = _check_smoothing(smoothing)
        self.target_threshold = target_threshold
        self.sum_classes = sum_classes
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("pos_weight", pos_weight, persistent=False)
        self.weight: Tensor | None
        self.pos_weight: Tensor | None

    def forward(self, logits: Float[Tensor, "b k"], target: Tensor) -> Float[Tensor, ""]:
        logits = logits.float()
        rows = _rows(target, logits, self.smoothing)
        if self.target_threshold is not None:
            rows = (rows > self.target_threshold).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(
            logits, rows, weight=self.weight, pos_weight=self.pos_weight, reduction="none"
        )
        return loss.sum(-1).mean() if self.sum_classes else loss.mean()


class Focal(nn.Module):
    """Cross entropy that looks away from what is already right, by (1 - p)^gamma (Lin et al., arXiv:1708.02002).

    `binary`: the paper's form, one question a class. `gamma=0` is plain (binary) cross entropy. `weight` (k,) scales
    classes, and `mean_weight` is, as in those.
    """

    def __init__(
        self, gamma: float = 2.0, smoothing: float = 0.0, weight: Tensor | None = None, *, binary: bool = False
    ) -> None:
        super().__init__()
        if gamma < 0:
            raise VertebraError(f"gamma={gamma}: give 0 (plain cross entropy) or more, as 2.0")
        self.gamma = gamma
        self.smoothing = _check_smoothing(smoothing)
        self.binary = binary
        self.register_buffer("weight", weight, persistent=False)
        self.weight: Tensor | None

    def forward(
        self, logits: Float[Tensor, "b k"], target: Tensor, *, mean_weight: Tensor | None = None
    ) -> Float[Tensor, ""]:
        logits = logits.float()
        rows = _rows(target, logits, self.smoothing)
        scale = 1.0 if self.weight is None else self.weight
        if self.binary:
            wrong = (rows - torch.sigmoid(logits)).abs()
            loss = F.binary_cross_entropy_with_logits(logits, rows, reduction="none")
            return (scale * wrong**self.gamma * loss).mean()
        log_p = F.log_softmax(logits, dim=-1)
        loss = -rows * log_p * (1 - log_p.exp()).clamp_min(0) ** self.gamma
        mean = (scale * loss).sum(-1).mean()
        own = weights_of(self, target)
        if own is None:
            return mean
        return mean / (own.mean() if mean_weight is None else mean_weight)


class Distillation(nn.Module):
    """(1 - alpha) x `base` on the labels, and alpha x agreement with a teacher (Touvron et al., arXiv:2012.12877).

    "hard": cross entropy with the teacher's best class; "soft": tau^2 x KL of the softened answers, averaged over the
    batch. A model with two heads learns the labels with the first and the teacher with the second; one with a single
    head learns both with it.
    """

    def __init__(
        self, base: nn.Module, kind: Literal["hard", "soft"] = "hard", alpha: float = 0.5, tau: float = 1.0
    ) -> None:
        super().__init__()
        if kind not in ("hard", "soft"):
            raise unknown_name("distillation", kind, ("hard", "soft"))
        if not 0 <= alpha <= 1 or tau <= 0:
            raise VertebraError(f"alpha={alpha}, tau={tau}: alpha lies in 0..1, tau is above 0")
        self.base = base
        self.kind: Literal["hard", "soft"] = kind
        self.alpha = alpha
        self.tau = tau

    def forward(
        self, outputs: Outputs, target: Tensor, teacher: Float[Tensor, "b k"], *, mean_weight: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """`teacher`: its logits for the very images that the student saw. `mean_weight`: for `base`."""
        by_label, by_teacher = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        if teacher.shape != by_teacher.shape:
            raise VertebraError(
                f"the teacher answers {tuple(teacher.shape)}, the student {tuple(by_teacher.shape)}: "
                "both need the same classes in the same order"
            )
        weighted = {} if mean_weight is None else {"mean_weight": mean_weight}
        labels: Tensor = self.base(by_label, target, **weighted)
        return (1 - self.alpha) * labels + self.alpha * self._agreement(by_teacher, teacher)

    def _agreement(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = student.float(), teacher.detach().float()
        if self.kind == "hard":
            return F.cross_entropy(student, teacher.argmax(-1))
        log_s, log_t = (F.log_softmax(logits / self.tau, dim=-1) for logits in (student, teacher))
        return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * self.tau**2


def weights_of(loss: nn.Module, target: Tensor) -> Float[Tensor, "b"] | None:
    """What the images count in the loss's average over the batch; None where all count the same."""
    base = loss.base if isinstance(loss, Distillation) else loss
    if not isinstance(base, (CrossEntropy, Focal)) or base.weight is None or target.ndim != 1:
        return None
    if isinstance(base, Focal) and base.binary:
        return None
    return base.weight[target]


def class_weights(counts: Tensor, beta: float = 1.0) -> Float[Tensor, "k"]:
    """Weights (k,) with mean 1 for classes with these numbers of images: inverse to them for `beta` 1, even for 0."""
    if (counts <= 0).any():
        empty = int((counts <= 0).nonzero()[0])
        raise VertebraError(f"class {empty} has no images: leave it out, or give it some")
    weights = counts.double().pow(-beta)
    return (weights / weights.mean()).float()


def create_loss(
    name: str = "cross_entropy",
    *,
    smoothing: float = 0.0,
    weight: Tensor | None = None,
    target_threshold: float | None = None,
    sum_classes: bool = False,
    gamma: float = 2.0,
) -> nn.Module:
    """The loss of that name; an option that the loss does not have must keep its default."""
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    if name != "bce" and (target_threshold is not None or sum_classes):
        raise VertebraError(f"loss {name!r} has no target_threshold and no sum_classes: use 'bce', or leave them out")
    if not name.startswith("focal") and gamma != 2.0:
        raise VertebraError(f"loss {name!r} has no gamma: use 'focal' or 'focal_bce', or leave it out")
    if name == "cross_entropy":
        return CrossEntropy(smoothing, weight)
    if name == "bce":
        return BinaryCrossEntropy(smoothing, target_threshold, sum_classes=sum_classes, weight=weight)
    return Focal(gamma, smoothing, weight, binary=name == "focal_bce")
