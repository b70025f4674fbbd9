"""What a model's name means: a registered row, a hub repository, a folder. Nothing is downloaded but a config.json."""

import codecs
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

from vertebra.hub.fetch import folder_weights, hub_file
from vertebra.hub.pretrained import PretrainedCfg, from_row, overlay, own_record
from vertebra.hub.registry import REGISTRY
from vertebra.spec import (
    PHOTO,
    WEIGHT_SUFFIXES,
    MissingFileError,
    UnknownNameError,
    WeightsError,
    as_declared,
    parse_object,
)

HUB_SCHEMES = ("hf-hub:", "hf_hub:")
FOLDER_SCHEME = "local-dir:"
_DEEPEST, _WIDEST = 1024, 1 << 16
"""Blocks and channels (or pixels) beyond which no model is built from a stranger's record: it would take for ever."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """An architecture, the checkpoint meant, and the options that the checkpoint's own config names."""

    arch: str
    cfg: PretrainedCfg
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    image: tuple[int, int] | None = None
    """(height, width) in pixels of the images that the checkpoint is for, where its record says so."""


def resolve(name: str, *, cache_dir: Path | str | None = None) -> Resolved:
    """`arch`, `arch.tag`, `hf-hub:owner/name[@revision]`, `owner/name`, `local-dir:PATH`."""
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # of callers without types
        raise UnknownNameError(f"model_name is a {type(name).__name__}; give a name, as 'dla34', or 'local-dir:PATH'")
    if name.startswith(FOLDER_SCHEME):
        return from_folder(Path(name.removeprefix(FOLDER_SCHEME)).expanduser())
    scheme = next((s for s in HUB_SCHEMES if name.startswith(s)), "")
    if scheme or "/" in name:
        repo, _, revision = name.removeprefix(scheme).partition("@")
        owner, _, model = repo.partition("/")
        if owner == "timm" and not revision and model.partition(".")[0] in REGISTRY:
            return registered(model)
        path = hub_file(repo, "config.json", revision=revision or None, cache_dir=cache_dir)
        found = from_config(read_config(path), where=repo)
        # What a stranger's config.json says of files elsewhere, on this disk above all, is not followed.
        here = {"hf_hub_id": repo, "source": "hf-hub", "url": "", "file": None, "state_dict": None}
        cfg = overlay(found.cfg, here, where=repo)
        return Resolved(found.arch, cfg, revision or None, found.options, found.image)
    return registered(name)


def find(source: str | Path, *, cache_dir: Path | str | None = None) -> Resolved:
    """What a command's model means, without reading its weights: a name, a folder with config.json (as a run leaves
    one), or a weights file. A registered name is one, whatever folder lies here; write ./NAME for that.
    """
    path = Path(source).expanduser()
    if PHOTO.search(path.name) and path.is_file():
        raise WeightsError(f"{path} is an image, by its name, and no model; give a model's name, file or folder")
    if path.is_dir() and not is_name(source):
        return from_folder(path)
    if path.is_file():
        return from_file(path, own_record(path) if path.suffix == ".safetensors" else {})
    if path.suffix in WEIGHT_SUFFIXES:
        raise MissingFileError(f"no checkpoint at {path}")
    if len(path.parts) > 1 and path.parts[0] != "timm" and path.parent.is_dir():
        raise WeightsError(f"no folder {path.name} in {path.parent}; a repository of that name is hf-hub:{source}")
    return resolve(str(source), cache_dir=cache_dir)


def is_name(source: str | Path) -> bool:
    """Whether that is a registered architecture, or a tag of one."""
    arch = str(source).partition(".")[0]
    return arch in REGISTRY or arch in REGISTRY.renamed


def from_file(path: Path, record: Mapping[str, Any]) -> Resolved:
    """What a weights file is for: by its own record, else by its name."""
    if record:
        found = from_config(record, where=str(path))
    elif is_name(path.stem):
        found = registered(path.stem if path.stem in REGISTRY else path.stem.partition(".")[0])
    else:
        raise WeightsError(f"{path} does not say which architecture it is for; give --model NAME --weights {path}")
    return replace(found, cfg=replace(found.cfg, file=str(path)))


def registered(name: str) -> Resolved:
    """A row of the registry; under a name of old, with a warning that says the one of today."""
    if (current := REGISTRY.current(name)) != name:
        warnings.warn(f"model {name!r} is called {current!r} now", stacklevel=4)
        name = current
    arch, _ = REGISTRY.split(name)
    default = REGISTRY.default_weights(name)
    full, row = default if default else (name, None)
    cfg = from_row(full, row, REGISTRY.variant(arch).config)
    return Resolved(arch, cfg, image=cfg.input_size[-2:] if row else None)


