"""What options mean that several commands have."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from vertebra.cli.text import complain

if TYPE_CHECKING:
    from vertebra.data.tables import Columns
    from vertebra.export import Artefact

PathColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="In a table, the column of the photos' paths.", show_default="its usual names"),
]
LabelColumn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="In a table, the column of labels; given several times, columns of 0 and 1, each a class.",
        show_default="its usual names",
    ),
]
SplitColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="In a table, the column that says train, val or test, or marks one of them by 1, as is_valid.",
        show_default="its usual names",
    ),
]
LabelSeparator = Annotated[
    str | None, typer.Option(metavar="TEXT", help="In a table, what stands between a photo's labels.")
]


def exported(model: str | None, fixed: Mapping[str, object]) -> "Artefact | None":
    """The exported file that `--model` names; None where it names something else.

    `fixed`: options that such a file has no use for, and what was given for them. Raises `typer.BadParameter`.
    """
    from vertebra.export import is_artefact, load

    if model is None or not is_artefact(model):
        return None
    if named := next((option for option, given in fixed.items() if given), None):
        raise typer.BadParameter(
            "an exported file has its weights and its size inside, and runs on the CPU as it was compiled",
            param_hint=f"'{named}'",
        )
    return load(model)


def tell_taken(model: object) -> None:
    """A line on stderr, where a weights file's own record decided something in the place of the model's name."""
    if taken := getattr(getattr(model, "load_report", None), "taken", ""):
        complain(taken)


def pick_device(name: str | None) -> str:
    """`name` where this machine has it; None: a GPU, where there is one. Raises `typer.BadParameter`."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.device(name)).cpu()
    # What torch raises for a device depends on how it was built: no such name, no driver, not compiled in, no data.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise typer.BadParameter(
            f"device {name!r} cannot be used on this machine; it has {', '.join(there)}", param_hint="'--device'"
        ) from error
    return name


def columns_as_options(columns: "Columns") -> list[str]:
    """What `--path-column` and its like were, to be typed again."""
    given = [("--path-column", columns.path), ("--split-column", columns.split)]
    given += [("--label-column", name) for name in columns.labels]
    given += [("--label-separator", columns.separator)]
    return [word for option, value in given if value is not None for word in (option, value)]


def columns_as_settings(columns: "Columns") -> list[str]:
    """The same as `--set` takes it."""
    given = {
        "path_column": columns.path,
        "label_columns": list(columns.labels) or None,
        "split_column": columns.split,
        "label_separator": columns.separator,
    }
    return [f"data.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]
