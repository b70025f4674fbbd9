"""Training: one explicit loop. A run that is killed at any moment goes on to the very same weights.

Nothing in it depends on what was computed before but through what a checkpoint holds: which images a step gets, how
they are augmented and mixed, dropout, the learning rate and what is frozen are pure functions of (seed, epoch, step).

b batch, k classes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from vertebra.data.loader import Batch
from vertebra.engine import checkpoint, outdir, sharding, together, watch
from vertebra.engine.config import RunConfig
from vertebra.engine.evaluate import Evaluation, evaluate
from vertebra.engine.learner import frozen_depth
from vertebra.engine.multilabel import MultiEvaluation, evaluate_rows
from vertebra.engine.progress import Progress
from vertebra.engine.report import Reporter, mistakes_in
from vertebra.engine.rules import check
from vertebra.engine.settings import as_dict, config_hash, settings_lines
from vertebra.engine.setup import Run, build, make_accelerator
from vertebra.engine.state import InterruptedRunError, State, listening, restore, save, saving_when_stuck, weights
from vertebra.engine.together import (
    NotFiniteError,
    absorb,
    agree,
    check_weights,
    note_skipped,
    share_statistics,
    skipped_in,
)
from vertebra.engine.update import rate, update, zeros
from vertebra.models.groups import freeze
from vertebra.spec import VertebraError

AGREE_EVERY = 20
"""Updates between two looks at what a GPU has computed, and at what other processes want."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run leaves."""

    out: Path
    best_epoch: int
    metrics: list[dict[str, float]]
    skipped: dict[int, str]
    """Training images that could not be read, by position in their split, and why."""
    val_skipped: dict[int, str]
    """Validation images."""
    stopped_early: bool


def train(config: RunConfig, out: Path, *, resume: bool = False, console: Console | None = None) -> Result:
    """Run `config` in the folder `out`; `resume` goes on from its newest checkpoint, where it has one.

    Raises `InterruptedRunError` after Ctrl-C, `NotFiniteError` where the loss or the gradient is no number,
    `CheckpointError` where a checkpoint cannot be written or does not belong to this run.
    """
    check(config)
    claim = outdir.Claim(out, resume=resume) if os.environ.get("RANK", "0") == "0" else None
    try:
        return _train(config, out, claim, resume=resume, console=console)
    finally:
        if claim is not None:
            claim.release()


def _train(
    config: RunConfig, out: Path, claim: outdir.Claim | None, *, resume: bool, console: Console | None
) -> Result:
    accelerator = make_accelerator(config, out)
    saved = together.saved(accelerator, out, resume=resume)
    run = build(config, out, console, accelerator=accelerator, saved=saved)
    progress = Progress(console if run.accelerator.is_main_process else None)
    try:
        if saved is not None:
            checkpoint.check_same(saved, as_dict(config), run.fingerprint)
        if claim is not None:
            claim.take()
        for line in (f"run        {config_hash(config)} in {out}", *settings_lines(config), *describe(run)):
            progress.say(line)
        state = _start(run, out, saved, progress)
        with _tracked(run, out), listening() as pressed, saving_when_stuck(run, state, out):
            stopped = _epochs(run, state, out, progress, pressed)
    finally:
        progress.close()
        run.train.close()
        run.val.close()
    return Result(out, outdir.best(state.metrics), state.metrics, state.skipped, state.val_skipped, stopped)


@contextmanager
def _tracked(run: Run, out: Path) -> Generator[None]:
    """Trackers get metrics within, and send what they still hold however it ends."""
    if run.config.trackers:
        with outdir.tracking(out):
            run.accelerator.init_trackers("vertebra")
    try:
        yield
    finally:
        with outdir.tracking(out):
            run.accelerator.end_training()


def _start(run: Run, out: Path, saved: Mapping[str, Any] | None, progress: Progress) -> State:
    """From the newest checkpoint, or from the beginning, which is a checkpoint, too."""
    if saved is not None:
        known = len(saved["state"].get("went_on", ()))
        state = restore(run, saved)
        progress.say(_resumed(run, state, saved["processes"]))
        for one in state.went_on[known:]:
            progress.say(
                f"note       another run: {one['epochs']} epochs were asked for (run {one['run']}), now "
                f"{run.config.epochs}; the schedule is laid out anew, so that this is not what one run of "
                f"{run.config.epochs} would have been"
            )
            if run.accelerator.is_main_process:
                outdir.start(run.config, run.dataset, run.classes, out, state.went_on)
    else:
        state = State()
        for line in watch.before(run):
            progress.say(f"warning    {line}")
        if run.accelerator.is_main_process:
            outdir.start(run.config, run.dataset, run.classes, out)
        save(run, state, out)
    run.accelerator.wait_for_everyone()
    return state


