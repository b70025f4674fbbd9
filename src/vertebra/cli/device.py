"""What `--device` means."""

import typer


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
