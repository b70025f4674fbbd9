"""Where a run stands: kept in every checkpoint, and put back from it."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

from vertebra.data.loader import StuckReadError, waited
from vertebra.engine import checkpoint, sharding
from vertebra.engine.settings import as_dict, config_hash
from vertebra.engine.setup import Run
from vertebra.hub.factory import describe
from vertebra.spec import VertebraError

ECHO = 1.0
"""Seconds within which a second signal is the first one's."""

TICK = 1.0
"""Seconds between two looks, from then on, at how long a batch has been waited for."""
PATIENCE = 10.0
"""Seconds for which a batch is waited for once somebody wants the run to end."""


class InterruptedRunError(VertebraError):
    """Somebody pressed Ctrl-C; the run is saved."""


@dataclass(slots=True)
class State:
    """Where a run stands, beside its tensors. All of it is in every checkpoint."""

    epoch: int = 0
    step: int = 0
    """Batches of this epoch that are done; always whole updates."""
    updates: int = 0
    """Since the run began."""
    loss_sum: float = 0.0
    """Over this epoch's images so far, of all processes."""
    seen: int = 0
    """This epoch's images so far."""
    seconds: float = 0.0
    """This epoch's training time so far."""
    skipped: dict[int, str] = field(default_factory=dict[int, str])
    """Training images that could not be read, by position, and why."""
    val_skipped: dict[int, str] = field(default_factory=dict[int, str])
    """Validation images."""
    left_out: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """(epoch, step) of updates that gave no number, and are left out since."""
    went_on: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Where the run was given another number of epochs, and with that another schedule: which run it was, of how many
    epochs, and after which one."""
    metrics: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """One row an epoch, as in metrics.csv."""


def snapshot(run: Run, state: State) -> dict[str, Any]:
    """All of a run; of a sharded one on the first process only, and all must call it."""
    scaler: Any = run.accelerator.scaler
    average = None if run.ema is None else run.ema.module
    return {
        "config": as_dict(run.config),
        "config_hash": config_hash(run.config),
        "data": run.fingerprint,
        "start": {"record": describe(run.model), "size": run.size},
        "model": weights(run, run.model),
        "ema": None if average is None else weights(run, average),
        "optimizer": sharding.whole_optimizer(run.optimizer) if run.sharded else run.optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": checkpoint.random_state(),
        "processes": run.accelerator.num_processes,
        "state": {f.name: getattr(state, f.name) for f in fields(state)},
    }


def weights(run: Run, model: nn.Module) -> dict[str, Any]:
    """The state of the run's model or of its average, as one file holds it."""
    return sharding.whole(model) if run.sharded else model.state_dict()


def save(run: Run, state: State, out: Path) -> None:
    main = run.accelerator.is_main_process
    content = snapshot(run, state) if main or run.sharded else {}
    if main:
        checkpoint.save(out, state.updates, content)
    run.accelerator.wait_for_everyone()


def restore(run: Run, saved: Mapping[str, Any]) -> State:
    """Put a checkpoint's tensors into the run's parts; raises where it is of another run."""
    checkpoint.check_same(saved, as_dict(run.config), run.fingerprint)
    if run.sharded:
        sharding.put(run.model, saved["model"])
        if run.ema is not None:
            sharding.put(run.ema.module, saved["ema"])
        sharding.put_optimizer(run.optimizer, saved["optimizer"])
    else:
        run.model.load_state_dict(saved["model"], strict=True)
        if run.ema is not None:
            run.ema.load_state_dict(saved["ema"])
        run.optimizer.load_state_dict(saved["optimizer"])
    if run.accelerator.scaler is not None and saved["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(saved["scaler"])
    checkpoint.set_random_state(saved["random"])
    state = State(**saved["state"])
    was = saved["config"]["epochs"]
    if was != run.config.epochs:
        state.went_on = [*state.went_on, {"run": saved["config_hash"], "epochs": was, "after": state.epoch}]
    return state


@contextmanager
def listening() -> Generator[list[int]]:
    """A list that holds the signal once somebody wants the run to end; a second Ctrl-C ends it at once. From then on,
    `StuckReadError` ends a wait for a batch that does not come.

    A launcher (torchrun) passes on what its processes, being in its group, have got already: no second one.
    """
    pressed: list[int] = []
    first = 0.0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if not pressed:
            first = now
            pressed.append(number)
            if timed:
                signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        elif number == signal.SIGINT and now - first > ECHO:
            raise KeyboardInterrupt

    def look(_number: int, _frame: FrameType | None) -> None:
        if min(waited(), time.monotonic() - first) > PATIENCE:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise StuckReadError(f"a batch has not come for {waited():.0f} s; is a disk or a network drive gone?")

    timed = hasattr(signal, "setitimer")  # Windows has none
    heard = {signal.SIGINT: note, signal.SIGTERM: note, **({signal.SIGALRM: look} if timed else {})}
    try:
        before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    except ValueError:  # not the main thread, which alone may listen
        before = {}
    try:
        yield pressed
    finally:
        if timed and before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def saving_when_stuck(run: Run, state: State, out: Path) -> Generator[None]:
    """Where a batch does not come, the run is saved as it was after its last update; but for that of several processes,
    which save together.
    """
    try:
        yield
    except StuckReadError as error:
        where = f"stopped in epoch {state.epoch + 1}, step {state.step}: {error}"
        if run.accelerator.num_processes > 1:
            raise InterruptedRunError(f"{where}; its last checkpoint is in {out}") from error
        save(run, state, out)
        raise InterruptedRunError(f"{where}; saved in {out}") from error
