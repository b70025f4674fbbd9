"""`vertebra info`: all that is known of one model."""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vertebra.cli.info_file import exported_pairs, file_pairs, of_exported, of_path
from vertebra.cli.text import console, print_json, put, put_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def info(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE|DIR",
            help="An architecture (dla102), a checkpoint (dla102.in1k), a file, a run's folder.",
        ),
    ] = None,
    runtime: Annotated[
        bool, typer.Option("--runtime", help="This machine instead: what can run models here, and what would help.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Show a model: what it costs (measured now), its stages, and its checkpoints with preprocessing and licence.

    Of a run's folder, a weights file or an exported file: what it says of itself. Or, with --runtime, which backends
    this machine has.

    For example:

    `vertebra info dla102`

    `vertebra info deit_base_distilled_patch16_224.fb_in1k --json`

    `vertebra info runs/mine`

    `vertebra info dla34.onnx`

    `vertebra info --runtime`
    """
    if (name is None) is not runtime:
        raise typer.BadParameter("give a model's NAME or --runtime, one of the two", param_hint="'NAME|FILE|DIR'")
    if name is None:
        _show_runtime(as_json)
        return
    record = _recorded(name)
    if as_json:
        print_json(record)
    elif "format" in record:
        put_name(console(), record["name"])
        put(console(), _pairs(exported_pairs(record) | file_pairs(record["file"])))
    else:
        _print(console(), record)


def _show_runtime(as_json: bool) -> None:
    from vertebra.runtime.choose import describe

    found = describe()
    if as_json:
        print_json(found)
        return
    out = console()
    put_name(out, "this machine")
    pairs = {key: ", ".join(value) if isinstance(value, list) else str(value) for key, value in found.items()}
    put(out, _pairs({key: text for key, text in pairs.items() if key != "backends"}))
    out.print()
    put_name(out, "backends")
    put(out, _pairs({name: ", ".join(f"{k}: {v}" for k, v in row.items()) for name, row in found["backends"].items()}))


def _recorded(name: str) -> dict[str, Any]:
    from vertebra.hub.resolve import is_name
    from vertebra.spec import EXPORTED_SUFFIXES, WEIGHT_SUFFIXES

    path = Path(name).expanduser()
    if is_name(name):
        return _record(name)
    if path.suffix.lower() in EXPORTED_SUFFIXES:
        return of_exported(path)
    return of_path(path) if path.exists() or path.suffix in WEIGHT_SUFFIXES or len(path.parts) > 1 else _record(name)


def _record(name: str) -> dict[str, Any]:
    from vertebra.engine.measure import build_on_meta, measure
    from vertebra.hub.registry import REGISTRY

    arch, tag = REGISTRY.split(name)
    name = f"{arch}.{tag}" if tag else arch
    model, rows = build_on_meta(arch), REGISTRY.weights(arch)
    meant = REGISTRY.default_weights(name)
    cost = measure(arch, meant[1].preprocess.input_size if meant else None)
    defaults = {i % len(model.feature_info) for i in model.config.default_out_indices}
    return {
        "name": name,
        "architecture": arch,
        "family": REGISTRY.family(arch).name,
        **asdict(cost),
        "num_features": model.num_features,
        "stages": [{**stage, "default": i in defaults} for i, stage in enumerate(model.feature_info)],
        "checkpoints": {row: asdict(rows[row]) for row in ([name] if tag else rows)},
    }


def _print(out: "Console", record: dict[str, Any]) -> None:
    size = " x ".join(str(n) for n in record["input_size"])
    put_name(out, record["name"])
    put(
        out,
        _pairs(
            {
                "family": record["family"],
                "parameters": f"{record['params']:,}",
                "MACs": f"{record['macs']:,}  ({record['macs'] / 1e9:.2f} G at {size})",
                "of these products": f"{record['products']:,}",
                "activations": f"{record['activations']:,}  ({record['activations'] / 1e6:.2f} M)",
                "embedding": f"{record['num_features']} channels",
            }
        ),
    )
    out.print()
    put(out, _stage_table(record["stages"]))
    if "file" in record:
        out.print()
        put(out, _pairs(file_pairs(record["file"])))
    for name, row in record["checkpoints"].items():
        out.print()
        put_name(out, name)
        put(out, _pairs(_checkpoint(row)))


def _pairs(pairs: dict[str, str]) -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", width=17)
    table.add_column(overflow="fold")
    for key, value in pairs.items():
        if value:
            table.add_row(key, value)
    return table


def _stage_table(stages: list[dict[str, Any]]) -> "Table":
    """Like stages in a row (a ViT's blocks) share a line. By default: what `features_only=True` returns."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", justify="right")
    table.add_column("module", overflow="fold")
    table.add_column("channels", justify="right")
    table.add_column("reduction", justify="right")
    table.add_column("features_only")
    numbered = list(enumerate(stages))
    for (channels, reduction, default), group in groupby(
        numbered, key=lambda pair: (pair[1]["num_chs"], pair[1]["reduction"], pair[1]["default"])
    ):
        run = list(group)
        (first, start), (last, end) = run[0], run[-1]
        many = first != last
        table.add_row(
            f"{first}-{last}" if many else str(first),
            f"{start['module']} to {end['module']}" if many else start["module"],
            str(channels),
            str(reduction),
            "by default" if default else "",
        )
    return table


def _checkpoint(row: dict[str, Any]) -> dict[str, str]:
    prep, recipe = row["preprocess"], row["trained_with"]
    size = " x ".join(str(n) for n in prep["input_size"])
    return {
        "accuracy": ", ".join(
            f"top-1 {a['top1']:.2f} %, top-5 {a['top5']:.2f} % at {a['size']} px" for a in row["accuracy"]
        ),
        "classes": str(row["num_classes"]),
        "input": f"{size}{'; img_size= makes one for another' if prep['fixed_input_size'] else ''}",
        "resize and crop": f"{prep['interpolation']}, {prep['crop_mode']} crop of {prep['crop_pct']:g}",
        "mean": ", ".join(f"{v:g}" for v in prep["mean"]),
        "std": ", ".join(f"{v:g}" for v in prep["std"]),
        "licence": row["license"] or "none stated",
        "weights": f"huggingface.co/{row['hub']}" if row["hub"] else "",
        "original file": row["url"] or "",
        "paper": row["paper"],
        "source": row["source"],
        "recipe": _recipe(recipe) if recipe else "",
    }


def _recipe(recipe: dict[str, Any]) -> str:
    steps = f"learning rate {recipe['learning_rate']:g}, momentum {recipe['momentum']:g}"
    parts = [
        f"{recipe['optimizer']} ({steps}, weight decay {recipe['weight_decay']:g})",
        f"{recipe['epochs']} epochs",
        f"batch {recipe['batch_size']}",
    ]
    if recipe["dropout"]:
        parts.append(f"dropout {recipe['dropout']:g}")
    return ", ".join([*parts, *([recipe["summary"]] if recipe["summary"] else [])])
