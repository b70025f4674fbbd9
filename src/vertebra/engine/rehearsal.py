"""What a run would do, found out by a few updates that nobody keeps: `vertebra train --dry-run`."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import psutil
import torch
from PIL import Image, ImageDraw
from rich.console import Console

from vertebra.engine import outdir, watch
from vertebra.engine.config import RunConfig
from vertebra.engine.learner import frozen_depth
from vertebra.engine.progress import Progress
from vertebra.engine.report import SAMPLES, first_images
from vertebra.engine.rules import check
from vertebra.engine.settings import settings_lines
from vertebra.engine.setup import Run, build, make_accelerator
from vertebra.engine.state import State
from vertebra.engine.together import note_skipped, skipped_in
from vertebra.engine.train import describe, validate
from vertebra.engine.update import update
from vertebra.models.groups import freeze
from vertebra.spec import printable
from vertebra.spec.files import write_whole

UPDATES, LONG = 8, 30.0
"""So many are timed at most, and no more once they have taken so many seconds."""
BATCHES = 3
"""Of validation that are timed."""
COLUMNS, SIDE, LINE = 4, 224, 16
"""Of the picture: images a row; pixels of an image's longer side at most; pixels of its caption."""


def rehearse(config: RunConfig, out: Path, console: Console | None) -> Path:
    """Say what a run in `out` would do, and what the first batch looks like, in a PNG beside `out`, whose path comes
    back; neither `out` nor anything in it is made. Raises what the run itself would raise before its first epoch.
    """
    check(config)
    if os.environ.get("RANK", "0") == "0":
        outdir.Claim(out, resume=False).release()
    accelerator = make_accelerator(config, out)
    run = build(config, out, console, accelerator=accelerator)
    progress = Progress(console if accelerator.is_main_process else None)
    picture = out.with_name(f"{out.name}.first-batch.png")
    try:
        for line in (*settings_lines(config), *describe(run)):
            progress.say(line)
        for line in watch.before(run):
            progress.say(f"warning    {line}")
        shown = first_images(run, SAMPLES)
        if accelerator.is_main_process and shown:
            write_whole(picture, sheet(shown))
            progress.say(f"picture    {picture}: the first {len(shown)} images, as they are trained on")
        for line in costs(run, progress):
            progress.say(line)
    finally:
        progress.close()
        run.train.close()
        run.val.close()
    progress.say("dry run    nothing was trained; leave --dry-run out to begin")
    return picture


def costs(run: Run, progress: Progress) -> list[str]:
    """Seconds and bytes, by some updates and batches of validation. The weights are others afterwards."""
    state, every = State(), run.config.optim.accumulate
    run.model.train()
    freeze(run.model, frozen_depth(run.config, run.model, 0))
    batches, took = run.train.epoch(0, 0), list[float]()
    while len(took) <= min(UPDATES, run.updates - 1) and sum(took) < LONG:
        began = time.monotonic()
        group = [next(batches) for _ in range(every)]
        note_skipped(state.skipped, skipped_in(group), progress)
        update(run, state, group)
        _wait(run)
        took.append(time.monotonic() - began)
        state.step, state.updates = state.step + every, state.updates + 1
    # The first one starts worker processes, and chooses kernels.
    one = sum(took[1:]) / (len(took) - 1) if len(took) > 1 else took[0]
    began = time.monotonic()
    seen = validate(run, islice(run.val.epoch(0), BATCHES)).metrics.images
    whole = (time.monotonic() - began) * len(run.val.part) / max(1, seen)
    epoch = run.updates * one + whole
    images = run.train.order.batch_size * every
    total = f"{_duration(epoch * run.config.epochs)} for {run.config.epochs} epochs (by {len(took)} updates)"
    return [
        f"time       {images / one:,.0f} images/s: {_duration(epoch)} an epoch, validation {_duration(whole)}; {total}",
        f"memory     {_memory(run)}",
    ]


def _wait(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


def _memory(run: Run) -> str:
    """What the process and its workers hold now, and a GPU at most."""
    own = psutil.Process(os.getpid())
    held = 0
    for process in (own, *own.children(recursive=True)):
        try:
            held += process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    text = f"{held / 2**30:.1f} GB"
    if run.device.type != "cuda":
        return text
    return f"{torch.cuda.max_memory_allocated(run.device) / 2**30:.1f} GB of the GPU's, {text} of the machine's"


def _duration(seconds: float) -> str:
    """`42 s`, `3 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def sheet(images: Sequence[tuple[Image.Image, str]]) -> bytes:
    """A PNG of images in rows, each above its caption."""
    small = list[Image.Image]()
    for image, _ in images:
        one = image.copy()
        one.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
        small.append(one)
    width, height = (max(side) for side in zip(*(one.size for one in small), strict=True))
    cell = max(width, 96), height + LINE
    rows = -(-len(small) // COLUMNS)
    page = Image.new("RGB", (min(COLUMNS, len(small)) * cell[0], rows * cell[1]), "white")
    pen = ImageDraw.Draw(page)
    for number, (one, (_, caption)) in enumerate(zip(small, images, strict=True)):
        left, top = number % COLUMNS * cell[0], number // COLUMNS * cell[1]
        page.paste(one, (left, top))
        pen.text((left + 2, top + height + 2), _fitting(pen, printable(caption), cell[0] - 4), fill="black")
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


def _fitting(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    if pen.textlength(text) <= width:
        return text
    while text and pen.textlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
