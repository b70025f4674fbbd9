"""What the processes of a run settle together: whether to stop or save, sums, unreadable images, running statistics.

Every function here must be called by all processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from vertebra.data.loader import Batch
from vertebra.engine import checkpoint, sharding
from vertebra.engine.losses import weights_of
from vertebra.engine.progress import Progress
from vertebra.engine.setup import Run
from vertebra.engine.state import State
from vertebra.spec import VertebraError


class NotFiniteError(VertebraError):
    """The loss, the gradient or the weights are no numbers, in the update that begins with `step`."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def agree(run: Run, epoch: int, updates: list[tuple[int, Tensor]], stop: bool, due: bool) -> tuple[bool, bool]:
    """(stop?, save?): what any process wants, all do; when to save, the first one decides.

    `updates`: (step, (loss, norm of the gradient)) of those since the last time. Raises `NotFiniteError` for the first
    in which one of both is no number.
    """
    finite = torch.stack([both for _, both in updates]).isfinite().tolist() if updates else []
    bad = [next((s for (s, _), fine in zip(updates, finite, strict=True) if not fine[i]), -1) for i in (0, 1)]
    rows = _rows(run, [*bad, stop, due])
    found = [(int(row[i]), i) for row in rows for i in (0, 1) if row[i] >= 0]
    if found:
        step, which = min(found)  # where neither is one, the loss made the gradient so
        what = ("loss", "gradient")[which]
        raise NotFiniteError(f"the {what} is no finite number in {_named(run, epoch, step)}", step)
    return any(row[2] for row in rows), bool(rows[0][3])


@torch.no_grad()
def gradient_norm(run: Run, clipped: Tensor | None) -> Tensor:
    """Of what this process holds of it. `clipped`: what clipping found, where it looked already.

    0 where a scaler looks (fp16): it meets infinite ones all the time, leaves those updates out and scales by less.
    """
    if run.accelerator.scaler is not None:
        return torch.zeros((), device=run.device)
    if clipped is not None:
        return _own(clipped)
    return torch.nn.utils.get_total_norm([_own(p.grad) for p in run.model.parameters() if p.grad is not None])


def check_weights(run: Run, epoch: int, step: int) -> None:
    """Raise `NotFiniteError` for the update that began with `step`, the last one, where it left weights that are no
    numbers: its loss, from before it, does not show that.
    """
    largest = [_own(p.detach()).abs().amax() for p in run.model.parameters() if _own(p).numel()]
    fine = bool(torch.stack(largest).isfinite().all()) if largest else True
    if not all(row[0] for row in _rows(run, [fine])):
        raise NotFiniteError(f"the weights are no finite numbers after {_named(run, epoch, step)}", step)


@dataclass(frozen=True, slots=True)
class Share:
    """What a batch is of its update, all batches and processes together."""

    parts: Tensor
    """What its mean loss is divided by, so that the update's gradient is the mean over images: of two batches of which
    one lost images, one has more to say."""
    mean_weight: Tensor | None
    """Of all images, by class; None where all count the same."""

    @property
    def options(self) -> dict[str, Tensor]:
        """As `Gradients` takes it."""
        return {"parts": self.parts, **({} if self.mean_weight is None else {"mean_weight": self.mean_weight})}


def shares(run: Run, group: list[Batch], *, mixed: bool) -> list[Share]:
    """One for each batch of this process. `mixed`: their classes will be, so that no weight of a class counts."""
    weights = [None if mixed else weights_of(run.loss, batch.labels.to(run.device)) for batch in group]
    sums = [float(sum(len(batch.labels) for batch in group)), 0.0]
    whole = torch.tensor(sums, device=run.device)
    if any(own is not None for own in weights):
        whole[1] = torch.stack([own.sum() for own in weights if own is not None]).sum()
    if run.accelerator.num_processes > 1:
        whole = cast("Tensor", run.accelerator.reduce(whole, "sum"))
    mean_weight = None if weights[0] is None else whole[1] / whole[0]
    # Processes average their gradients.
    counts = [max(1, len(batch.labels)) * run.accelerator.num_processes for batch in group]
    return [Share(whole[0] / count, mean_weight) for count in counts]


def _own(parameter: Tensor) -> Tensor:
    """What this process holds of it: of a sharded one, a part."""
    return cast("Any", parameter).to_local() if hasattr(parameter, "to_local") else parameter


def _rows(run: Run, mine: list[float]) -> list[list[float]]:
    """The numbers of every process."""
    if run.accelerator.num_processes == 1:
        return [mine]
    row = torch.tensor([mine], dtype=torch.float, device=run.device)
    return cast("list[list[float]]", cast("Tensor", run.accelerator.gather(row)).tolist())


def _named(run: Run, epoch: int, step: int) -> str:
    """The batch of an update: the images of all processes are a pure function of the epoch and the step."""
    count = run.config.data.batch_size * run.config.optim.accumulate
    start = step * run.config.data.batch_size
    names = [run.train.part.samples[p.image].name for p in run.train.order.places(epoch)[start : start + count]]
    return f"epoch {epoch + 1}, step {step + 1} (images {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def absorb(run: Run, state: State, totals: Tensor, seconds: float, progress: Progress) -> None:
    """Take the sums of all processes, and what they could not read, into the state."""
    whole = totals
    if run.accelerator.num_processes > 1:
        whole = cast("Tensor", run.accelerator.reduce(totals, "sum"))
        found = cast("list[tuple[int, str]]", gather_object(list(state.skipped.items())))
        note_skipped(state.skipped, sorted(set(found)), progress)
    state.loss_sum += float(whole[0])
    state.seen += int(whole[1])
    state.seconds += seconds
    totals.zero_()


def note_skipped(known: dict[int, str], found: list[tuple[int, str]], progress: Progress) -> None:
    """Each image that could not be read once."""
    for index, why in found:
        if index not in known:
            known[index] = why
            progress.say(f"skipped    {why}")


def skipped_in(group: list[Batch]) -> list[tuple[int, str]]:
    """(position in the split, why)"""
    return [item for batch in group for item in batch.skipped]


def share_statistics(run: Run) -> None:
    """The first process' running statistics for all, so that what is validated is what is saved.

    DDP shares them before each forward pass; since the last one, and in the average, they are each process' own.
    """
    if run.accelerator.num_processes == 1 or run.sharded:  # what is sharded shares them after each update
        return
    for model in (run.model, *([] if run.ema is None else [run.ema.module])):
        sharding.share_buffers(model)


def saved(accelerator: Accelerator, out: Path, *, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, which the first process chooses for all; None: to begin.

    Raises `CheckpointError` where there is none that can be read, or a process does not see the first one's.
    """
    main = accelerator.is_main_process
    mine = checkpoint.load_latest(out) if main and resume and checkpoint.all_in(out) else None
    (step,) = broadcast_object_list([None if mine is None else mine["step"]])
    return mine if main or step is None else checkpoint.load_step(out, step)
