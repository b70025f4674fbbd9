"""`vertebra convert`: an author's checkpoint becomes one safe file that needs nothing beside it."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from vertebra.cli.text import say, shown


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint: .pth, .npz, .safetensors, in the authors' layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write; ends in .safetensors.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The architecture it is for; not needed where the file itself says it."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Kernels and matrices in float16: half the size.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Convert a checkpoint to safetensors: adapted, checked by running it, with its whole record inside.

    For example:

    `vertebra convert dla34-ba72cf86.pth --model dla34.in1k --out dla34.safetensors`

    `vertebra classify photo.jpg --model dla34.safetensors`

    `vertebra convert runs/mine/model.safetensors --out mine.safetensors --half`
    """
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out}: must end in .safetensors", param_hint="'--out'")
    from vertebra.hub.convert import convert as run

    done = run(checkpoint, model, out, half=half, force=force)
    if done.wrapper:
        say(f"unwrapped  {done.wrapper}")
    if done.report.renamed:
        say(f"renamed    {len(done.report.renamed)} keys: {_some(done.report.renamed)}")
    for reason, count in Counter(done.report.dropped.values()).items():
        keys = [key for key, why in done.report.dropped.items() if why == reason]
        say(f"dropped    {count} keys: {_some(keys)}: {reason}")
    for key in done.report.resized:
        say(f"resized    {key}")
    say(
        f"verified   the written file holds the same tensors and answers alike; source sha256 {done.source_sha256[:16]}"
    )
    say(
        f"wrote      {shown(done.out)}: {done.architecture}, {done.num_classes} classes, {done.parameters:,} parameters"
    )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
