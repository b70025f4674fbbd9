"""`vertebra train`: a model from photos in class folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vertebra.cli.classify import OWN_MODEL
from vertebra.cli.group import INTERRUPTED
from vertebra.cli.options import LabelColumn, LabelSeparator, PathColumn, SplitColumn, columns_as_settings
from vertebra.cli.text import complain, console, first_process, quoted, shown
from vertebra.spec import EXPORTED_SUFFIXES, VertebraError, WeightsUnavailableError

if TYPE_CHECKING:
    from vertebra.engine.config import RunConfig
    from vertebra.hub.resolve import Resolved


def train(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="Class folders, .zip, .tar, .csv, .tsv, .parquet or hf:NAME."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|RUN",
            help="The architecture; or a run's folder or weights file to train on from, as it is.",
            show_default="the recipe's",
        ),
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
    epochs: Annotated[int | None, typer.Option(help="--set epochs=N")] = None,
    lr: Annotated[float | None, typer.Option(help="--set optim.lr=RATE")] = None,
    batch_size: Annotated[int | None, typer.Option(help="--set data.batch_size=N: images a step.")] = None,
    img_size: Annotated[int | None, typer.Option(help="--set data.image_size=N: pixels a side.")] = None,
    workers: Annotated[int | None, typer.Option(help="--set data.workers=N: processes that read.")] = None,
    seed: Annotated[int | None, typer.Option(help="--set seed=N")] = None,
    device: Annotated[str | None, typer.Option(help="--set device=auto|cpu|cuda|mps")] = None,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show data, model, a first batch as a picture, time and memory; stop.")
    ] = False,
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
    from vertebra.engine.settings import with_settings
    from vertebra.engine.train import InterruptedRunError
    from vertebra.engine.train import train as run

    goes_on = None if resume in (None, "auto") else Path(str(resume))
    if config is not None and recipe is not None:
        raise typer.BadParameter(f"--config {config} takes the place of a recipe; give it, or --recipe {recipe}")
    chosen = _recipe(recipe) if goes_on is None else _saved(goes_on, recipe, out)
    if any(setting.partition("=")[0].strip() == "recipe" for setting in settings or []):
        raise typer.BadParameter("--set recipe=NAME would change no more than the name; give --recipe NAME")
    table = columns_as_settings(Columns(path_column, tuple(label_column or ()), split_column, label_separator))
    habits = _habits([epochs, lr, batch_size, img_size, workers, seed, device], settings or [])
    if resume is None and weights is not None and not weights.is_file():
        raise typer.BadParameter(f"no checkpoint at {weights}", param_hint="'--weights'")
    chosen = _chosen(chosen, data, model, pretrained, weights, config, goes_on=goes_on is not None)
    chosen = with_settings(chosen, [*table, *habits, *(settings or [])])
    check(chosen)
    folder = goes_on or out or Path("runs") / f"{chosen.model.name}-{chosen.recipe}"
    tell = console() if first_process() else None
    if dry_run:
        if resume is not None:
            raise typer.BadParameter("--dry-run is of a run that begins; leave --resume out")
        from vertebra.engine.rehearsal import rehearse

        rehearse(chosen, folder, tell)
        return
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
    *,
    goes_on: bool,
) -> "RunConfig":
    """The recipe (or a run's own settings), a file's settings over it, and the options over both."""
    from vertebra.engine.settings import with_file

    if weights is not None and pretrained is False:
        raise typer.BadParameter(f"--from-scratch, and --weights {weights} to start from; give one of both")
    if model is not None and _is_path(model) and (weights is not None or pretrained is False):
        raise typer.BadParameter(f"{model} has its own weights; leave --weights and --from-scratch out")
    found = _trains_on_from(model, weights, chosen)
    if found is not None and not goes_on:  # the model's own sizes and options count, where only the recipe has others
        own: dict[str, Any] = dict.fromkeys(("image_size", "start_size", "eval_size", "crop_pct", "crop_mode"))
        data_config, model_config = replace(chosen.data, **own), replace(chosen.model, options={})
        chosen = replace(chosen, data=data_config, model=model_config)
    if config is not None:
        chosen = with_file(chosen, config)
    if data is not None:
        chosen = replace(chosen, data=replace(chosen.data, source=data))
    start: dict[str, Any] = {} if model is None else {"name": model}
    if pretrained is False:
        start["weights"] = None
    if weights is not None:
        start |= {"weights": str(weights), "pretrained": False}
    if found is not None:
        start |= _as_made(found, chosen)
        start["name"] = model if model is not None and not _is_path(model) else found.arch
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
        raise typer.BadParameter(
            f"{folder} holds no run to go on with (no {CONFIG}); give DATA and --out to start one",
            param_hint="'--resume'",
        )
    if out is not None and out.resolve() != folder.resolve():
        raise typer.BadParameter(
            f"--resume {folder} goes on in that folder; leave --out {out} out, or start anew with it"
        )
    config = with_file(RunConfig(), folder / CONFIG)
    return config if recipe is None else replace(config, recipe=recipe)


def _is_path(model: str) -> bool:
    """Whether --model means a folder or file, not a name. Raises for one from which no training can start."""
    from vertebra.engine.outdir import RECORD
    from vertebra.hub.resolve import is_name

    path = Path(model).expanduser()
    if is_name(model) or not path.exists():
        return False
    wrong = ""
    if path.suffix.lower() in EXPORTED_SUFFIXES:
        wrong = f"{model} is an exported file, which does not learn; give the run's folder that it was made from"
    elif path.is_dir() and not (path / RECORD).is_file():
        wrong = f"{model} holds no {RECORD}, so it is no model; give a run's folder, a weights file or a name"
    if wrong:
        raise typer.BadParameter(wrong, param_hint="'--model'")
    return True


def _trains_on_from(model: str | None, weights: Path | None, chosen: "RunConfig") -> "Resolved | None":
    """What the model to start from says of itself: a run's folder, or a file. None of a file that says nothing, or is
    of another architecture than the one that is named.
    """
    from vertebra.hub.pretrained import own_record
    from vertebra.hub.registry import REGISTRY
    from vertebra.hub.resolve import find

    if model is not None and _is_path(model):
        return find(model)
    if weights is None or not weights.is_file():
        return None
    named = model or chosen.model.name
    if not named:
        return find(weights)
    if weights.suffix != ".safetensors" or not own_record(weights):
        return None
    found = find(weights)
    return found if found.arch == REGISTRY.split(named)[0] else None


def _as_made(found: "Resolved", chosen: "RunConfig") -> dict[str, Any]:
    """Settings of a model that starts from another, as that is made."""
    # How it was trained is the recipe's affair, and what it answers the data's.
    apart = ("drop_rate", "drop_path_rate", "num_classes")
    own = {key: list(value) if isinstance(value, tuple) else value for key, value in found.options.items()}
    options = {**{key: value for key, value in own.items() if key not in apart}, **chosen.model.options}
    return {"weights": str(found.cfg.file), "pretrained": False, "options": options}


_HABITS = {
    "--epochs": "epochs",
    "--lr": "optim.lr",
    "--batch-size": "data.batch_size",
    "--img-size": "data.image_size",
    "--workers": "data.workers",
    "--seed": "seed",
    "--device": "device",
}
"""Options that people know -> the settings that they are."""


def _habits(given: Sequence[int | float | str | None], settings: Sequence[str]) -> list[str]:
    """As settings. Raises where --set gives one of them, too."""
    named = {setting.partition("=")[0].strip() for setting in settings}
    found: list[str] = []
    for (option, key), value in zip(_HABITS.items(), given, strict=True):
        if value is not None and key in named:
            raise typer.BadParameter(f"{option} {value} is --set {key}={value}, which is given, too; give one of both")
        found += [] if value is None else [f"{key}={value}"]
    return found


def _check_installed() -> None:
    from vertebra.runtime.machine import missing

    absent = missing("accelerate", "torchmetrics", "yaml")
    if absent:
        raise VertebraError(f"training needs {', '.join(absent)}: pip install 'vertebra[train]'")
