"""`vertebra recipes`: ways to train, and what to expect of them."""

from typing import Annotated

import typer

from vertebra.cli.text import console, put, say


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A recipe, to see its header and every setting.")
    ] = None,
) -> None:
    """List the training recipes, or show one: what to expect of it, and its settings as `--config` reads them.

    For example:

    `vertebra recipes`

    `vertebra recipes finetune > mine.yaml`
    """
    from vertebra.engine.recipes import RECIPES, about, recipe
    from vertebra.engine.settings import as_yaml

    if name is not None:
        header, config = about(name), as_yaml(recipe(name))
        say("".join(f"# {line}".rstrip() + "\n" for line in header.splitlines()) + config.rstrip("\n"))
        return
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for known in RECIPES:
        table.add_row(known, about(known).splitlines()[0])
    put(console(), table)
