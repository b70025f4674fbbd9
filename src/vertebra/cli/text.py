"""Text for terminals: whole, safe to print, one line."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it can be printed: bytes that are no UTF-8, and control characters, are escaped."""
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as a shell takes it in a command that is shown to be typed."""
    return shlex.quote(shown(path))


def complain(message: str) -> None:
    """One line on stderr, after what stdout already holds."""
    sys.stdout.flush()
    typer.echo(f"vertebra: {shown(message)}", err=True)


def first_process() -> bool:
    """Of several that a launcher (torchrun) started, one alone speaks."""
    return os.environ.get("RANK", "0") == "0"


def print_json(record: Mapping[str, object]) -> None:
    """One line of ASCII on stdout, whatever the width and encoding of the terminal."""
    typer.echo(json.dumps(record))
    sys.stdout.flush()


def console() -> "Console":
    """Stdout: colours and the window's width on a terminal; elsewhere plain text whose lines never wrap."""
    from rich.console import Console

    plain = not sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=1000 if plain else None)


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
