"""`create_model`: a name, a few options -> a model with its weights."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vertebra.hub.fetch import hub_weights, in_hub_cache, url_file
from vertebra.hub.fit import Differences, LoadReport, load_state
from vertebra.hub.options import make_config
from vertebra.hub.pretrained import PretrainedCfg, from_row, overlay, record_in
from vertebra.hub.registry import REGISTRY
from vertebra.hub.resolve import FOLDER_SCHEME, Resolved, differing, find, from_config, from_file, is_name, resolve
from vertebra.hub.state import read_file, unwrap
from vertebra.models.backbone import Backbone, Indices
from vertebra.models.features import feature_maker
from vertebra.models.vit import VitConfig
from vertebra.spec import (
    EXPORTED_SUFFIXES,
    PHOTO,
    Family,
    ModelConfig,
    State,
    UnknownOptionError,
    VertebraError,
    Weights,
    WeightsError,
    WeightsUnavailableError,
)

_FEATURE_OPTIONS = ("output_fmt", "norm")
_PLACES = ("file", "state_dict", "url", "hf_hub_id")
"""Where a record says that a checkpoint lies."""
_IMPOSSIBLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def create_model(
    model_name: str,
    pretrained: bool | None = None,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    scriptable: bool | None = None,
    exportable: bool | None = None,  # noqa: ARG001 - always
    no_jit: bool | None = None,  # noqa: ARG001 - always
    *,
    pretrained_strict: bool = True,
    features_only: bool = False,
    out_indices: Indices = None,
    feature_cls: str | Callable[..., Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Any:
    """A model by name; a `Backbone`, or a `FeatureExtractor` with `features_only=True`: of the kind `feature_cls`
    (`models.features`), or what that callable makes of `(model, out_indices=...)`.

    `model_name`: `arch`, `arch.tag`, `hf-hub:owner/name[@revision]`, `owner/name` or `local-dir:PATH`.
    `pretrained` loads the checkpoint that the name means; None is False, with a warning where the name is a folder of
    weights. `checkpoint_path` loads a local file (no `pretrained` needed), with a fresh head for another `num_classes`.
    `pretrained_strict=False`: what the checkpoint lacks starts fresh, what the model lacks is left out, both named in
    `model.load_report`.
    `pretrained_cfg` replaces the checkpoint's record (a tag, or a dict), `pretrained_cfg_overlay` some fields of it:
    `file=` for local weights, `num_classes=`, `mean=` ...
    `options` are the fields of the architecture's config: `num_classes`, `in_chans`, `global_pool`, `drop_rate`,
    `drop_path_rate`, `img_size` (pixels), `output_stride` ...; None means the default. `device` None: torch's default
    one, which `with torch.device(...)` sets. Every model is `exportable` and free of compiled code (`no_jit`); none is
    `scriptable`: `torch.jit.trace` and `torch.export` take all of them.

    Raises `UnknownNameError` for a name or option that does not exist, `WeightsUnavailableError` where weights cannot
    be had, `WeightsError` where they do not fit.
    """
    if scriptable:
        raise VertebraError(
            "scriptable=True: torch.jit.script takes none of the models; use torch.jit.trace or torch.export"
        )
    own = {k: v for k, v in options.items() if v is not None}
    device = torch.get_default_device() if device is None else device
    found = _with_cfg(resolve(model_name, cache_dir=cache_dir), pretrained_cfg, pretrained_cfg_overlay, checkpoint_path)
    given = {**found.options, **own}
    feature_options = {k: given.pop(k) for k in _FEATURE_OPTIONS if k in given} if features_only else {}
    if not features_only and (out_indices is not None or feature_cls is not None):
        name = "feature_cls" if out_indices is None else "out_indices"
        raise UnknownOptionError(f"{name} needs features_only=True; forward_intermediates(indices=) chooses per call")
    if features_only:
        given["num_classes"] = 0
    elif found.cfg.num_classes is not None:
        given.setdefault("num_classes", found.cfg.num_classes)
    config = make_config(found.arch, REGISTRY.variant(found.arch), given)
    state, origin = None, ""
    if checkpoint_path is not None and str(checkpoint_path):
        origin = str(checkpoint_path)
        state, found = _read(origin, found)
        classes = config.num_classes or found.cfg.num_classes
        if options.get("num_classes"):
            classes = _count_classes(state, found.arch) or 0
        found = replace(found, cfg=replace(found.cfg, num_classes=classes))
    elif pretrained:
        state, origin, found = pretrained_state(found, cache_dir)
    elif pretrained is None and model_name.startswith(FOLDER_SCHEME):
        warnings.warn(
            f"{model_name!r} starts with random weights; pretrained=True loads the folder's (False: no warning)",
            stacklevel=2,
        )
    differs = Differences(image=found.image, patches="patch_size" in own, strict=pretrained_strict)
    model = build(found.arch, config, found.cfg, state, origin=origin, device=device, dtype=dtype, differs=differs)
    if not features_only:
        return model
    chosen = config.default_out_indices if out_indices is None else out_indices
    return feature_maker(feature_cls, model)(model, out_indices=chosen, **feature_options)


def _with_cfg(
    found: Resolved,
    given: str | Mapping[str, Any] | PretrainedCfg | None,
    changes: Mapping[str, Any] | None,
    file: str | Path | None,
) -> Resolved:
    """`found` with its record replaced, or some of it; what is known of one checkpoint is not said of another."""
    cfg, changes = found.cfg, changes or {}
    given = given or None  # an empty one is none
    if isinstance(given, str):
        name = f"{found.arch}.{given}"
        REGISTRY.split(name)
        cfg = from_row(name, REGISTRY.weights(found.arch)[name], REGISTRY.variant(found.arch).config)
    elif isinstance(given, PretrainedCfg):
        cfg = given
    elif given is not None:
        if is_dataclass(given) and not isinstance(given, type):  # others' record of the same fields
            given = {field.name: getattr(given, field.name) for field in fields(given)}
        if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # of callers without types
            raise VertebraError(f"pretrained_cfg is a {type(given).__name__}; give a tag, as 'in1k', or a dict")
        cfg = overlay(PretrainedCfg(architecture=found.arch), given, where="pretrained_cfg")
    cfg = overlay(cfg, changes, where="pretrained_cfg_overlay")
    said = given is not None and (not isinstance(given, Mapping) or "input_size" in given)
    if said or "input_size" in changes:
        return replace(found, cfg=cfg, image=cfg.input_size[-2:])
    another = file or given is not None or not changes.keys().isdisjoint(_PLACES)
    return replace(found, cfg=cfg, image=None if another else found.image)


def pretrained_state(found: Resolved, cache_dir: Path | str | None) -> tuple[State, str, Resolved]:
    """The checkpoint that a record names -> (state dict, where it came from, what is known of it)."""
    cfg = found.cfg
    if cfg.state_dict is not None:
        given = unwrap(cfg.state_dict, "pretrained_cfg['state_dict']")
        # The model takes tensors as they are, and these stay the caller's.
        return {key: tensor.clone() for key, tensor in given.items()}, "pretrained_cfg['state_dict']", found
    if cfg.file:
        state, found = _read(cfg.file, found)
        return state, cfg.file, found
    path = _download(cfg, found.revision, cache_dir)
    if path is not None:
        state, found = _read(path, found, mapped=in_hub_cache(path))
        return state, f"{cfg.hf_hub_id or cfg.url} ({path.name})", found
    raise WeightsError(
        f"no pretrained weights are published for {found.arch!r}; create it without pretrained=True, or name a file"
        " with checkpoint_path="
    )


def _read(path: str | Path, found: Resolved, *, mapped: bool = False) -> tuple[State, Resolved]:
    """A checkpoint, and `found` with the size of images that the file's own record tells, where it has one."""
    state, metadata = read_file(path, mapped=mapped)
    record = record_in(metadata, Path(path))
    return state, replace(found, image=from_config(record, where=str(path)).image or found.image) if record else found


