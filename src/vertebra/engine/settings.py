"""`RunConfig` from outside: `--set a.b=value`, YAML overlays, and its text and hash."""

from __future__ import annotations

import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from vertebra.engine.config import OptimConfig, RunConfig
from vertebra.spec import SettingError, UnknownNameError, VertebraError, did_you_mean

Config = TypeVar("Config")
_NOT_COMPUTED = ("save_every", "trackers", "data.workers", "data.source", "sharding", "cuda_graphs")
"""Fields that leave the weights as they are: a run may go on with others. Of data, the fingerprint decides."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
"""What YAML takes for a word where the point is missing: 1e-6."""


def with_settings(config: RunConfig, settings: Iterable[str]) -> RunConfig:
    """`optim.lr=0.01` and its like, one after the other. A value is read as YAML: 1e-3, true, null, [0.9, 0.95]."""
    yaml = _yaml()
    # An optimiser's name drops the options of the one before it, not those that are given beside it.
    for setting in sorted(settings, key=lambda setting: setting.partition("=")[0].strip() != "optim.name"):
        key, equals, text = setting.partition("=")
        if not equals:
            raise SettingError(f"--set {setting!r}: write key=value, as optim.lr=0.01")
        try:
            value = text if _is_word(key.strip(), text) else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingError(f"--set {setting!r}: {text!r} cannot be read as a value: {_line(error)}") from error
        nested: Any = value
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        config = overlay(config, nested)
    return config


def _is_word(key: str, text: str) -> bool:
    """A field of text takes it as it stands: YAML would make nothing of `|`. Quotes and null are YAML's, though."""
    group, _, name = key.rpartition(".")
    own: Any = getattr(RunConfig(), group, None) if group else RunConfig()
    kind = typing.get_type_hints(type(own)).get(name) if is_dataclass(own) else None
    return kind in (str, str | None) and text not in ("", "~", "null") and text[0] not in "'\""


def with_file(config: RunConfig, path: Path) -> RunConfig:
    """A YAML file's fields in place of the config's own; those that it does not name stay."""
    yaml = _yaml()
    try:
        changes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: is not YAML: {_line(error)}") from error
    if not isinstance(changes, Mapping):
        raise SettingError(f"{path}: holds no fields; write them as in `vertebra recipes finetune`")
    return overlay(config, cast("Mapping[str, Any]", changes))


def overlay(config: Config, changes: Mapping[str, Any], where: str = "") -> Config:
    """A nested dict's values in place of the config's own. Raises for an unknown field or a value of another type."""
    if isinstance(config, OptimConfig) and changes.get("name", config.name) != config.name:
        config = replace(config, options={})  # those were the other optimiser's
    kinds = typing.get_type_hints(type(config))
    names = [f.name for f in fields(cast("Any", config))]
    out: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in names:
            raise _unknown(key, names, where)
        own = getattr(config, key)
        if is_dataclass(own) and not isinstance(value, Mapping):
            raise SettingError(f"{where}{key} is a group; set one of its fields, as {key}.{fields(own)[0].name}")
        if is_dataclass(own):
            out[key] = overlay(own, value, f"{where}{key}.")
        elif isinstance(own, dict):
            words = str in typing.get_args(typing.get_args(kinds[key])[1])
            out[key] = _joined(cast("dict[str, Any]", own), value, f"{where}{key}", words=words)
        else:
            out[key] = _as(kinds[key], value, f"{where}{key}")
    return cast("Config", replace(cast("Any", config), **out))


def _joined(own: Mapping[str, Any], given: Any, name: str, *, words: bool) -> dict[str, Any]:
    """Options, those given in place of one's own; null or {} takes all of them away, null as a value just that one.

    `words`: whether a value may be one.
    """
    if given is None or given == {}:
        return {}
    if not isinstance(given, Mapping):
        raise SettingError(f"{name}={given!r}: give names and values, as {{momentum: 0.9}}; null for none")
    options = cast("Mapping[str, Any]", given)
    joined = {**own, **{key: _option(value, f"{name}.{key}", words) for key, value in options.items()}}
    return {key: value for key, value in joined.items() if value is not None}


