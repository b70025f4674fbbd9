"""What options mean that several commands have."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from vertebra.export import Artefact


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