def _download(cfg: PretrainedCfg, revision: str | None, cache_dir: Path | str | None) -> Path | None:
    """The hub's copy, or the authors' original where the hub cannot be reached or lacks it."""
    refused: WeightsUnavailableError | None = None
    if cfg.hf_hub_id and cfg.source != "url":
        try:
            return hub_weights(cfg.hf_hub_id, cfg.hf_hub_filename, revision=revision, cache_dir=cache_dir)
        except WeightsUnavailableError as error:
            refused = error
    if cfg.url:
        try:
            return url_file(cfg.url, Weights(url=cfg.url).hash_prefix, cache_dir=cache_dir)
        except WeightsUnavailableError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return None


class _Uninitialised(TorchFunctionMode):
    """Layers do not draw or fill their first values: on `meta` they have none, yet it is a quarter of building."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.zero_, torch.Tensor.fill_) and args[0].is_meta:
            return args[0]
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def build(
    arch: str,
    config: ModelConfig,
    cfg: PretrainedCfg,
    state: State | None,
    *,
    origin: str = "",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    differs: Differences | None = None,
) -> Backbone:
    """A model on `meta`, filled from `state` where there is one; only what is then still empty is initialised."""
    family = REGISTRY.family(arch)
    with torch.device("meta"), _Uninitialised():
        model = _built(arch, family, config)
    report = LoadReport()
    if state is not None:
        new_head = config.num_classes > 0 and cfg.num_classes != config.num_classes
        report = load_state(model, state, family, new_head=new_head, origin=origin, differs=differs)
    if device is None or torch.device(device).type != "meta":
        model.materialize(device)
        model.to(device=device, dtype=dtype)
    elif state is None:
        model.to(dtype=dtype)
    record = replace(cfg, state_dict=None).to_dict()
    if isinstance(config, VitConfig):
        record["input_size"] = (cfg.input_size[0], *config.image)
    model.pretrained_cfg = model.default_cfg = record
    model.load_report = report
    return model


def _built(arch: str, family: Family, config: ModelConfig) -> Backbone:
    try:
        return family.build(config)
    except VertebraError:
        raise
    except _IMPOSSIBLE as error:  # numbers that no layer can have, or that do not go together
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{arch} cannot be built with these options or model_args: {reason}") from error


def load_model(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Any:
    """What a command's `--model` means: a name (pretrained), a folder with config.json (as a run leaves one), a weights
    file, or an exported file (an `export.Artefact`, which runs it).

    A weights file names its architecture in its own record, or is called after it. `weights` is a local checkpoint for
    a name: its own record, where it has one of that architecture, decides preprocessing and classes, and what differs
    from the name's is told in `load_report.taken`. `options` are those of `create_model`.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() in EXPORTED_SUFFIXES and not is_name(source):
        return _exported(path, weights, options)
    if weights is not None:
        folder = path.is_dir() and not is_name(source)
        found = resolve(f"{FOLDER_SCHEME}{path}" if folder else str(source), cache_dir=cache_dir)
        return _from_file(found, Path(weights).expanduser(), options)
    if path.is_file() and not PHOTO.search(path.name):
        return _from_file(None, path, options)
    found = find(source, cache_dir=cache_dir)
    if found.cfg.source == "local-dir":
        return create_model(f"{FOLDER_SCHEME}{path}", pretrained=True, **options)
    return create_model(str(source), pretrained=True, cache_dir=cache_dir, **options)


