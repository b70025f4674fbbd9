"""`vertebra models`: what there is."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated

import typer

from vertebra.cli.text import complain, console, print_json, put

WIDE = 78
"""Columns from which a name, all its figures and its licence stand in one line."""


class Sort(StrEnum):
    """What to order by: costs from small to large, accuracy from high to low."""

    natural = "name"
    top1 = "top1"
    params = "params"
    macs = "macs"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the list. `gmacs` is None where nobody measured."""

    name: str
    family: str
    params: int
    gmacs: float | None
    input_size: int | None
    top1: float | None
    license: str | None
    weights: list[str]


def models(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="A part of the name, or a pattern: dla, 'deit*_384'.")
    ] = "",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Published checkpoints only, each by its own name.")
    ] = False,
    sort: Annotated[Sort, typer.Option(help="Order by name, accuracy or cost.")] = Sort.natural,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a model.")] = False,
    capabilities: Annotated[
        bool, typer.Option("--capabilities", help="What every model can do, and which cannot, and why.")
    ] = False,
) -> None:
    """List models: parameters, multiply-accumulates, and ImageNet-1k top-1 of the published checkpoint.

    For example:

    `vertebra models`

    `vertebra models deit --pretrained --sort top1`

    `vertebra models 'dla*' --json`
    """
    if capabilities:
        _print_capabilities(as_json)
        return
    rows = _sorted(_rows(pattern, pretrained), sort)
    if not rows:
        complain(f"no model matches {pattern!r}; `vertebra models` lists all of them")
        raise typer.Exit(1)
    if not as_json:
        _print_table(rows)
        return
    for row in rows:
        print_json(asdict(row))


def _print_capabilities(as_json: bool) -> None:
    from rich.table import Table

    from vertebra.hub.capabilities import capabilities

    found = capabilities()
    if as_json:
        for capability in found:
            print_json(asdict(capability))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("promise", "kept by", "what it says"):
        table.add_column(heading, overflow="fold")
    for c in found:
        kept = "all" if c.kept == c.total else f"{c.kept} of {c.total}"
        table.add_row(c.name, kept, "; but: ".join([c.meaning, *c.limits]))
    put(console(), table)


def _rows(pattern: str, pretrained: bool) -> list[Row]:
    from vertebra.hub.listing import list_models

    wanted = pattern if not pattern or set(pattern) & set("*?[") else f"*{pattern}*"
    return [_row(name) for name in list_models(wanted, pretrained=pretrained)]


def _row(name: str) -> Row:
    from vertebra.hub.registry import REGISTRY

    arch, tag = REGISTRY.split(name)
    variant, default = REGISTRY.variant(arch), REGISTRY.default_weights(name)
    published = [row for row, weights in REGISTRY.weights(arch).items() if weights.available]
    return Row(
        name=name,
        family=REGISTRY.family(arch).name,
        params=variant.params,
        gmacs=variant.gmacs,
        input_size=default[1].preprocess.input_size[-1] if default else None,
        top1=default[1].top1 if default else None,
        license=default[1].license if default else None,
        weights=[name] if tag else published,
    )


def _sorted(rows: list[Row], sort: Sort) -> list[Row]:
    """Rows without a figure come last."""
    last = float("inf")
    match sort:
        case Sort.natural:
            return rows  # already in natural order: dla34 before dla102
        case Sort.top1:
            return sorted(rows, key=lambda row: last if row.top1 is None else -row.top1)
        case Sort.params:
            return sorted(rows, key=lambda row: row.params)
        case Sort.macs:
            return sorted(rows, key=lambda row: last if row.gmacs is None else row.gmacs)


def _print_table(rows: list[Row]) -> None:
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("model", overflow="fold")
    wide = out.width >= WIDE
    for title in ("params", "GMACs", *(("pixels",) if wide else ()), "top-1"):
        table.add_column(title, justify="right", no_wrap=True)
    if wide:
        table.add_column("licence", no_wrap=True)
    for row in rows:
        figures = [f"{row.params / 1e6:.1f}M", _figure(row.gmacs), _figure(row.top1)]
        if wide:
            figures.insert(2, str(row.input_size or "-"))
            figures.append(row.license or "-")
        table.add_row(row.name, *figures)
    put(out, table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
