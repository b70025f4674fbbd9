"""`report.html` of a run: what it learned, where it errs, and what it was shown.

Written after every epoch, and when the run ends. It draws no number that the run would have drawn,
and a report that cannot be written costs one line, never the run.
"""

from __future__ import annotations

import io
import platform
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from vertebra.data import resolve_model_data_config
from vertebra.data.datasets import Part
from vertebra.data.decode import decode
from vertebra.data.mix import soft_targets
from vertebra.engine import checkpoint, outdir
from vertebra.engine.evaluate import Evaluation, worst
from vertebra.engine.progress import Progress
from vertebra.engine.report_page import Page, Photo, render
from vertebra.engine.settings import as_yaml, config_hash
from vertebra.engine.setup import Run
from vertebra.engine.state import State
from vertebra.runtime.machine import versions
from vertebra.spec import VertebraError, parse_object

MISTAKES, SAMPLES = 24, 16
SIDE = 128
"""Of the pictures, in pixels: 4 to 6 kB each."""
_FAULTS = (VertebraError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, MemoryError)
"""What a full disk, a damaged validation.json or a photo that has gone may raise."""


def mistakes_in(result: Evaluation, part: Part, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The surest wrong answers, as they stand in validation.json: a report of a resumed run needs them."""
    found: list[dict[str, Any]] = []
    for row in worst(result, MISTAKES):
        index = int(result.answers.indices[row])
        found.append(
            {
                "index": index,
                "image": part.samples[index].name,
                "true": classes[int(result.answers.labels[row])],
                "answer": classes[int(result.answers.best[row, 0])],
                "confidence": round(float(result.answers.confidence[row]), 4),
            }
        )
    return found


class Reporter:
    """Writes the report of one run, from its first process alone."""

    def __init__(self, run: Run, out: Path, progress: Progress) -> None:
        self.run, self.out, self.progress = run, out, progress
        self._of, self._mistakes = 0, list[Photo]()

    def write(self, state: State, status: str) -> None:
        """As things stand. Leaves every default generator as it finds it, and raises nothing."""
        if not self.run.accelerator.is_main_process:
            return
        before = checkpoint.random_state()
        try:
            text = render(self._page(state, status))
            checkpoint.write_whole(self.out / outdir.REPORT, text.encode())
        except _FAULTS as error:
            self.progress.say(f"report     not written: {' '.join(str(error).split()) or type(error).__name__}")
        finally:
            checkpoint.set_random_state(before)

    def _page(self, state: State, status: str) -> Page:
        run = self.run
        best = outdir.best(state.metrics)
        validation = self.out / outdir.VALIDATION
        record = parse_object(validation.read_bytes(), str(validation)) if best else {}
        if best != self._of:  # they are read from files; the rest is quickly written after every epoch
            self._of, self._mistakes = best, _pictured(record.get("mistakes", []), run.val.part)
        epochs = f"epoch {len(state.metrics)} of {run.config.epochs}"
        return Page(
            title=f"{run.config.model.name} on {Path(run.config.data.source).name or run.config.data.source}",
            status=f"{status}, {epochs}" + (f"; answers are those of the best, epoch {best}" if best else ""),
            facts=self._facts(state),
            rows=state.metrics,
            best=best,
            record=record,
            mistakes=self._mistakes,
            samples=self._samples,
            settings=as_yaml(run.config),
        )

    def _facts(self, state: State) -> list[tuple[str, str]]:
        run = self.run
        parts = ", ".join(f"{len(part):,} {name}" for name, part in run.dataset.parts.items())
        count = sum(p.numel() for p in run.model.parameters())
        device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else platform.machine()
        processes = run.accelerator.num_processes
        environment = ", ".join(f"{name} {version}" for name, version in versions().items())
        return [
            ("model", f"{run.config.model.name}, {count / 1e6:.2f} M parameters, input {run.input}"),
            ("recipe", run.config.recipe or "none"),
            ("run", config_hash(run.config)),
            ("data", f"{run.config.data.source}: {parts} images, {len(run.classes)} classes"),
            (
                "skipped",
                f"{len(state.skipped):,} training and {len(state.val_skipped):,} validation images that cannot be read",
            ),
            ("machine", f"{processes} x {run.device.type} ({device}), precision {run.accelerator.mixed_precision}"),
            ("environment", f"Python {platform.python_version()}, {environment}"),
        ]

    @cached_property
    def _samples(self) -> list[Photo]:
        return [Photo(_jpeg(image), caption) for image, caption in first_images(self.run, SAMPLES)]


def first_images(run: Run, count: int) -> list[tuple[Image.Image, str]]:
    """Images of the first epoch, through all that is done to a batch, and what they are taught as."""
    batch = run.train.peek(count)
    if not len(batch.labels):
        return []
    torch.manual_seed(run.config.seed)
    images = run.finish(batch.images.to(run.device))
    several = run.dataset.multi_label
    rows = batch.labels if several else soft_targets(batch.labels, len(run.classes))
    targets = rows.to(run.device)
    if run.mix is not None and run.config.augment.mix_off_epoch != 0:  # two at a time: each pair draws anew
        mixed = [run.mix(*pair) for pair in zip(images.split(2), targets.split(2), strict=True)]
        images, targets = (torch.cat(column) for column in zip(*mixed, strict=True))
    data = cast("dict[str, Any]", resolve_model_data_config(run.model))
    mean, std = (torch.tensor(data[key], device=run.device).view(-1, 1, 1) for key in ("mean", "std"))
    levels = ((images * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()
    caption = _classes_in if several else _mixture
    return [
        (Image.fromarray(one.numpy()), caption(target, run.classes))
        for one, target in zip(levels, targets.cpu(), strict=True)
    ]


def _mixture(target: Tensor, classes: Sequence[str]) -> str:
    """`cat`, or `cat 70%, dog 30%`."""
    share, which = target.topk(min(2, len(classes)))
    named = [(classes[int(i)], float(s)) for s, i in zip(share, which, strict=True) if s > 0.01]
    return named[0][0] if len(named) == 1 else ", ".join(f"{name} {s:.0%}" for name, s in named)


def _classes_in(target: Tensor, classes: Sequence[str]) -> str:
    """`cat, dog`: each class that is more there than not, where an image may have any number of them."""
    there: list[bool] = (target > 0.5).tolist()
    return ", ".join(name for name, own in zip(classes, there, strict=True) if own) or "no class"


def _pictured(mistakes: Sequence[dict[str, Any]], part: Part) -> list[Photo]:
    """A photo that has gone since is left out."""
    found: list[Photo] = []
    for one in mistakes:
        sample = part.samples[one["index"]]
        try:
            image = decode(sample.read(), at_least=2 * SIDE)
        except VertebraError:
            continue
        share = "" if one["confidence"] is None else f" {one['confidence']:.0%}"
        found.append(Photo(_jpeg(image), one["true"], f"{one['answer']}{share}", one["image"]))
    return found


def _jpeg(image: Image.Image) -> bytes:
    """At most `SIDE` pixels a side."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
