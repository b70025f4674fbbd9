"""What models and checkpoints there are, by pattern."""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial, update_wrapper
from typing import Any

from vertebra.hub.factory import create_model
from vertebra.hub.pretrained import PretrainedCfg, from_row
from vertebra.hub.registry import REGISTRY
from vertebra.spec import UnknownNameError

Patterns = str | Iterable[str] | None

MODULE_ALIASES = {"vision_transformer": "vit"}
"""Names that code in this field knows families by -> ours."""


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def _patterns(given: Patterns) -> list[str]:
    return [p for p in ([given] if isinstance(given, str) else list(given or ())) if p]


def _matches(name: str, patterns: list[str]) -> bool:
    arch = name.partition(".")[0]
    return any(fnmatchcase(name, p) or fnmatchcase(arch, p) for p in patterns)


def _families(modules: Patterns) -> set[str]:
    return {MODULE_ALIASES.get(name, name) for name in _patterns(modules)}


def list_models(
    filter: Patterns = "",  # noqa: A002 - the field's name for it
    module: Patterns = "",
    pretrained: bool = False,
    exclude_filters: Patterns = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """Architectures whose name matches any of the `filter` wildcards and none of `exclude_filters`, in natural order.

    `module` names families (one that does not exist has no models); `pretrained` keeps those with a checkpoint; with
    `include_tags` (default: as `pretrained`) each checkpoint stands by its own `arch.tag` name.
    """
    tags = pretrained if include_tags is None else include_tags
    families, wanted, excluded = _families(module), _patterns(filter), _patterns(exclude_filters)
    names = list[str]()
    for arch in REGISTRY.archs:
        if families and REGISTRY.family(arch).name not in families:
            continue
        rows = {n: row for n, row in REGISTRY.weights(arch).items() if row.available or not pretrained}
        if rows or not (pretrained or name_matches_cfg):
            names += (list(rows) or [arch]) if tags else [arch]
    names = [n for n in names if (not wanted or _matches(n, wanted)) and not _matches(n, excluded)]
    return sorted(names, key=_natural)


def list_pretrained(filter: Patterns = "", exclude_filters: Patterns = "") -> list[str]:  # noqa: A002
    """Every checkpoint's `arch.tag` name that matches."""
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters, include_tags=True)


def list_modules() -> list[str]:
    """The families' names."""
    return sorted({REGISTRY.family(arch).name for arch in REGISTRY.archs})


def is_model(model_name: str) -> bool:
    """Whether an architecture of that name (a tag behind it is ignored) exists."""
    return get_arch_name(REGISTRY.current(model_name)) in REGISTRY


def split_model_name_tag(model_name: str, no_tag: str = "") -> tuple[str, str]:
    """`arch.tag` -> (arch, tag), whether or not they exist; `no_tag` where none is named."""
    arch, dot, tag = model_name.partition(".")
    return arch, tag if dot else no_tag


def get_arch_name(model_name: str) -> str:
    """The architecture's part of `arch.tag`."""
    return split_model_name_tag(model_name)[0]


def is_model_in_modules(model_name: str, module_names: Patterns) -> bool:
    """Whether the architecture belongs to one of these families."""
    arch = get_arch_name(model_name)
    return arch in REGISTRY and REGISTRY.family(arch).name in _families(module_names)


def get_arch_pretrained_cfgs(model_name: str) -> dict[str, PretrainedCfg]:
    """`arch.tag` -> record of each checkpoint of an architecture; none for an unknown one."""
    arch = get_arch_name(model_name)
    if arch not in REGISTRY:
        return {}
    config = REGISTRY.variant(arch).config
    return {name: from_row(name, row, config) for name, row in REGISTRY.weights(arch).items()}


def get_deprecated_models(module: str = "") -> dict[str, str]:
    """What older releases of timm called a checkpoint -> its name of today; of one family, or of all."""
    return {old: new for old, new in REGISTRY.renamed.items() if not module or is_model_in_modules(new, module)}


def is_model_pretrained(model_name: str) -> bool:
    """Whether a checkpoint is published for `arch` or `arch.tag`."""
    arch, _, tag = model_name.partition(".")
    if arch not in REGISTRY or (tag and model_name not in REGISTRY.weights(arch)):
        return False
    cfg = get_pretrained_cfg(model_name)
    return cfg is not None and cfg.has_weights


def get_pretrained_cfg(model_name: str, allow_unregistered: bool = True) -> PretrainedCfg | None:
    """The record of the checkpoint that `arch` or `arch.tag` means; None for an unknown name unless disallowed."""
    if not is_model(model_name):
        if allow_unregistered:
            return None
        raise UnknownNameError(f"unknown model {model_name!r}")
    found = REGISTRY.default_weights(model_name)
    name, row = found or (model_name, None)
    return from_row(name, row, REGISTRY.variant(model_name).config)


def get_pretrained_cfg_value(model_name: str, cfg_key: str) -> Any:
    """One field of that record; None where it has no such field. An unknown model raises `UnknownNameError`."""
    return getattr(get_pretrained_cfg(model_name, allow_unregistered=False), cfg_key, None)


def model_entrypoint(model_name: str, module_filter: str | None = None) -> Callable[..., Any]:
    """A callable that creates the model: `model_entrypoint('dla34')(pretrained=True, num_classes=10)`.

    `module_filter` names the family that it must belong to; else `UnknownNameError` says where it does.
    """
    arch, _ = REGISTRY.split(model_name)
    if module_filter and not is_model_in_modules(arch, module_filter):
        home = REGISTRY.family(arch).name
        raise UnknownNameError(f"no model {arch!r} in module {module_filter!r}; it is one of {home!r}")
    entry = partial(create_model, model_name)
    update_wrapper(entry, create_model)
    entry.__name__ = arch  # pyright: ignore[reportAttributeAccessIssue]
    return entry
