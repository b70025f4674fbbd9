"""Text for terminals: whole, safe to print, one line. All that a command prints goes through here, and only here."""

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from vertebra.spec import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it can be printed: bytes that are no UTF-8, and control characters, are escaped."""
    return printable(os.fspath(path))


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as a shell takes it in a command that is shown to be typed."""
    return shlex.quote(shown(path))


def say(text: str, *, err: bool = False) -> None:
    """A line; lines within it, and columns that tabs make, stay such: names in them go through `shown` before."""
    whole = "".join(part if part in "\n\t" else printable(part) for part in re.split("([\n\t])", text))
    typer.echo(whole, err=err)


def complain(message: str) -> None:
    """One line on stderr, after what stdout already holds."""
    sys.stdout.flush()
    typer.echo(f"vertebra: {printable(message)}", err=True)


def first_process() -> bool:
    """Of several that a launcher (torchrun) started, one alone speaks."""
    return os.environ.get("RANK", "0") == "0"


def print_json(record: Mapping[str, object]) -> None:
    """One line of ASCII on stdout, whatever the width and encoding of the terminal."""
    typer.echo(json.dumps(record))
    sys.stdout.flush()


def console(*, err: bool = False) -> "Console":
    """Stdout: colours and the window's width on a terminal; elsewhere plain text whose lines never wrap."""
    from vertebra.cli.terminal import Terminal

    out = sys.stderr if err else sys.stdout
    return Terminal(file=out, width=None if out.isatty() else 1000)


def put_name(out: "Console", name: str) -> None:
    """A heading, whole: where it is too long for the terminal, the terminal wraps it."""
    out.print(name, style="bold", soft_wrap=True)


def put(out: "Console", what: "RenderableType") -> None:
    """Print; on anything but a terminal, without the spaces that fill columns up."""
    if out.is_terminal:
        out.print(what)
        return
    with out.capture() as caught:
        out.print(what)
    for line in caught.get().splitlines():
        out.out(line.rstrip(), highlight=False)
