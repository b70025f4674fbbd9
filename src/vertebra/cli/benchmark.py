"""`vertebra benchmark`: how fast models are here, beside their peers and the machine's limit."""

import csv
import io
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vertebra.cli.group import FAILED, INTERRUPTED
from vertebra.cli.text import complain, console, print_json, put, put_name, say

if TYPE_CHECKING:
    from rich.table import Table

    from vertebra.engine.benchmark import Result, Row


def benchmark(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Architectures, or runs' folders. Nothing is downloaded.")
    ],
    backend: Annotated[
        str, typer.Option(help="Of eager, inductor, cudagraphs, openvino, onnxruntime; several: a,b.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="Of f32, bf16, int8; several: a,b.")] = "auto",
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8",
    against: Annotated[str, typer.Option(help="Peers to run in turn with ours: timm, torchvision.")] = "",
    train: Annotated[bool, typer.Option("--train", help="A training step (eager) instead of inference.")] = False,
    img_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side.", show_default="each its own")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each; the median counts.")] = 9,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...", show_default="cuda, else cpu")] = None,
    memory: Annotated[bool, typer.Option(help="Peak memory too: each in a process of its own.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="The machine, then a line of JSON each.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Accuracy and roofline: .png, .svg, .pdf.")] = None,
) -> None:
    """Measure latency, throughput, memory, and the share of this machine's limit, all in turn in one run.

    Spread: the middle half of the timings. Of limit: the least time that this machine's arithmetic and memory allow,
    over the time taken. Of peak: of its fastest matrix product. Ratio: how many times as fast as the first peer's
    eager f32 (without a peer: as our own eager f32, where that is measured).

    Exit status: 0 all ran, 1 one could not (the others are shown), 2 wrong usage, 130 Ctrl-C (what was measured until
    then is shown).

    For example:

    `vertebra benchmark dla34 deit_tiny_patch16_224 --against timm`

    `vertebra benchmark dla102 --backend eager,openvino --dtype f32,bf16 --batch 1,8,32 --plot dla102.png`
    """
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other; choose one")
    from vertebra.cli.options import pick_device
    from vertebra.engine import plot as picture
    from vertebra.engine.benchmark import Plan
    from vertebra.engine.benchmark import benchmark as run

    if plot is not None:
        if plot.suffix.lower() not in picture.SUFFIXES:
            raise typer.BadParameter(
                f"{plot}: a picture's name ends in {', '.join(picture.SUFFIXES)}", param_hint="'--plot'"
            )
        picture.check(plot)
    plan = Plan(
        models=tuple(models),
        backends=_list(backend),
        dtypes=_list(dtype),
        batches=_numbers(batch),
        against=_list(against),
        train=train,
        rounds=rounds,
        device=pick_device(device),
        img_size=img_size,
        memory=memory,
    )
    result = run(plan, _progress)
    _show(result, as_json, as_csv)
    if plot is not None:
        picture.plot(result, plot)
    failed = [row for row in result.rows if row.error]
    for row in failed:
        complain(f"{_name(row)} at batch {row.batch}: {row.error}")
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if failed:
        raise typer.Exit(FAILED)


def _show(result: "Result", as_json: bool, as_csv: bool) -> None:
    if as_json:
        print_json({"machine": result.machine, "limits": asdict(result.limits)})
        for row in result.rows:
            print_json(asdict(row))
    elif as_csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(asdict(result.rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in result.rows)
        say(text.getvalue().rstrip("\n"))
    else:
        _print(result)


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    parts = _list(text)
    if not parts or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r}: give whole numbers from 1 on, as 1,8", param_hint="'--batch'")
    return tuple(int(part) for part in parts)


def _name(row: "Row") -> str:
    return f"{row.model} {row.library} {row.backend} {row.dtype}"


def _progress(row: "Row") -> None:
    """On a terminal only: what is done so far, on stderr."""
    if sys.stderr.isatty():
        speed = "failed" if row.images_per_second is None else f"{row.images_per_second:.1f} images/s"
        say(f"{_name(row)} batch {row.batch}: {speed}", err=True)


def _print(result: "Result") -> None:
    out, limits = console(), result.limits
    for model, rows in groupby(result.rows, key=lambda row: row.model):
        put_name(out, model)
        put(out, _table(list(rows), wide=out.width >= 90))
        out.print()
    peaks = ", ".join(f"{dtype} {value / 1e9:.3g}" for dtype, value in sorted(limits.flops.items()))
    flags = " ".join(result.machine["flags"])
    put_name(out, f"{result.machine['device']}, {result.machine['threads']} threads, {flags}")
    out.print(f"peak   10^9 operations a second: {peaks}", style="dim", soft_wrap=True)
    out.print(f"copy   {limits.bandwidth / 1e9:.1f} GB/s", style="dim", soft_wrap=True)


def _table(rows: "list[Row]", *, wide: bool) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="dim")
    table.add_column("batch", justify="right")
    for title in ("by", "backend", "dtype"):
        table.add_column(title, no_wrap=True)
    for title in ("ms", "spread", "images/s", "MB", "of limit", "of peak", "ratio"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        memory = None if row.peak_memory is None else row.peak_memory / 1e6
        table.add_row(
            str(row.batch),
            row.library,
            row.backend,
            row.dtype,
            _figure(None if row.seconds is None else row.seconds * 1e3, ".2f"),
            _figure(row.spread, ".0%"),
            _figure(row.images_per_second, ".1f"),
            _figure(memory, ".0f"),
            _figure(row.limit_share, ".0%"),
            _figure(row.peak_share, ".0%"),
            _figure(row.ratio, ".2f"),
        )
    return table


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
