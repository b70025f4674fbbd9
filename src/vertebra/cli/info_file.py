"""What is known of a model that lies on this disk: a run's folder, a weights file, an exported file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

LABELS = 5
"""Names of classes that are shown."""


def of_path(path: Path) -> dict[str, Any]:
    """The record of a folder or a weights file, as `vertebra info` has it of a name; nothing of the weights is read."""
    from vertebra.engine.measure import measure
    from vertebra.hub.factory import without_weights
    from vertebra.hub.fetch import folder_weights
    from vertebra.hub.pretrained import own_record
    from vertebra.hub.registry import REGISTRY
    from vertebra.hub.resolve import find

    model = without_weights(find(path))
    cfg = model.pretrained_cfg
    cost = measure(model, (model.in_chans, *cfg["input_size"][-2:]))
    defaults = {i % len(model.feature_info) for i in model.config.default_out_indices}
    weights = folder_weights(path) if path.is_dir() else path
    record = own_record(weights) if weights.suffix == ".safetensors" else {}
    return {
        "name": str(path),
        "architecture": cfg["architecture"],
        "family": REGISTRY.family(cfg["architecture"]).name,
        "params": cost.params,
        "macs": cost.macs,
        "products": cost.products,
        "activations": cost.activations,
        "input_size": cost.input_size,
        "num_features": model.num_features,
        "stages": [{**stage, "default": i in defaults} for i, stage in enumerate(model.feature_info)],
        "checkpoints": {},
        "file": {
            "file": str(weights),
            "bytes": weights.stat().st_size,
            "num_classes": model.num_classes,
            "labels": cfg.get("label_names"),
            "multi_label": bool(cfg.get("multi_label")),
            "preprocess": {
                key: cfg[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
            },
            "license": cfg.get("license"),
            "converted_from": record.get("converted_from"),
            **_trained(record.get("training")),
        },
    }


def _trained(told: Any) -> dict[str, Any]:
    """What a run says of how its model came about, in short."""
    if not isinstance(told, Mapping):
        return {}
    config, data, epoch = (told.get(key) for key in ("config", "data", "epoch"))
    out: dict[str, Any] = {}
    if isinstance(epoch, Mapping):
        out["metrics"] = {k: v for k, v in epoch.items() if k.startswith("val_") and isinstance(v, (int, float))}
    if isinstance(config, Mapping) and isinstance(config.get("data"), Mapping):
        out["trained_on"] = config["data"].get("source")
        out["recipe"] = config.get("recipe")
    if isinstance(data, Mapping):
        out["images"] = {name: part.get("images") for name, part in data.items() if isinstance(part, Mapping)}
    return out


def of_exported(path: Path) -> dict[str, Any]:
    """The record of an exported file."""
    from vertebra.export.artefact import read_record

    record = read_record(path)
    files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
    return {
        "name": str(path),
        "architecture": record.model["architecture"],
        "format": record.format,
        "dtype": record.dtype,
        "batch": record.batch,
        "size_multiple": record.size_multiple,
        "with_preprocess": record.with_preprocess,
        "weights_sha256": record.weights_sha256,
        "versions": record.versions,
        "file": {
            "file": str(path),
            "bytes": sum(file.stat().st_size for file in files if file.is_file()),
            "num_classes": record.model["num_classes"],
            "labels": record.labels,
            "multi_label": bool(record.model.get("multi_label")),
            "preprocess": record.preprocess,
            "license": record.license,
        },
    }


def exported_pairs(record: dict[str, Any]) -> dict[str, str]:
    """What is particular to an exported file, to be printed."""
    step = record["size_multiple"]
    return {
        "architecture": record["architecture"],
        "format": f"{record['format']}, {record['dtype']}",
        "batch": "any" if record["batch"] is None else str(record["batch"]),
        "size": "its input's alone" if step is None else f"any multiple of {step} from {2 * step} on",
        "takes": "uint8 photos of any size, answers probabilities" if record["with_preprocess"] else "",
        "weights sha256": record["weights_sha256"],
        "written by": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }


def file_pairs(row: dict[str, Any]) -> dict[str, str]:
    """What any such file says of itself, to be printed."""
    prep, names = row["preprocess"], row["labels"] or ()
    more = f", ... {len(names) - LABELS:,} more" if len(names) > LABELS else ""
    metrics = row.get("metrics") or {}
    counts = ", ".join(f"{count} {name}" for name, count in (row.get("images") or {}).items())
    source = row.get("converted_from")
    return {
        "file": f"{row['file']}, {row['bytes'] / 1e6:.1f} MB",
        "classes": f"{row['num_classes']}" + (f": {', '.join(names[:LABELS])}{more}" if names else ", without names"),
        "answers": "each class by itself" if row["multi_label"] else "",
        "input": " x ".join(str(n) for n in prep["input_size"]),
        "resize and crop": f"{prep['interpolation']}, {prep['crop_mode']} crop of {prep['crop_pct']:g}",
        "mean": ", ".join(f"{v:g}" for v in prep["mean"]),
        "std": ", ".join(f"{v:g}" for v in prep["std"]),
        "licence": row["license"] or "none stated",
        "trained on": f"{row['trained_on']} ({counts} images)" if row.get("trained_on") else "",
        "recipe": row.get("recipe") or "",
        "measured there": ", ".join(_figure(name.removeprefix("val_"), value) for name, value in metrics.items()),
        "converted from": f"{source.get('file')}, sha256 {str(source.get('sha256'))[:16]}"
        if isinstance(source, Mapping)
        else "",
    }


def _figure(name: str, value: float) -> str:
    shares = {"top1": "top-1", "top5": "top-5", "map": "mAP", "macro_f1": "macro F1"}
    return f"{shares[name]} {value:.2%}" if name in shares else f"{name} {value:.4g}"
