"""`vertebra classify`: photos in, their best labels out."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vertebra.cli.inputs import expand
from vertebra.cli.options import exported, pick_device, tell_taken
from vertebra.cli.text import complain, console, print_json, put, put_name, shown
from vertebra.spec import VertebraError, WeightsUnavailableError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    from vertebra.engine.predict import Classifier, Prediction
    from vertebra.models.backbone import Backbone

DEFAULT_MODEL = "dla102.in1k"
OWN_MODEL = "dla46_c.tin100"
"""Comes with the package."""
BAR, LABEL, GAPS = 40, 32, 12
"""Greatest width of a bar and a label; what the percentage and spaces between columns take."""


def classify(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO",
            help="Files, folders (searched through), zips, quoted patterns, addresses (https://), or -.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE|DIR",
            help="A model, its weights file, its folder, or an exported file.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A local checkpoint for the named model; nothing is downloaded.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes: .txt (one a line), .json or .csv.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels a photo gets.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a photo.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos that the model sees at once.")] = 16,
    img_size: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Side of the square that the model sees.")
    ] = None,
    test_pool: Annotated[
        bool, typer.Option("--test-pool", help="DPN above 224 pixels: pool windows, then average their answers.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps ...", show_default="cuda, else cpu")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse photos of more pixels.", show_default="178956970")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Decode large JPEGs at full size, and compute in float32 throughout.")
    ] = False,
    optimize: Annotated[
        bool | None,
        typer.Option(
            "--optimize/--no-optimize",
            help="Compile the model first (once; it is kept), or never.",
            show_default="as many photos ask for it",
        ),
    ] = None,
) -> None:
    """Name what is in photos: the likeliest labels and how likely each is.

    Exit status: 0 all photos were answered, 1 some were not (each is named), 2 wrong usage.

    For example:

    `vertebra classify cat.jpg`

    `vertebra classify holidays/ 'more/*.png' --top 1 --json`

    `vertebra classify https://example.org/cat.jpg --model runs/mine`

    `cat cat.jpg | vertebra classify - --json`

    `vertebra classify photos/ --model dla102 --optimize`

    `vertebra classify dog.jpg --model deit_tiny_patch16_224 --weights deit_tiny.safetensors`
    """
    found, failures = expand(photos)
    report = _Report(as_json)
    for name, reason in failures.items():
        report.failure(name, reason)
    if found:
        from vertebra.data import DEFAULT_MAX_PIXELS, load_labels
        from vertebra.engine.predict import Predictor

        fixed = {"--optimize": optimize, "--device": device not in (None, "cpu")}
        predictor = Predictor(
            _open(model, weights, img_size, {"test_pool": True} if test_pool else {}, fixed),
            labels=load_labels(labels) if labels else None,
            exact=exact,
            optimize="auto" if optimize is None else optimize,
            top=top,
            batch_size=batch_size,
            device=pick_device(device),
            max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
        )
        for name, (_, answer) in zip(found, predictor.stream(list(found.values())), strict=True):
            if isinstance(answer, VertebraError):
                report.failure(name, str(answer))
            else:
                report.answer(name, answer)
    report.end(len(found) + len(failures))


def _open(
    model: str | None, weights: Path | None, img_size: int | None, options: dict[str, Any], fixed: Mapping[str, object]
) -> "Classifier":
    """A model, or an exported file, for which options are `fixed`."""
    artefact = exported(model, {"--weights": weights, "--img-size": img_size, "--test-pool": options, **fixed})
    if artefact is not None:
        return artefact
    loaded = _load(model, weights, options)
    tell_taken(loaded)
    if img_size:
        loaded.set_input_size(img_size)
    return loaded


def _load(model: str | None, weights: Path | None, options: dict[str, Any]) -> "Backbone":
    from vertebra.hub.factory import load_model

    if model is None and weights is not None:
        return load_model(weights, **options)
    try:
        return load_model(model or DEFAULT_MODEL, weights=weights, **options)
    except WeightsUnavailableError as error:
        if model is None:
            own = load_model(OWN_MODEL, **options)
            complain(
                f"{error.reason}; answering with {OWN_MODEL} of this package, which knows {own.num_classes} classes"
            )
            return own
        raise WeightsUnavailableError(
            f"{error.reason}; offline, give a local checkpoint (--model {model} --weights FILE), a folder with "
            "config.json and weights (--model DIR), or a machine's Hugging Face cache that "
            "holds it (HF_HOME=DIR HF_HUB_OFFLINE=1)"
        ) from error


class _Report:
    """Prints each result as it comes."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.failed = 0
        self.console = None if as_json else console()

    def failure(self, path: str, reason: str) -> None:
        reason = reason.removeprefix(f"{path}: ").removeprefix("<bytes>: ")
        reason = reason.replace("or, where max_pixels can be given, raise it", "or raise --max-pixels")
        reason = reason.replace("max_pixels=", "--max-pixels ")
        self.failed += 1
        complain(f"{path}: {reason}")
        if self.as_json:
            print_json({"path": path, "error": reason})

    def answer(self, path: str, prediction: "Prediction") -> None:
        if self.console is not None:
            _print_table(self.console, path, prediction)
            return
        best = zip(prediction.labels, prediction.indices, prediction.probabilities, strict=True)
        print_json({"path": path, "predictions": [{"label": n, "index": i, "probability": p} for n, i, p in best]})

    def end(self, count: int) -> None:
        """Exit with 1 where anything failed; of many, how many did."""
        if self.failed and count > 1:
            complain(f"{self.failed} of {count} inputs could not be classified")
        if self.failed:
            raise typer.Exit(1)


def _print_table(console: "Console", path: str, prediction: "Prediction") -> None:
    """The name, whole; below it the labels. Columns have the same place for every photo."""
    put_name(console, shown(path))
    put(console, _table(prediction, console.width))
    console.print()


def _table(prediction: "Prediction", width: int) -> "Table":
    from rich.table import Table

    label = min(LABEL, max(10, (width - GAPS) * 2 // 3))
    bar = min(BAR, width - GAPS - label)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", width=6)
    table.add_column(width=label, no_wrap=True, overflow="ellipsis")
    if bar >= 4:
        table.add_column(width=bar)
    for number, (name, share) in enumerate(zip(prediction.labels, prediction.probabilities, strict=True)):
        style = "bold" if number == 0 else ""
        table.add_row(f"{share:.1%}", name, *([_gauge(share, bar)] if bar >= 4 else []), style=style)
    return table


def _gauge(share: float, width: int) -> "ProgressBar":
    from rich.progress_bar import ProgressBar

    # bright_black is a grey on dark and on light terminals; rich's own is dark on both.
    return ProgressBar(
        total=1,
        completed=share,
        width=width,
        style="bright_black",
        complete_style="green",
        finished_style="green",
    )