def _epochs(run: Run, state: State, out: Path, progress: Progress, pressed: list[int]) -> bool:
    """True where the run ended early because nothing got better."""
    report, guard = Reporter(run, out, progress), watch.Watch(run)
    while state.epoch < run.config.epochs:
        if _out_of_patience(run.config, state):
            report.write(state, "Ended early, as nothing got better")
            return True
        freeze(run.model, frozen_depth(run.config, run.model, state.epoch))
        try:
            _train_epoch(run, state, out, progress, pressed, guard)
        except NotFiniteError as error:
            try:
                _roll_back(run, state, out, error, progress)
            except NotFiniteError:
                report.write(state, "Stopped, as numbers were not finite")
                raise
            continue
        except InterruptedRunError:
            report.write(state, "Interrupted")
            raise
        _finish_epoch(run, state, out, progress)
        for line in guard.epoch(state):
            progress.say(f"warning    {line}")
        if state.epoch < run.config.epochs:
            report.write(state, "Running")
    report.write(state, "Finished")
    return False


def _out_of_patience(config: RunConfig, state: State) -> bool:
    best = outdir.best(state.metrics)
    return config.stop.patience is not None and len(state.metrics) - best > config.stop.patience


def _train_epoch(run: Run, state: State, out: Path, progress: Progress, pressed: list[int], guard: watch.Watch) -> None:
    """The rest of the epoch, update by update."""
    every = run.config.optim.accumulate
    run.model.train()
    progress.start(state.epoch, run.config.epochs, run.updates * every, state.step)
    batches = run.train.epoch(state.epoch, state.step)
    totals, unseen = zeros(run), list[tuple[int, Tensor]]()
    began = saved = time.monotonic()
    while state.step < run.updates * every:
        group = [next(batches) for _ in range(every)]
        note_skipped(state.skipped, skipped_in(group), progress)
        if (state.epoch, state.step) not in state.left_out:
            sums, norm = update(run, state, group)
            unseen.append((state.step, torch.stack([sums[0], norm])))
            totals += sums
        state.step += every
        state.updates += 1
        progress.step(state.step, totals, run.train.order.batch_size * every)
        ends = state.step == run.updates * every
        if run.device.type != "cpu" and state.updates % AGREE_EVERY and not ends:
            continue
        due = time.monotonic() - saved >= run.config.save_every and not ends
        stop, due = agree(run, state.epoch, unseen, bool(pressed), due)
        unseen.clear()
        for line in guard.losses(state, watch.looked(totals), state.step // every):
            progress.say(f"warning    {line}")
        if stop or due or ends:
            check_weights(run, state.epoch, state.step - every)
        if stop or due:
            absorb(run, state, totals, time.monotonic() - began, progress)
            began = saved = time.monotonic()
            share_statistics(run)
            save(run, state, out)
        if stop:
            raise InterruptedRunError(f"stopped in epoch {state.epoch + 1}, step {state.step}; saved in {out}")
    absorb(run, state, totals, time.monotonic() - began, progress)


def _finish_epoch(run: Run, state: State, out: Path, progress: Progress) -> None:
    """Validate, write down, keep the best, save."""
    lr = rate(run, state) if run.schedule.kind == "plateau" else run.schedule.at(state.updates - 1)
    row: dict[str, float] = {
        "epoch": state.epoch + 1,
        "updates": state.updates,
        "lr": lr,
        "train_loss": state.loss_sum / max(1, state.seen),
        "images_per_s": state.seen / max(1e-9, state.seconds),
        "skipped": len(state.skipped),
    }
    if len(state.skipped) == len(run.train.part):
        raise VertebraError(
            f"none of the {len(state.skipped):,} training images can be read; `vertebra doctor` names why"
        )
    share_statistics(run)
    result = validate(run)
    note_skipped(state.val_skipped, result.skipped, progress)
    if result.metrics.images == 0:
        raise VertebraError(
            f"none of the {len(run.val.part):,} validation images can be read, so that nothing is measured"
        )
    row |= {f"val_{name}": value for name, value in result.metrics.summary().items()}
    if not math.isfinite(result.metrics.loss):
        progress.say(
            f"note       epoch {state.epoch + 1} answers with no finite numbers on val; optim.lr may be too high"
        )
    row["val_skipped"] = len(result.skipped)
    state.metrics.append(row)
    state.epoch, state.step, state.loss_sum, state.seen, state.seconds = state.epoch + 1, 0, 0.0, 0, 0.0
    if run.config.trackers:
        with outdir.tracking(out):
            run.accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=state.epoch)
    best, main = outdir.best(state.metrics) == state.epoch, run.accelerator.is_main_process
    if main:
        outdir.write_metrics(state.metrics, out)
    if best and (main or run.sharded):
        content = weights(run, run.model if run.ema is None else run.ema.module)
        if main:
            training = {"config": as_dict(run.config), "data": run.fingerprint["parts"], "epoch": row}
            training |= {"went_on": state.went_on} if state.went_on else {}
            outdir.write_model(content, run.model, _as_record(run, result), run.classes, out, training)
    save(run, state, out)
    progress.epoch(row, outdir.watched(row), best=best)


