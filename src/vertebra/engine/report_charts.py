"""Line charts as SVG inside a page: they take its colours, in the dark too, and need no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE, HIGH = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 26
"""Room around the lines for numbers, in the units of the picture."""


@dataclass(frozen=True, slots=True)
class Line:
    """Values by epoch; nan and inf leave a gap."""

    name: str
    values: Sequence[float]


def chart(title: str, epochs: Sequence[int], lines: Sequence[Line], *, best: int = 0, percent: bool = False) -> str:
    """One chart. `best`: the epoch that a dashed line marks, 0 for none. `percent`: values are shares of 1."""
    finite = [value for line in lines for value in line.values if math.isfinite(value)]
    ticks = _ticks(min(finite, default=0.0), max(finite, default=1.0))
    low, high = ticks[0], ticks[-1]
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)

    def x(epoch: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * (epoch - first) / (last - first)

    def y(value: float) -> float:
        return HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text class="t" x="{LEFT}" y="14">{escape(title)}</text>{_legend(lines)}')
    for tick in ticks:
        text = f"{tick * 100:.4g}%" if percent else _short(tick, high)
        parts.append(f'<path class="g" d="M{LEFT} {y(tick):.1f}H{WIDE - RIGHT}"/>')
        parts.append(f'<text class="n" x="{LEFT - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{text}</text>')
    parts += [
        f'<text class="n" x="{x(epoch):.1f}" y="{HIGH - 9}" text-anchor="middle">{epoch}</text>'
        for epoch in _epochs(first, epochs[-1])
    ]
    if best:
        parts.append(
            f'<path class="b" d="M{x(best):.1f} {TOP}V{HIGH - BOTTOM}"><title>best: epoch {best}</title></path>'
        )
    for number, line in enumerate(lines):
        parts.append(_drawn(number, [(x(e), y(v), v) for e, v in zip(epochs, line.values, strict=True)]))
    return "".join([*parts, "</svg>"])


def _drawn(number: int, points: Sequence[tuple[float, float, float]]) -> str:
    """Pieces between gaps; a value with no neighbour is a dot."""
    out: list[str] = []
    piece: list[tuple[float, float]] = []
    for x, y, value in [*points, (0.0, 0.0, math.nan)]:
        if math.isfinite(value):
            piece.append((x, y))
            continue
        if len(piece) == 1:
            out.append(f'<circle class="l{number}" cx="{piece[0][0]:.1f}" cy="{piece[0][1]:.1f}" r="3"/>')
        elif piece:
            out.append(f'<path class="l l{number}" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in piece)}"/>')
        piece = []
    return "".join(out)


def _legend(lines: Sequence[Line]) -> str:
    """From the right, in the line of the title."""
    out, right = list[str](), WIDE - RIGHT
    for number, line in reversed(list(enumerate(lines))):
        out.append(f'<text class="k l{number}" x="{right}" y="14" text-anchor="end">{escape(line.name)}</text>')
        right -= 7.2 * len(line.name) + 14
    return "".join(out) if len(lines) > 1 else ""


def _short(value: float, highest: float) -> str:
    """`2.5`, or `2.5e-4` where all are that small."""
    power = math.floor(math.log10(abs(highest))) if highest else 0
    return f"{value:.4g}" if value == 0 or power > -2 else f"{value / 10.0**power:.3g}e{power}"


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round values around both."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (abs(low) * 0.1 or 0.1), high + (abs(high) * 0.1 or 0.1)
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _epochs(first: int, last: int) -> list[int]:
    """Six at most."""
    step = next(m * 10**p for p in range(9) for m in (1, 2, 5) if (last - first) / (m * 10**p) <= 5)
    return [epoch for epoch in range(first, last + 1) if epoch == first or epoch % step == 0][-7:]