def _exported(path: Path, weights: str | Path | None, options: Mapping[str, Any]) -> Any:
    if weights is not None or options:
        given = ", ".join(["weights"] * (weights is not None) + list(options))
        raise VertebraError(f"{path} has its weights and its options inside; leave {given} out")
    # By name: the reader of such files lies in a room below this one, and loads only for them.
    return import_module("vertebra.export.artefact").load(path)


def _from_file(found: Resolved | None, path: Path, given: Mapping[str, Any]) -> Backbone:
    state, metadata = read_file(path)
    record = record_in(metadata, path)
    taken = ""
    if found is None:
        found = from_file(path, record)
    elif record:
        own = from_config(record, where=str(path))
        # Of another architecture, the name says what it is, and yet not what a file of ours calls its own classes.
        taken = differing(found, own, path)
        names = own.cfg.label_names or found.cfg.label_names
        found = own if own.arch == found.arch else replace(found, cfg=replace(found.cfg, label_names=names))
    strict = given.get("pretrained_strict", True)
    given = {option: value for option, value in given.items() if option != "pretrained_strict"}
    classes = _count_classes(state, found.arch)
    cfg = found.cfg if classes is None else replace(found.cfg, num_classes=classes)
    options = {**found.options, "num_classes": classes or 0, **given}
    config = make_config(found.arch, REGISTRY.variant(found.arch), options)
    image = from_config(record, where=str(path)).image if record else None
    differs = Differences(image=image, patches=given.get("patch_size") is not None, strict=strict)
    model = build(found.arch, config, replace(cfg, file=str(path)), state, origin=str(path), differs=differs)
    model.load_report.taken = taken
    return model


def without_weights(found: Resolved) -> Backbone:
    """The model that was found, on `meta`: what there is to know of it without reading its weights."""
    options = {**found.options, "num_classes": found.cfg.num_classes or 0}
    config = make_config(found.arch, REGISTRY.variant(found.arch), options)
    return build(found.arch, config, found.cfg, None, device="meta")


def _count_classes(state: State, arch: str) -> int | None:
    variant = REGISTRY.variant(arch)
    adapted = REGISTRY.family(arch).adapt(state, variant.config)
    weight = adapted.get(f"{variant.config.classifiers[0]}.weight")
    return None if weight is None else int(weight.shape[0])


def from_record(record: Mapping[str, Any]) -> Backbone:
    """The model that `describe` told of, with fresh weights."""
    found = from_config(record, where="the record")
    options = {**found.options, "num_classes": record["num_classes"]}
    model = build(found.arch, make_config(found.arch, REGISTRY.variant(found.arch), options), found.cfg, None)
    model.pretrained_cfg = model.default_cfg = {**record["pretrained_cfg"]}
    if record.get("multi_label"):
        model.pretrained_cfg["multi_label"] = True
    return model


def describe(model: nn.Module) -> dict[str, Any]:
    """A model's record as config.json holds it."""
    if not isinstance(model, Backbone):
        raise VertebraError(f"{type(model).__name__} is no vertebra model")
    apart = ("state_dict", "file", "source", "multi_label")
    cfg: dict[str, Any] = {k: v for k, v in model.pretrained_cfg.items() if k not in apart}
    arch: str = cfg["architecture"]
    default = REGISTRY.variant(arch).config
    own = {f.name: getattr(model.config, f.name) for f in fields(default)}
    own |= {"num_classes": model.num_classes}
    changed = {k: v for k, v in own.items() if v != getattr(default, k) and k != "num_classes"}
    for option, value in changed.items():
        if callable(value):
            raise VertebraError(
                f"{option}={value!r} has no name that a file can hold; create the model with a layer's name to save it"
            )
    return {
        "architecture": arch,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": {**cfg, "num_classes": model.num_classes},
        "model_args": changed,
        **({"multi_label": True} if model.pretrained_cfg.get("multi_label") else {}),
    }
