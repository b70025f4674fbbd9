"""One update: forward and backward through its batches, the optimiser, the average.

b batch, k classes.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from vertebra.data.loader import Batch, seed_of
from vertebra.engine import outdir, sharding
from vertebra.engine.learner import side
from vertebra.engine.multilabel import smoothed
from vertebra.engine.schedule import set_lr
from vertebra.engine.setup import Run
from vertebra.engine.state import State
from vertebra.engine.together import Share, gradient_norm, shares
from vertebra.layers.statistics import known_statistics


def zeros(run: Run) -> Tensor:
    """(sum of losses, images); mps has no double precision."""
    return torch.zeros(2, dtype=torch.float32 if run.device.type == "mps" else torch.float64, device=run.device)


def update(run: Run, state: State, group: list[Batch]) -> tuple[Tensor, Tensor]:
    """Forward, backward, optimiser, average. Returns (sum of losses, images), and the norm of the gradient: a loss that
    is a number may have one that is none, and the next loss would be blamed for the weights that it leaves.
    """
    accelerator, c = run.accelerator, run.config.optim
    set_lr(run.optimizer, rate(run, state))
    totals = zeros(run)
    alone = len(group) == 1 and accelerator.num_processes == 1
    own = [None] if alone else shares(run, group, mixed=_mixes(run, state))
    for number, batch in enumerate(group):
        if len(batch.labels) == 0 and accelerator.num_processes == 1:
            continue
        torch.manual_seed(seed_of(run.config.seed, state.epoch, state.step + number, accelerator.process_index))
        with _syncing(run, number == len(group) - 1):
            loss, count = learn(run, state, batch, own[number])
        totals[0] += loss.to(totals.dtype) * count
        totals[1] += count
    clipped = None if c.clip_norm is None else accelerator.clip_grad_norm_(run.model.parameters(), c.clip_norm)
    norm = gradient_norm(run, clipped).to(totals)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.sharded:
        sharding.share_buffers(run.model)
    if run.ema is not None:
        run.ema.update(run.model, state.updates)
    return totals, norm


def learn(run: Run, state: State, batch: Batch, share: Share | None = None) -> tuple[Tensor, int]:
    """The mean loss of a batch, detached, and its number of images; its gradients are in the model, as they are or
    as the batch's share of an update.
    """
    count = len(batch.labels)
    if count == 0:  # nothing in it could be read: the processes still need this one's (zero) gradients
        size = run.model.pretrained_cfg["input_size"]
        run.model.eval()  # as such, every head has a part in the answer, and no running mean takes the black image in
        outputs: Tensor = run.net(torch.zeros(1, *size, device=run.device))
        run.model.train()
        loss = outputs.sum() * 0
        run.accelerator.backward(loss)
        return loss.detach(), 0
    images, targets = finished(run, state, batch)
    taught = () if run.teacher is None else (run.teacher(images, batch.indices),)
    lone = count == 1 < run.train.order.share  # what else there was could not be read
    part = {} if share is None else share.options
    with known_statistics(run.model) if lone else nullcontext():
        return run.gradients(shown(run, state, images), targets, *taught, **part), count


def finished(run: Run, state: State, batch: Batch) -> tuple[Tensor, Tensor]:
    """A batch's images and targets after all that is done to them; it draws from torch's default generator."""
    images = run.finish(batch.images.to(run.device, non_blocking=True))
    targets = smoothed(batch.labels.to(run.device, non_blocking=True), run.config.loss.smoothing)
    return run.mix(images, targets) if run.mix is not None and _mixes(run, state) else (images, targets)


def _mixes(run: Run, state: State) -> bool:
    off = run.config.augment.mix_off_epoch
    return run.mix is not None and (off is None or state.epoch < off)


def shown(run: Run, state: State, images: Tensor) -> Tensor:
    """As the model sees them, which while they grow is smaller."""
    now = side(run.config, state.epoch)
    if now is not None and now != images.shape[-1]:
        images = functional.interpolate(images, (now, now), mode="bilinear", antialias=True)
    return images.contiguous(memory_format=run.layout)


@contextmanager
def _syncing(run: Run, last: bool) -> Generator[None]:
    """Processes exchange gradients only with the last batch of an update."""
    if run.sharded:
        sharding.accumulate(run.net, last)
        yield
    elif last or run.accelerator.num_processes == 1:
        yield
    else:
        with run.accelerator.no_sync(run.net):
            yield


def rate(run: Run, state: State) -> float:
    """The learning rate of the coming update."""
    schedule = run.schedule
    if schedule.kind != "plateau":
        return schedule.at(state.updates)
    now = state.updates / run.updates
    if now < schedule.warmup:
        return schedule.at(now)
    if state.epoch == 0 or state.epoch - 1 <= schedule.warmup:
        return schedule.lr
    return schedule.at(state.epoch - 1, [outdir.watched(row)[1] for row in state.metrics[: state.epoch]])
