"""`vertebra train`: a model from photos in class folders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vertebra.cli.classify import OWN_MODEL
from vertebra.cli.group import INTERRUPTED
from vertebra.cli.options import LabelColumn, LabelSeparator, PathColumn, SplitColumn, columns_as_settings
from vertebra.cli.text import complain, console, first_process, quoted, shown
from vertebra.spec import VertebraError, WeightsUnavailableError

if TYPE_CHECKING:
    from vertebra.engine.config import RunConfig


def train(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="Class folders, .zip, .tar, .csv, .tsv, .parquet or hf:NAME."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The architecture.", show_default="the recipe's")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How to train; `vertebra recipes` lists them.", show_default="finetune"),
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--from-scratch", help="Start from a checkpoint.", show_default="the recipe's"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start from this local checkpoint; nothing is downloaded.")
    ] = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    label_separator: LabelSeparator = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as optim.lr=1e-4.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Settings in place of the recipe's.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The run's folder.", show_default="runs/MODEL-RECIPE"),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="auto|DIR", help="Go on: auto, if --out holds a run; DIR, with that run.")
    ] = None,
) -> None:
    """Train or fine-tune a model on your own classes. What it leaves in --out is a model for classify, validate and
    export.

    Ctrl-C saves. On several GPUs or machines: `torchrun --nproc-per-node 4 -m vertebra train ...`

    For example:

    `vertebra train photos/ --model deit_tiny_patch16_224 --recipe finetune`

    `vertebra train photos.csv --model dla34 --set epochs=30 --set optim.lr=3e-4 --out runs/mine`

    `vertebra train --resume runs/mine`

    `vertebra classify new.jpg --model runs/mine`
    """
    _check_installed()
    from vertebra.data.tables import Columns
    from vertebra.engine.outdir import watched
    from vertebra.engine.rules import check
    from vertebra.engine.settings import as_dict, config_hash, with_settings
    from vertebra.engine.train import InterruptedRunError
    from vertebra.engine.train import train as run

    goes_on = None if resume in (None, "auto") else Path(str(resume))
    if config is not None and recipe is not None:
        raise typer.BadParameter(f"--config {config} takes the place of a recipe; give it, or --recipe {recipe}")
    chosen = _recipe(recipe) if goes_on is None else _saved(goes_on, recipe, out)
    if any(setting.partition("=")[0].strip() == "recipe" for setting in settings or []):
        raise typer.BadParameter("--set recipe=NAME would change no more than the name; give --recipe NAME")
    table = columns_as_settings(Columns(path_column, tuple(label_column or ()), split_column, label_separator))
    chosen = with_settings(_chosen(chosen, data, model, pretrained, weights, config), [*table, *(settings or [])])
    check(chosen)
    folder = goes_on or out or Path("runs") / f"{chosen.model.name}-{chosen.recipe}"
    tell = console() if first_process() else None
    if tell is not None:
        tell.print(f"run        {config_hash(chosen)} in {shown(folder)}", soft_wrap=True)
        tell.print(f"settings   {_brief(as_dict(chosen))}", soft_wrap=True)
    try:
        done = run(chosen, folder, resume=resume is not None, console=tell)
    except WeightsUnavailableError as error:
        teacher = ", a teacher's with --set distill.weights=FILE" if chosen.distill.teacher else ""
        raise VertebraError(
            f"{error.reason}; give a local file with --weights FILE{teacher}, start "
            f"--from-scratch, or from what the package brings: --model {OWN_MODEL}"
        ) from error
    except InterruptedRunError as error:
        if tell is not None:
            complain(f"{error}; go on with `vertebra train --resume {quoted(folder)}`")
        raise typer.Exit(INTERRUPTED) from error
    if tell is not None:
        name, value = watched(done.metrics[done.best_epoch - 1])
        early = ", stopped early" if done.stopped_early else ""
        tell.print(f"best       epoch {done.best_epoch} of {len(done.metrics)}{early}: {name} {value:.2%}")
        skipped = len(done.skipped) + len(done.val_skipped)
        if skipped:
            tell.print(f"skipped    {skipped} images that cannot be read; they are named above")
        if (folder / "report.html").is_file():
            tell.print(f"report     {shown(folder / 'report.html')}", soft_wrap=True)
        tell.print(f"next       vertebra classify PHOTO --model {quoted(folder)}", soft_wrap=True)


def _recipe(name: str | None) -> "RunConfig":
    from vertebra.engine.recipes import recipe as make

    return make(name or "finetune")


def _chosen(
    chosen: "RunConfig",
    data: str | None,
    model: str | None,
    pretrained: bool | None,
    weights: Path | None,
    config: Path | None,
) -> "RunConfig":
    """The recipe (or a run's own settings), a file's settings over it, and the options over both."""
    from vertebra.engine.outdir import MODEL, RECORD
    from vertebra.engine.settings import with_file
    from vertebra.hub.listing import is_model

    if config is not None:
        chosen = with_file(chosen, config)
    if data is not None:
        chosen = replace(chosen, data=replace(chosen.data, source=data))
    if weights is not None and pretrained is False:
        raise typer.BadParameter(f"--from-scratch, and --weights {weights} to start from; give one of both")
    if model is not None and not is_model(model) and (Path(model) / RECORD).is_file():
        name = json.loads((Path(model) / RECORD).read_bytes()).get("architecture", "NAME")
        raise typer.BadParameter(
            f"{model} is a folder; to train on from the model in it: --model {name} --weights "
            f"{quoted(Path(model) / MODEL)}",
            param_hint="'--model'",
        )
    start: dict[str, Any] = {} if model is None else {"name": model}
    if pretrained is False:
        start["weights"] = None
    if weights is not None:
        start |= {"weights": str(weights), "pretrained": False}
    if pretrained is not None:
        start["pretrained"] = pretrained
    return replace(chosen, model=replace(chosen.model, **start))


def _saved(folder: Path, recipe: str | None, out: Path | None) -> "RunConfig":
    """What the run in `folder` was started with. What is then given beside it may only repeat that: the run refuses
    what differs, by name.
    """
    from vertebra.engine.config import RunConfig
    from vertebra.engine.outdir import CONFIG
    from vertebra.engine.settings import with_file

    if not (folder / CONFIG).is_file():
        raise VertebraError(f"{folder} holds no run to go on with (no {CONFIG}); give DATA and --out to start one")
    if out is not None and out.resolve() != folder.resolve():
        raise typer.BadParameter(
            f"--resume {folder} goes on in that folder; leave --out {out} out, or start anew with it"
        )
    config = with_file(RunConfig(), folder / CONFIG)
    return config if recipe is None else replace(config, recipe=recipe)


def _brief(values: dict[str, Any]) -> str:
    """What differs from the defaults, as `--set` takes it."""
    from vertebra.engine.config import RunConfig

    def walk(own: dict[str, Any], default: dict[str, Any], where: str) -> list[str]:
        out: list[str] = []
        for key, value in own.items():
            if isinstance(value, dict) and key != "options":
                out += walk(value, default[key], f"{where}{key}.")
            elif value != default[key]:
                out.append(f"{where}{key}={value}")
        return out

    from vertebra.engine.settings import as_dict

    return " ".join(walk(values, as_dict(RunConfig()), ""))


def _check_installed() -> None:
    from vertebra.runtime.machine import missing

    absent = missing("accelerate", "torchmetrics", "yaml")
    if absent:
        raise VertebraError(f"training needs {', '.join(absent)}: pip install 'vertebra[train]'")
