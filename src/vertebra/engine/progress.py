"""What a run says while it goes: a bar on a terminal, one line an epoch everywhere."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from vertebra.spec import printable

INDENT = 11
"""Of what a line says, after its first word."""
BESIDE_THE_BAR = 60
"""Columns that a bar's figures take."""
_EVERY = 0.5
"""Seconds between two looks at the loss, which waits for a GPU."""


class Progress:
    """Silent without a console."""

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self.bar: Bar | None = None
        self.task = None
        self.images = 0
        self.began = self.shown = time.monotonic()

    def say(self, line: str) -> None:
        """One line, above the bar; on a terminal, what is too long goes on below its own beginning."""
        if self.console is None:
            return
        shown = printable(line)
        if self.console.is_terminal and len(shown) > self.console.width:
            shown = textwrap.fill(
                shown,
                self.console.width,
                subsequent_indent=" " * INDENT,
                break_long_words=False,
                break_on_hyphens=False,
                drop_whitespace=True,
            )
        for part in shown.split("\n"):
            self.console.print(part, soft_wrap=True)

    def start(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """An epoch begins, or goes on."""
        self.close()
        self.images, self.began = 0, time.monotonic()
        if self.console is None or not self.console.is_terminal:
            return
        columns = (
            TextColumn(f"epoch {epoch + 1}/{epochs}"),
            BarColumn(bar_width=max(4, min(40, self.console.width - BESIDE_THE_BAR))),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
        )
        self.bar = Bar(*columns, console=self.console, transient=True)
        self.task = self.bar.add_task("", total=steps, completed=done, now="")
        self.bar.start()

    def step(self, done: int, totals: Tensor, images: int) -> None:
        """`totals`: (sum of losses, images) since the epoch began or was saved."""
        self.images += images
        now = time.monotonic()
        if self.bar is None or self.task is None or now - self.shown < _EVERY:
            return
        self.shown = now
        loss = float(totals[0] / totals[1].clamp_min(1))
        speed = self.images / (now - self.began)
        self.bar.update(self.task, completed=done, now=f"{speed:.0f} img/s  loss {loss:.4f}")

    def epoch(self, row: Mapping[str, float], watched: tuple[str, float], *, best: bool) -> None:
        """The line that an epoch leaves. `watched`: the figure by which epochs are compared."""
        self.close()
        line = (
            f"epoch {row['epoch']:<4.0f} loss {row['train_loss']:.4f}  val {row['val_loss']:.4f}  "
            f"{watched[0]} {watched[1]:.2%}{' (best)' if best else ''}"
        )
        more = (
            f"  F1 {row['val_macro_f1']:.3f}",
            f"  lr {row['lr']:.2e}",
            f"  {row['images_per_s']:.0f} img/s",
        )
        for figure in more:  # a narrow terminal has room for the first ones; metrics.csv has all
            if self.console is None or not self.console.is_terminal or len(line + figure) <= self.console.width:
                line += figure
        self.say(line)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
