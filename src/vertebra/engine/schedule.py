"""Learning rates as pure functions of the step: nothing to save, nothing to restore, nothing to step twice.

A step is whatever the caller counts, updates or epochs; lengths below are in the same unit.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch.optim import Optimizer

from vertebra.spec import VertebraError, unknown_name

Kind = Literal["cosine", "step", "multistep", "poly", "plateau", "constant", "one_cycle"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One learning rate over a run; `at(step)` gives it."""

    kind: Kind = "cosine"
    lr: float
    """The rate after the warm-up."""
    total: float = 1
    """cosine, poly: length of the (first) cycle. one_cycle: of the run, warm-up included."""
    lr_min: float = 0.0
    """cosine, poly, plateau: where the rate ends."""
    warmup: float = 0
    """Steps over which the rate rises evenly from `warmup_lr` to `lr`."""
    warmup_lr: float = 0.0
    warmup_prefix: bool = False
    """Count the schedule's own steps from the end of the warm-up, instead of skipping those that it took."""
    cycle_mul: float = 1.0
    """cosine, poly: each cycle lasts this many times as long as the one before it ..."""
    cycle_decay: float = 1.0
    """... and begins at this share of its rate ..."""
    cycle_limit: int = 1
    """... for so many cycles; `lr_min` after the last."""
    k_decay: float = 1.0
    """cosine, poly: above 1 the rate stays high for longer (arXiv:2004.05909)."""
    power: float = 0.5
    """poly: exponent."""
    decay: float = 0.1
    """step, multistep, plateau: the factor at each fall."""
    decay_steps: float = 30
    """step: length of a stair."""
    milestones: tuple[float, ...] = ()
    """multistep: steps that begin with the rate already lowered: it falls for step m - 1, as in timm."""
    patience: int = 10
    """plateau: metrics without improvement that are still borne with."""
    threshold: float = 1e-4
    """plateau: relative improvement that counts."""
    cooldown: int = 0
    """plateau: metrics after a fall that are not held against it."""
    higher_is_better: bool = True
    """plateau: whether the metric is to rise."""
    rise: float = 0.3
    """one_cycle: share of the run in which the rate rises, as a cosine, from lr / 25; it ends at lr / 250,000."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("schedule", self.kind, KINDS)
        for name in ("lr", "total", "decay_steps", "cycle_mul", "cycle_limit", "k_decay"):
            if getattr(self, name) <= 0:
                raise VertebraError(f"schedule {self.kind!r}: {name}={getattr(self, name)}; give a number above 0")
        for name in ("lr_min", "warmup", "warmup_lr", "patience", "cooldown"):
            if getattr(self, name) < 0:
                raise VertebraError(f"schedule {self.kind!r}: {name}={getattr(self, name)}; give 0 or more")
        if not 0 < self.rise < 1:
            raise VertebraError(f"rise={self.rise}: give a share between 0 and 1, as 0.3")
        if self.kind == "one_cycle" and self.warmup:
            raise VertebraError("schedule 'one_cycle' warms up by itself: leave out warmup, and set rise")
        if list(self.milestones) != sorted(self.milestones):
            raise VertebraError(f"milestones={self.milestones}: give them in rising order")

    def at(self, step: float, metrics: Sequence[float] = ()) -> float:
        """The rate of `step`, from 0. `metrics` (plateau): one for each step 0..step, the warm-up's included."""
        if self.kind == "plateau":
            return self._plateau(step, metrics)
        if step < self.warmup:
            return self._warm(step)
        if self.warmup_prefix:
            step -= self.warmup
        match self.kind:
            case "cosine" | "poly":
                return self._cycle(step)
            case "step":
                return self.lr * self.decay ** (step // self.decay_steps)
            case "multistep":
                return self.lr * self.decay ** bisect.bisect_right(self.milestones, step + 1)
            case "one_cycle":
                return self._one_cycle(step)
            case "constant":
                return self.lr

    def _warm(self, step: float) -> float:
        return self.warmup_lr + step * (self.lr - self.warmup_lr) / self.warmup

    def _cycle(self, step: float) -> float:
        number, length = 0, float(self.total)
        if self.cycle_mul == 1:
            number = int(step // self.total)
            step -= number * self.total
        else:
            while step >= length and number < self.cycle_limit:
                step -= length
                length *= self.cycle_mul
                number += 1
        if number >= self.cycle_limit:
            return self.lr_min
        top = self.lr * self.cycle_decay**number
        done = step**self.k_decay / length**self.k_decay
        share = 0.5 * (1 + math.cos(math.pi * done)) if self.kind == "cosine" else (1 - done) ** self.power
        return self.lr_min + (top - self.lr_min) * share

    def _one_cycle(self, step: float) -> float:
        low, least = self.lr / 25, self.lr / 25 / 1e4
        peak, last = self.rise * self.total - 1, self.total - 1
        if step <= peak:
            return _cosine(low, self.lr, step / peak if peak > 0 else 1.0)
        return _cosine(self.lr, least, min(1.0, (step - peak) / max(last - peak, 1e-9)))

    def _plateau(self, step: float, metrics: Sequence[float]) -> float:
        if step < self.warmup or (self.warmup and step == self.warmup):
            return self._warm(step)
        first = math.floor(self.warmup) + 1 if self.warmup else 0
        if len(metrics) <= step:
            raise VertebraError(f"schedule 'plateau' at step {step} needs the {math.floor(step) + 1} metrics so far, "
                                f"not {len(metrics)}")  # fmt: skip
        rate, best, bad, rest = self.lr, -math.inf, 0, 0
        for metric in metrics[first : math.floor(step) + 1]:
            value = metric if self.higher_is_better else -metric
            better = value > best + abs(best) * self.threshold if math.isfinite(best) else value > best
            best, bad = (value, 0) if better else (best, bad + 1)
            if rest > 0:
                rest, bad = rest - 1, 0
            if bad > self.patience:
                rate, rest, bad = max(rate * self.decay, self.lr_min), self.cooldown, 0
        return rate


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group `lr` times its own "lr_scale" (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