def _option(value: Any, name: str, words: bool) -> Any:
    """One option's value: of no declared type, because a model or an optimiser alone knows its own options."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        items = [_option(item, name, words) for item in cast("list[Any]", value)]
        return items if isinstance(value, list) else tuple(items)
    if value is None or isinstance(value, (bool, int, float)) or (words and isinstance(value, str)):
        return value
    wanted = "a number, a word, true or false, or a list of such" if words else "a number, true or false, or [a, b]"
    raise SettingError(f"{name}={value!r}: give {wanted}")


def _unknown(key: str, names: list[str], where: str) -> UnknownNameError:
    if key in _FIELDS:  # the right field, without its group or in a wrong one
        hint = f"; did you mean {' or '.join(repr(f'{group}.{key}') for group in _FIELDS[key])}?"
    else:
        close = did_you_mean(where + key, [where + name for name in names]) or did_you_mean(key, _FIELDS)
        hint = close or f"; allowed: {', '.join(f'{where}{name}' for name in names)}"
    return UnknownNameError(f"unknown setting {where + key!r}{hint}")


_FIELDS: dict[str, list[str]] = {}
"""Field -> the groups that have it, for those who forget the group."""
for _group in fields(RunConfig):
    _value = getattr(RunConfig(), _group.name)
    for _field in fields(_value) if is_dataclass(_value) else ():
        _FIELDS.setdefault(_field.name, []).append(_group.name)


def _as(kind: Any, value: Any, name: str) -> Any:
    """`value` as a field of type `kind`, or an error that says what is allowed."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _as(next(part for part in parts if part is not type(None)), value, name)
    if origin is Literal:
        if value in parts:
            return value
        few = len(parts) <= 4  # a list says more than a guess: 'gpu' is no misspelt 'cpu'
        hint = (not few and did_you_mean(str(value), parts)) or f"; allowed: {', '.join(parts)}"
        raise SettingError(f"{name}={value!r} is not possible{hint}")
    if origin is tuple and isinstance(value, (list, tuple)):
        each = parts[0] if parts[-1] is Ellipsis else None
        if each is not None or len(value) == len(parts):
            return tuple(_as(each or parts[i], item, name) for i, item in enumerate(cast("list[Any]", value)))
    if kind in (float, str, int, bool):
        found = _scalar(kind, value)
        if found is not None:
            return found
    wanted = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word"}
    raise SettingError(f"{name}={value!r}: give {wanted.get(getattr(kind, '__name__', ''), 'a list, as [a, b]')}")


def _scalar(kind: type, value: Any) -> Any:
    """None where the value is none of that kind."""
    if kind is float and isinstance(value, str):  # YAML takes 1e-3 for a word
        try:
            return float(value)
        except ValueError:
            return None
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and (value is None or type(value) in (int, float)):
        return "" if value is None else str(value)
    return value if type(value) is kind else None


def as_dict(config: RunConfig) -> dict[str, Any]:
    """Plain values, as JSON and YAML hold them; numbers in fields of type float are floats, however they were given."""
    return json.loads(json.dumps(asdict(from_dict(asdict(config)))))


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of `as_dict`."""
    return overlay(RunConfig(), values)


def as_yaml(config: RunConfig) -> str:
    """What `--config` reads back."""
    return _yaml().safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def settings_lines(config: RunConfig) -> list[str]:
    """What differs from the defaults, as `--set` takes it; a line a group."""
    values, defaults = as_dict(config), as_dict(RunConfig())
    lines = {"": [f"{key}={own}" for key, own in values.items() if not isinstance(own, dict) and own != defaults[key]]}
    for group, own in values.items():
        if isinstance(own, dict):
            changed = [(key, value) for key, value in own.items() if value != defaults[group][key]]
            lines[group] = [f"{group}.{key}={value}" for key, value in changed]
    whole = [" ".join(line) for line in lines.values() if line]
    return [f"{'settings' if number == 0 else '':11}{line}" for number, line in enumerate(whole)]


def config_hash(config: RunConfig) -> str:
    """16 digits, the same for the same run wherever its folder lies."""
    return hashlib.sha256(json.dumps(as_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """`optim.lr: 0.1, now 0.2` for every field whose value decides the weights and differs."""
    out: list[str] = []
    for key in sorted({*old, *new}):
        name, a, b = f"{where}{key}", old.get(key), new.get(key)
        if a == b or name in _NOT_COMPUTED:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(cast("Mapping[str, Any]", a), cast("Mapping[str, Any]", b), f"{name}.")
        else:
            out.append(f"{name}: {a!r}, now {b!r}")
    return out


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise VertebraError("training needs more packages: pip install 'vertebra[train]'") from error
    return yaml
