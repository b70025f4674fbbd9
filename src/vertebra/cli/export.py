"""`vertebra export`: a model becomes a file that other runtimes read, proven to answer the same."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vertebra.cli.inputs import expand
from vertebra.cli.options import tell_taken
from vertebra.cli.text import say, shown
from vertebra.spec import VertebraError


class Kind(StrEnum):
    """The formats."""

    onnx = "onnx"
    openvino = "openvino"
    pt2 = "pt2"
    aoti = "aoti"


class Number(StrEnum):
    """The types of number."""

    f32 = "f32"
    bf16 = "bf16"
    int8 = "int8"


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, its weights file or its folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .onnx, .xml or .pt2.")],
    kind: Annotated[Kind | None, typer.Option("--format", help="The format.", show_default="by the suffix")] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A local checkpoint for the named model; nothing is downloaded.")
    ] = None,
    dtype: Annotated[Number, typer.Option(help="bf16: openvino, pt2, aoti. int8: openvino, with --samples.")] = (
        Number.f32
    ),
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="Images of other sizes, too.")] = False,
    with_preprocess: Annotated[
        bool, typer.Option("--with-preprocess", help="Resize, crop and normalise inside: uint8 photos in.")
    ] = False,
    batch: Annotated[int | None, typer.Option(min=1, help="A fixed batch.", show_default="any")] = None,
    samples: Annotated[
        str | None, typer.Option(metavar="PATH", help="Photos: to calibrate int8 on, and for the check.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes: .txt (one a line), .json or .csv.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a model as ONNX, OpenVINO, torch.export or AOTInductor, with its labels, preprocessing and licence inside.

    The file is read back by its own runtime in a new process and compared with the model. Where the answers differ by
    more than the type of number allows, nothing is left of it, and the exit status is 1.

    For example:

    `vertebra export dla34.in1k --out dla34.onnx`

    `vertebra export dla102.in1k --out dla102.xml --dtype int8 --samples photos/`

    `vertebra export dla34.in1k --out dla34.onnx --with-preprocess`

    `vertebra classify photo.jpg --model dla34.onnx`
    """
    photos = _photos(samples)
    from vertebra.data import load_labels
    from vertebra.export.write import export_model, format_of, refuse_to_overwrite
    from vertebra.hub.factory import load_model

    named = format_of(None if kind is None else kind.value, out)  # before anything is downloaded
    refuse_to_overwrite(out, named, force=force)
    loaded = load_model(model, weights=weights)
    tell_taken(loaded)
    done = export_model(
        loaded,
        out,
        format=named,
        dtype=dtype.value,
        dynamic_size=dynamic_size,
        with_preprocess=with_preprocess,
        batch=batch,
        samples=photos,
        labels=load_labels(labels) if labels else None,
        force=force,
    )
    for case in done.cases:
        say(f"verified   {case}")
    record = done.record
    say(f"weights    sha256 {record.weights_sha256[:16]}, licence {record.license or 'none stated'}")
    say(f"wrote      {shown(done.out)}: {record.format} {record.dtype}, {done.bytes / 1e6:.1f} MB")


def _photos(named: str | None) -> list[Path]:
    if named is None:
        return []
    photos, failures = expand([named])
    if failures:
        raise VertebraError(f"--samples {named}: {failures[named]}")
    if odd := next((name for name, photo in photos.items() if not isinstance(photo, Path)), None):
        raise VertebraError(f"--samples {named}: {odd} is no file by itself; name a folder of photos, or files")
    return [photo for photo in photos.values() if isinstance(photo, Path)]
