"""The command `vertebra`: one file a command. Nothing here imports torch; commands do, when they run."""

import signal
import sys
from typing import Annotated

import typer

from vertebra import __version__
from vertebra.cli.benchmark import benchmark
from vertebra.cli.classify import classify
from vertebra.cli.convert import convert
from vertebra.cli.doctor import doctor
from vertebra.cli.export import export
from vertebra.cli.group import OneLineErrors
from vertebra.cli.info import info
from vertebra.cli.models import models
from vertebra.cli.recipes import recipes
from vertebra.cli.text import say
from vertebra.cli.train import train
from vertebra.cli.validate import validate

app = typer.Typer(
    name="vertebra",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"vertebra {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error. May stand anywhere.")] = False,
) -> None:
    """Image-classification models: from a published checkpoint and a photo to its best labels.

    Example: `vertebra classify photo.jpg`
    """
    del version, debug  # acted on before this runs: by the callback above, and by OneLineErrors


app.command()(classify)
app.command()(models)
app.command()(info)
app.command()(convert)
app.command()(export)
app.command()(benchmark)
app.command()(doctor)
app.command()(train)
app.command()(validate)
app.command()(recipes)


def main() -> None:
    """The console script. Ends the process: 0 all done, 1 some inputs failed, 2 wrong usage, 130 interrupted, 143 ended
    (SIGTERM): what is half written goes before.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    app(prog_name="vertebra")
