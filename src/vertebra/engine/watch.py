"""What says that a run learns nothing, before it starts and while it goes: each in one line, with what to change."""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from vertebra.data.datasets import class_counts
from vertebra.data.loader import target
from vertebra.engine.losses import Distillation
from vertebra.engine.multilabel import smoothed
from vertebra.engine.setup import Run
from vertebra.engine.state import State

FEW, EPOCHS = 1000, 30
"""Training photos below which so many epochs are advised, as the recipe `finetune` says."""
GROWN = 2.0
"""A loss of so many times that of guessing grows."""
SETTLED = 10
"""Updates of an epoch after which its loss is looked at."""
SOON = 3
"""Epochs after which a model should know more than which class is the most frequent."""
ASKED = 256
"""Labels of which the loss of guessing is taken."""
NAMED = 3


def before(run: Run) -> list[str]:
    """Of data and settings."""
    c, images = run.config, len(run.train.part)
    batch = c.data.batch_size * c.optim.accumulate
    lines: list[str] = []
    if run.updates == 1 and images > 1:
        lines.append(
            f"an epoch is one update ({images:,} training images, {batch:,} an update), so that {c.epochs} epochs "
            f"change the weights {c.epochs} times; give fewer images an update, as --batch-size {max(2, images // 8)}"
        )
    if images < FEW and c.epochs < EPOCHS:
        lines.append(
            f"{images:,} training images and {c.epochs} epochs are {c.epochs * run.updates:,} updates; with fewer than "
            f"{FEW:,} photos give --epochs {EPOCHS} or more"
        )
    lone = [name for name, count in class_counts(run.dataset.part("train"), run.dataset.classes).items() if count == 1]
    if lone:
        more = f" and {len(lone) - NAMED} more" if len(lone) > NAMED else ""
        lines.append(
            f"a single photo to learn from: {', '.join(map(repr, lone[:NAMED]))}{more}; give such a class more, or "
            "leave it out"
        )
    return lines


class Watch:
    """Looks at the figures of a run as they come."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._told = False

    @cached_property
    def guessing(self) -> float | None:
        """The loss of a model that finds all classes alike; None beside a teacher, whose answers nobody knows."""
        run = self.run
        if isinstance(run.loss, Distillation):
            return None
        part = run.train.part
        rows = [target(part, position) for position in range(0, len(part), -(-len(part) // ASKED))]
        labels = torch.stack(cast("list[Tensor]", rows)) if isinstance(rows[0], Tensor) else torch.tensor(rows)
        with torch.no_grad():
            targets = smoothed(labels.to(run.device), run.config.loss.smoothing)
            return float(run.loss(torch.zeros(len(rows), len(run.classes), device=run.device), targets))

    def losses(self, state: State, loss: float, updates: int) -> list[str]:
        """`loss`: the mean so far of an epoch, over so many updates."""
        known = self.guessing if self.guessing is not None else next((r["train_loss"] for r in state.metrics), math.nan)
        if self._told or updates < min(SETTLED, self.run.updates) or not loss > GROWN * known:
            return []
        self._told = True
        first = "guessing has" if self.guessing is not None else "the first epoch had"
        lr = max(group["lr"] for group in self.run.optimizer.param_groups)
        line = f"the loss is {loss:.3g}, where {first} {known:.3g}: it grows; lower --lr (now {lr:.2g})" + (
            "" if self.run.config.optim.clip_norm else ", or bound the gradient with --set optim.clip_norm=1"
        )
        return [line]

    def epoch(self, state: State) -> list[str]:
        """After it was validated."""
        rows, run = state.metrics, self.run
        if run.dataset.multi_label or len(rows) < SOON or len(rows) not in (SOON, run.config.epochs):
            return []
        best, counts = max(row["val_top1"] for row in rows), Counter(cast("list[int]", run.val.part.labels))
        most, images = max(counts.values()) / len(run.val.part), len(run.val.part)
        sure = 2 * math.sqrt(most * (1 - most) / images) if images >= ASKED else 0.0
        if best > most + sure:
            return []
        line = (
            f"after {len(rows)} epochs the best top-1 is {best:.1%}, and naming the most frequent class alone gives "
            f"{most:.1%}; {self._advice(state)}"
        )
        return [line]

    def _advice(self, state: State) -> str:
        c, loss = self.run.config, state.metrics[-1]["train_loss"]
        decay = c.ema.decay
        if decay is not None and not c.ema.warmup and decay**state.updates > 0.5:
            return f"the average of the weights still is the first ones (ema.decay={decay:g}): set ema.warmup=true"
        if self.guessing is not None and loss < 0.9 * self.guessing:
            return "the training loss falls, so see whether the labels are right: `vertebra doctor DATA`"
        starts = c.model.pretrained or c.model.weights is not None
        start = "" if starts else ", start from a checkpoint (--pretrained)"
        lr = c.optim.lr
        return f"the training loss hardly falls: try --lr {lr / 10:g} or {lr * 10:g}{start}, or give more epochs"


def looked(totals: Any) -> float:
    """The mean of (sum of losses, images)."""
    return float(totals[0] / totals[1].clamp_min(1))
