"""Two pictures of a benchmark: throughput against accuracy, and the roofline. Needs matplotlib."""

import importlib.util
from pathlib import Path
from typing import Any

from vertebra.engine.benchmark import Result, Row
from vertebra.engine.limits import WIDER
from vertebra.spec import VertebraError

SUFFIXES = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Before minutes of measuring: raises `VertebraError` without matplotlib, or for another suffix."""
    if importlib.util.find_spec("matplotlib") is None:
        raise VertebraError("a plot needs matplotlib: pip install matplotlib")
    if path.suffix.lower() not in SUFFIXES:
        raise VertebraError(f"{path}: a picture's name ends in {', '.join(SUFFIXES)}")


def plot(result: Result, path: Path) -> None:
    """Write both into one file. Raises as `check` does."""
    check(path)
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in result.rows if row.seconds is not None]
    _accuracy(left, rows)
    _roofline(right, rows, result)
    figure.suptitle(f"{result.machine['device']}, {result.machine['threads']} threads")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _contestant(row: Row) -> str:
    return f"{row.library} {row.backend} {row.dtype}"


def _accuracy(axes: Any, rows: list[Row]) -> None:
    """Per contestant and model, its best throughput of all batch sizes; a line joins the contestants of a model."""
    fastest: dict[tuple[str, str], tuple[float, Row]] = {}
    for row in rows:
        key, speed = (_contestant(row), row.model), row.images_per_second or 0.0
        if row.top1 is not None and speed > fastest.get(key, (0.0,))[0]:
            fastest[key] = speed, row
    for name in dict.fromkeys(contestant for contestant, _ in fastest):
        points = [(speed, row.top1) for (who, _), (speed, row) in fastest.items() if who == name]
        axes.scatter(*zip(*points, strict=True), label=name, zorder=2)
    for model in dict.fromkeys(model for _, model in fastest):
        speeds = sorted(speed for (_, which), (speed, _) in fastest.items() if which == model)
        top1 = next(row.top1 for (_, which), (_, row) in fastest.items() if which == model)
        axes.plot([speeds[0], speeds[-1]], [top1, top1], color="lightgrey", linewidth=1, zorder=1)
        axes.annotate(model, (speeds[-1], top1), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set(
        xlabel="images a second, at the best batch", ylabel="ImageNet-1k top-1, %", title="Throughput and accuracy"
    )
    axes.margins(0.25)  # room for the names
    _logarithmic(axes.xaxis)
    if axes.collections:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "none has a published accuracy", ha="center", transform=axes.transAxes)


def _logarithmic(axis: Any) -> None:
    """Ticks as 0.5, 1, 2, 5, 10 ... in plain numbers: a span is often below a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _roofline(axes: Any, rows: list[Row], result: Result) -> None:
    limits = result.limits
    span = [row.intensity or 1.0 for row in rows] or [1.0]
    low, high = min(*span, 1.0) / 2, max(*span, limits.peak("f32") / limits.bandwidth) * 2
    for dtype, measured in limits.flops.items():
        if measured < limits.peak(dtype) and WIDER[dtype][0] == dtype:
            continue  # emulated: its roof is the wider type's
        ridge = measured / limits.bandwidth
        xs = sorted({low, min(max(ridge, low), high), high})
        axes.plot(xs, [min(measured, x * limits.bandwidth) / 1e9 for x in xs], label=f"limit {dtype}", linewidth=1)
    for name in dict.fromkeys(map(_contestant, rows)):
        group = [row for row in rows if _contestant(row) == name]
        axes.scatter([r.intensity for r in group], [(r.flops or 0) / 1e9 for r in group], s=18, label=name)
    axes.set(xlabel="operations a byte", ylabel="10⁹ operations a second", title="Roofline")
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    axes.legend(fontsize=8)