def _as_record(run: Run, result: Evaluation | MultiEvaluation) -> dict[str, Any]:
    """How good the answers are, and the worst of them where an image has one class."""
    mistakes = mistakes_in(result, run.val.part, run.classes) if isinstance(result, Evaluation) else []
    return {**outdir.as_record(result, run.classes), "mistakes": list(mistakes)}


def validate(run: Run, batches: Iterable[Batch] | None = None) -> Evaluation | MultiEvaluation:
    """The weights' (or their average's) answers on the validation split, or on some batches of it."""
    model = (run.model if run.ema is None else cast("Any", run.ema.module)).eval()

    def forward(images: Tensor) -> Tensor:
        with run.accelerator.autocast():
            return model(images.contiguous(memory_format=run.layout))

    def apart(images: Tensor) -> Tensor:
        with sharding.validating():
            return forward(images)

    batches = run.val.epoch(0) if batches is None else batches
    if run.sharded:
        blank = torch.zeros(1, *run.model.pretrained_cfg["input_size"], device=run.device)
        batches = sharding.in_step(batches, apart, blank)
    worth = evaluate_rows if run.dataset.multi_label else evaluate
    return worth(
        apart if run.sharded else forward, batches, len(run.classes), prepare=run.finish_val, device=run.device
    )


def _roll_back(run: Run, state: State, out: Path, error: NotFiniteError, progress: Progress) -> None:
    """Back to the last checkpoint, and leave the update out; or raise, as the policy says."""
    c = run.config.stop
    left_out = [*state.left_out, (state.epoch, error.step)]
    last = checkpoint.all_in(out)[-1]
    if c.on_nan == "stop":
        raise NotFiniteError(
            f"{error}; lower optim.lr, set optim.clip_norm=1, or leave the step out with stop.on_nan=rollback; "
            f"{last} is from before",
            error.step,
        ) from error
    if len(left_out) > c.rollbacks:
        raise NotFiniteError(
            f"{error}, after {c.rollbacks} rollbacks; lower optim.lr, or set optim.clip_norm=1", error.step
        ) from error
    progress.say(f"rolled back to {last.name}: {error}")
    content = together.saved(run.accelerator, out, resume=True)
    assert content is not None, "the one before the first step stays until there are others"
    restored = restore(run, content)
    restored.left_out = left_out
    for f in fields(state):
        setattr(state, f.name, getattr(restored, f.name))


def _resumed(run: Run, state: State, processes: int) -> str:
    """Where it goes on. Every process draws its own dropout and mixing, so that another number of them draws others."""
    line = f"resumed    epoch {state.epoch + 1}, step {state.step} of {run.train.order.steps}"
    if state.epoch >= run.config.epochs:
        line = f"resumed    after the last of {run.config.epochs} epochs: no training is left"
    now = run.accelerator.num_processes
    return line if now == processes else f"{line}; it was on {processes} processes, on {now} it draws other numbers"


def _asked_for(config: RunConfig) -> str:
    """What the settings say of sizes, in place of the record that the weights brought."""
    names = ("image_size", "eval_size", "crop_pct", "crop_mode")
    asked = [f"data.{name}={value}" for name in names if (value := getattr(config.data, name)) is not None]
    return f"; but {', '.join(asked)}, as asked for" if asked else ""


def describe(run: Run) -> list[str]:
    """What is about to happen, in a few lines."""
    parts = ", ".join(f"{len(part):,} {name}" for name, part in run.dataset.parts.items())
    all_, learning = (sum(p.numel() for p in run.model.parameters() if p.requires_grad or frozen) for frozen in (1, 0))
    some = "" if learning == all_ else f" ({learning / 1e6:.2f} M learn)"
    numbers = {"no": "fp32"}.get(run.accelerator.mixed_precision, run.accelerator.mixed_precision)
    several = ", any number an image" if run.dataset.multi_label else ""
    started = run.model.load_report
    steps = f"{_number(run.config.epochs, 'epoch')} of {_number(run.updates, 'update')}"
    start = f"start      {run.config.model.weights}, " + ("a new classifier" if started.reinitialised else "all of it")
    return [
        f"data       {parts} images, {len(run.classes)} classes{several}: {', '.join(run.classes[:5])}"
        + (" ..." if len(run.classes) > 5 else ""),
        *([f"note       {run.dataset.note}"] if run.dataset.note else []),
        f"model      {run.config.model.name}, {all_ / 1e6:.2f} M parameters{some}, input {run.input}, {numbers}",
        *([start] if run.config.model.weights and run.model.filled else []),
        *([f"note       {started.taken}{_asked_for(run.config)}"] if started.taken else []),
        f"steps      {steps}, {_number(run.train.order.batch_size, 'image')}",
    ]


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
