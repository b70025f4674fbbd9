"""`vertebra validate`: how good a model is on data whose answers are known."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vertebra.cli.options import LabelColumn, LabelSeparator, PathColumn, SplitColumn, exported, pick_device, tell_taken
from vertebra.cli.text import complain, console, first_process, print_json, put, shown
from vertebra.spec import VertebraError

if TYPE_CHECKING:
    from vertebra.data.datasets import Part
    from vertebra.engine.evaluate import Evaluation
    from vertebra.engine.multilabel import MultiEvaluation
    from vertebra.engine.predict import Classifier
    from vertebra.engine.validate import Split


_TITLES = {"map": "mAP", "ap": "AP"}


def validate(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Class folders, .zip, .tar, .csv, .tsv, .parquet or hf:NAME.")
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME|FILE|DIR", help="A model, its weights, a run's folder, or an exported file.")
    ],
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A local checkpoint for the named model; nothing is downloaded.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="train|val|test", help="Which part of DATA.", show_default="val, else test, else all"),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="A table of class folders and names, where they differ.", show_default="the run's"
        ),
    ] = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    label_separator: LabelSeparator = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos that the model sees at once.")] = 64,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read.", show_default="by cores")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps ...", show_default="cuda, else cpu")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Decode large JPEGs at full size; float32 throughout.")
    ] = False,
    optimize: Annotated[bool, typer.Option("--optimize", help="Compile the model first; it is kept.")] = False,
    backend: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The same by eager, inductor, openvino or onnxruntime.", show_default="auto"),
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="A line for each class, the worst first.")] = False,
    confusion: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write the confusion matrix: rows true, columns answers.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, with every class.")] = False,
) -> None:
    """Measure a model on a split: top-1, top-5, macro F1, calibration; every image counts once.

    Where DATA has no split val and the model is a run's folder over the same images, those are measured that it held
    out. On several GPUs: `torchrun --nproc-per-node 4 -m vertebra validate ...`

    A model trained on several labels a photo: mAP and F1 at 50%, and each class's average precision.

    Exit status: 0 all images were read, 1 some were not (each is named), 2 wrong usage.

    For example:

    `vertebra validate photos/ --model runs/mine`

    `vertebra validate imagenet/val --model dla34.in1k --names classes.csv`

    `vertebra validate photos.csv --model dla34.onnx --per-class`
    """
    from vertebra.data.tables import Columns
    from vertebra.engine.predict import known_classes
    from vertebra.engine.validate import trained, validation_split
    from vertebra.hub.factory import load_model
    from vertebra.runtime.machine import missing

    absent = missing("torchmetrics")
    if absent:
        raise VertebraError(f"validating needs {absent[0]}: pip install 'vertebra[train]'")
    if confusion is not None and not confusion.absolute().parent.is_dir():  # better known before all is measured
        raise VertebraError(f"--confusion {confusion}: there is no folder {confusion.parent}; make it, or name another")
    fixed = {"--optimize": optimize, "--backend": backend, "--device": device not in (None, "cpu")}
    artefact = exported(model, {"--weights": weights, **fixed})
    loaded: Classifier = artefact or load_model(model, weights=weights)
    tell_taken(loaded)
    known = known_classes(loaded)
    chosen = validation_split(
        data,
        known,
        loaded.num_classes,
        split=split,
        names=None if names is None else str(names),
        multi_label=bool(loaded.pretrained_cfg.get("multi_label")),
        columns=Columns(path_column, tuple(label_column or ()), split_column, label_separator),
        run=trained(model),
    )
    if confusion is not None and chosen.part.classes is not None:
        raise typer.BadParameter("--confusion takes one class a photo, and this model answers each class by itself")
    options: dict[str, Any] = {"batch_size": batch_size, "optimize": optimize or backend is not None, "exact": exact}
    options["backend"] = backend or "auto"
    place = pick_device(device) if artefact is None else "cpu"
    result = _measure(loaded, chosen.part, options, workers, place)
    if first_process():
        if chosen.note:
            complain(chosen.note)
        labels = known or tuple(f"class {i}" for i in range(loaded.num_classes))
        for _, why in result.skipped:
            complain(why)
        _print(labels, chosen, result, per_class=per_class, as_json=as_json)
        if confusion is not None:
            _write_confusion(confusion, labels, result)
    if result.skipped:
        raise typer.Exit(1)


def _measure(
    model: "Classifier",
    part: "Part",
    options: dict[str, Any],
    workers: int | None,
    device: str,
) -> "Evaluation | MultiEvaluation":
    from rich.progress import Progress

    from vertebra.data.loader import default_workers
    from vertebra.engine.validate import over_processes
    from vertebra.engine.validate import validate as run
    from vertebra.runtime.machine import cores

    out = console()
    readers = default_workers(cores()) if workers is None else workers
    with (
        over_processes(device) as own,
        Progress(console=out, transient=True, disable=not (out.is_terminal and first_process())) as bar,
    ):
        task = bar.add_task("", total=len(part))

        def seen(count: int) -> None:
            bar.update(task, completed=count)

        return run(model, part, device=own, workers=readers, seen=seen, **options)


def _print(
    labels: tuple[str, ...],
    split: "Split",
    result: "Evaluation | MultiEvaluation",
    *,
    per_class: bool,
    as_json: bool,
) -> None:
    from vertebra.engine.outdir import as_record

    record: dict[str, Any] = {"split": split.name, "held_out": split.held_out, **as_record(result, labels)}
    if as_json:
        print_json(record)
        return
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row("split", _named(split))
    for name, value in result.metrics.summary().items():
        if name != "loss":
            table.add_row(_TITLES.get(name, name), f"{value:.2%}")
    table.add_row("loss", f"{result.metrics.loss:.4f}")
    table.add_row("images", f"{record['images']:,}" + (f", {record['skipped']} skipped" if record["skipped"] else ""))
    out = console()
    put(out, table)
    columns = [name for name in ("ap", "recall", "precision", "f1") if name in record["classes"][0]]
    if per_class or columns[0] == "ap":
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_row("class", *(_TITLES.get(name, name) for name in columns), "images")
        for row in sorted((r for r in record["classes"] if r["images"]), key=lambda r: (r[columns[0]], r["name"])):
            shares = ("-" if row[k] is None else f"{row[k]:.1%}" for k in columns)
            rows.add_row(shown(row["name"]), *shares, str(row["images"]))
        put(out, rows)


def _named(split: "Split") -> str:
    """Which images these are, and how many."""
    count = f"{len(split.part):,} images"
    if split.held_out:
        return f"{split.name} ({count}, held out by the run)"
    whole = "; DATA has no val and no test: what the model learned from counts, too" if split.name == "all" else ""
    return f"{split.name} ({count}{whole})"


def _write_confusion(path: Path, labels: tuple[str, ...], result: "Evaluation | MultiEvaluation") -> None:
    from vertebra.engine.evaluate import Evaluation

    assert isinstance(result, Evaluation), "refused above"
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["true", *labels])
            table.writerows([name, *row] for name, row in zip(labels, result.metrics.confusion, strict=True))
    except OSError as error:
        raise VertebraError(f"--confusion {path}: cannot be written: {error.strerror}") from error
