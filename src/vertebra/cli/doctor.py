"""`vertebra doctor`: what is wrong with a data set, before a training finds out."""

from typing import TYPE_CHECKING, Annotated

import typer

from vertebra.cli.options import LabelColumn, LabelSeparator, PathColumn, SplitColumn, columns_as_options
from vertebra.cli.text import complain, console, print_json, put, quoted, say, shown

if TYPE_CHECKING:
    from rich.table import Table

    from vertebra.data.datasets import Dataset
    from vertebra.data.doctor import Entry, Finding, Report
    from vertebra.data.tables import Columns

EXAMPLES = 3
"""Cases of a finding that the table shows."""
PER_CASE = 3
"""Files of a case that the table names."""
COLOURS = {"error": "bold red", "warning": "yellow"}


def doctor(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Class folders, .zip, .tar, .csv, .tsv, .parquet or hf:NAME.")
    ],
    everything: Annotated[bool, typer.Option("--all", help="A line for each case, in place of the table.")] = False,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    label_separator: LabelSeparator = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read.", show_default="by cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with every case.")] = False,
) -> None:
    """Look for what spoils a training: unreadable files, copies, leaks between splits, uneven classes, odd images.

    Every image is decoded once. Copies are found by content and by look (another size, format or quality).

    Exit status: 0 no errors (there may be warnings), 1 errors, 2 wrong usage.

    For example:

    `vertebra doctor photos/`

    `vertebra doctor photos/ --all | grep unreadable`

    `vertebra doctor train.zip --json > findings.json`

    `vertebra doctor labels.csv --label-separator '|'`
    """
    from vertebra.data.datasets import one_each, open_dataset
    from vertebra.data.tables import Columns

    columns = Columns(path_column, tuple(label_column or ()), split_column, label_separator)
    dataset = one_each(open_dataset(data, columns))
    if dataset.note:
        complain(dataset.note)
    report = _examine(dataset, workers)
    if as_json:
        print_json(report.as_record())
    elif everything:
        _print_all(report)
    else:
        _print(report, _told(dataset.multi_label, columns))
    if report.of("error"):
        raise typer.Exit(1)


def _examine(dataset: "Dataset", workers: int | None) -> "Report":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vertebra.data.doctor import examine
    from vertebra.data.loader import default_workers
    from vertebra.runtime.machine import cores

    total = sum(map(len, dataset.parts.values()))
    chosen = min(default_workers(cores()), total // 500) if workers is None else workers  # few are read sooner here
    err = console(err=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=total, rate="")

        def seen(count: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=count, rate=f"{speed:,.0f} images/s" if speed else "")

        return examine(dataset, workers=chosen, seen=seen)


def _print(report: "Report", told: tuple[str, str]) -> None:
    out = console()
    splits = ", ".join(f"{count:,} {split}" for split, count in report.splits.items())
    classes = len(next(iter(report.counts.values())))
    out.print(f"data       {splits} images, {classes} classes", soft_wrap=True)
    if report.findings:
        out.print()
        put(out, _table(report))
        out.print()
    out.print(_next(report, told), soft_wrap=True)


def _table(report: "Report") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("level", no_wrap=True)
    table.add_column("finding", max_width=18)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("examples", overflow="fold")
    for finding in report.findings:
        cell = Text("\n").join(Text(_line(entry, report.data, PER_CASE)) for entry in finding.entries[:EXAMPLES])
        if len(finding.entries) > EXAMPLES:
            cell.append(f"\nand {len(finding.entries) - EXAMPLES:,} more", style="dim")
        cell.append(f"\n-> {finding.advice}", style="dim")
        level = Text(finding.level, style=COLOURS[finding.level])
        table.add_row(level, finding.title, f"{len(finding.entries):,}", cell)
    return table


def _line(entry: "Entry", data: str, most: int | None = None) -> str:
    """A case, its files named from DATA on."""
    names = [shown(_short(name, data)) for name in entry.files[:most]]
    more = f" = {len(entry.files) - len(names):,} more" if len(names) < len(entry.files) else ""
    note = shown(entry.note)
    if not names:
        return note
    return " = ".join(names) + more + (f"  ({note})" if note else "")


def _short(name: str, data: str) -> str:
    inner = name.removeprefix(data.rstrip("/"))
    return name if inner == name else inner.lstrip("/!")  # a table's photos lie beside it


def _print_all(report: "Report") -> None:
    for finding in report.findings:
        for entry in finding.entries:
            say(f"{finding.level}\t{finding.kind}\t{_line(entry, report.data)}")


def _next(report: "Report", told: tuple[str, str]) -> str:
    errors, warnings = report.of("error"), report.of("warning")
    data = quoted(report.data)
    every, train = f"vertebra doctor {data}{told[0]} --all", f"vertebra train {data}{told[1]}"
    if errors:
        return f"next       mend the errors first ({_kinds(errors)}); every case: {every}"
    if warnings:
        return f"next       no errors; every warning: {every}; then {train} ..."
    return f"next       nothing found: {train} --model NAME"


def _told(multi_label: bool, columns: "Columns") -> tuple[str, str]:
    """What doctor, and what train, must be told of a table, as it stands on a command line."""
    options = columns_as_options(columns)
    more = ["--set", "loss.kind=bce"] if multi_label else []
    first, second = ("".join(f" {quoted(word)}" for word in words) for words in (options, options + more))
    return first, second


def _kinds(findings: "list[Finding]") -> str:
    return ", ".join(f"{len(f.entries):,} {f.kind}" for f in findings)