def from_folder(folder: Path) -> Resolved:
    """A folder that holds `config.json` and weights."""
    if not folder.is_dir():
        raise MissingFileError(f"no folder at {folder}")
    found = from_config(read_config(folder / "config.json"), where=str(folder))
    cfg = overlay(
        found.cfg, {"file": str(folder_weights(folder)), "source": "local-dir", "state_dict": None}, where=str(folder)
    )
    return Resolved(found.arch, cfg, None, found.options, found.image)


def read_config(path: Path) -> dict[str, Any]:
    """A model's config.json."""
    if not path.is_file():
        raise MissingFileError(f"{path.parent} holds no config.json, so its architecture is unknown")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_object(content.removeprefix(codecs.BOM_UTF8), str(path), WeightsError)


class _ConfigJson(TypedDict):
    """What is read of a config.json; whatever else it holds is others' affair."""

    architecture: str | None
    num_classes: int | None
    num_features: int | None
    pretrained_cfg: dict[str, Any] | None
    model_args: dict[str, Any] | None
    global_pool: str | None
    label_names: list[str] | dict[str, str] | None
    label_descriptions: dict[str, str] | None
    multi_label: bool | None


def from_config(config: Mapping[str, Any], *, where: str) -> Resolved:
    """The field's config.json: `architecture`, `num_classes`, `pretrained_cfg`, `model_args`, `label_names`.

    Old ones are flat: the fields of `pretrained_cfg` stand beside `architecture`.
    """
    config = as_declared(config, get_type_hints(_ConfigJson), where, WeightsError)
    flat = {f.name: config[f.name] for f in fields(PretrainedCfg) if f.name in config}
    named: Mapping[str, Any] = config.get("pretrained_cfg", flat) or {}
    arch = config.get("architecture") or named.get("architecture")
    if not isinstance(arch, str):
        raise WeightsError(f"{where}: its config.json names no 'architecture'; is it a model of this kind?")
    arch, _ = REGISTRY.split(arch)
    variant = REGISTRY.variant(arch).config
    cfg = overlay(from_row(arch, None, variant), named, where=f"{where}: pretrained_cfg")
    beside = ("num_classes", "label_names", "label_descriptions", "multi_label")
    extra = {key: config[key] for key in beside if config.get(key) is not None}
    cfg = overlay(cfg, extra, where=where)
    options = dict(config.get("model_args") or {})
    if config.get("global_pool") is not None:
        options.setdefault("global_pool", config["global_pool"])
    options = as_declared(options, get_type_hints(type(variant)), f"{where}: model_args", WeightsError)
    _check_extent(options, f"{where}: model_args")
    size: int | tuple[int, int] | None = options.get("img_size")
    image = (size, size) if isinstance(size, int) else size or (cfg.input_size[-2:] if "input_size" in named else None)
    return Resolved(arch, cfg, None, options, image)


def _check_extent(options: Mapping[str, Any], where: str) -> None:
    for name, value in options.items():
        numbers = value if isinstance(value, tuple) else (value,)
        limit = _DEEPEST if "depth" in name else _WIDEST
        if any(isinstance(number, int | float) and abs(number) > limit for number in numbers):
            raise WeightsError(f"{where}: {name} is {str(value)[:40]}; it must be at most {limit}")


_TOLD = {
    "input_size": "input",
    "crop_pct": "crop",
    "crop_mode": "crop mode",
    "interpolation": "interpolation",
    "mean": "mean",
    "std": "std",
}


def differing(named: Resolved, own: Resolved, path: Path) -> str:
    """What is taken from where, where a name and a file's own record do not agree."""
    if own.arch != named.arch:
        return f"{path} is of {own.arch}, by its own record; its weights are put into {named.arch}, as asked for"
    mine, theirs = own.cfg.to_dict(remove_null=False), named.cfg.to_dict(remove_null=False)
    changed = [
        f"{word} {_short(mine[key])} (not {_short(theirs[key])})"
        for key, word in _TOLD.items()
        if mine[key] != theirs[key]
    ]
    return f"from {path}, by its own record: {', '.join(changed)}" if changed else ""


def _short(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(number, int) for number in value):
        return "x".join(map(str, value[-2:]))
    return ", ".join(f"{number:.3g}" for number in value) if isinstance(value, tuple) else f"{value}"
