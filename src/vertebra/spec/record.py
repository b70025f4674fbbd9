"""Records that others wrote: JSON into the types that a dataclass declares, or one line that says what is wrong."""

import json
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, Union, cast

from vertebra.spec.errors import VertebraError

_NOTHING = object()
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_LARGEST = 1 << 16
"""Pixels of a side; nothing else that preprocessing is told comes near."""
_LONGEST = 60
"""Characters of a wrong value that a message repeats."""


def parse_json(text: str | bytes, where: str, error: type[VertebraError] = VertebraError) -> Any:
    """The value that `text` is. Raises `error` for what is no JSON, however it is broken."""
    try:
        return json.loads(text)
    except ValueError as reason:  # no JSON, no UTF-8, or a number of thousands of digits
        raise error(f"{where} is not JSON: {reason}") from reason
    except RecursionError as reason:
        raise error(f"{where} is not JSON that can be read: it is nested too deeply") from reason


def parse_object(text: str | bytes, where: str, error: type[VertebraError] = VertebraError) -> dict[str, Any]:
    """The JSON object that `text` is. Raises `error`."""
    found = parse_json(text, where, error)
    if not isinstance(found, dict):
        raise error(f"{where} holds a {type(found).__name__}, not an object of names and values")
    return cast("dict[str, Any]", found)


def as_declared(
    values: Mapping[str, Any], kinds: Mapping[str, Any], where: str, error: type[VertebraError] = VertebraError
) -> dict[str, Any]:
    """Each value as its name's type, lists become tuples where those are declared. Raises `error` for one that is not.

    Names without a declared type stay as they are: to refuse them is the caller's affair.
    """
    return {
        key: value_as(kinds[key], value, key, where, error) if key in kinds else value for key, value in values.items()
    }


def value_as(kind: Any, value: Any, name: str, where: str, error: type[VertebraError] = VertebraError) -> Any:
    """One value as a type. Raises `error`, which says what was given and what is allowed."""
    found = _fitted(kind, value)
    if found is _NOTHING:
        raise error(f"{where}: {name} is {_named(value)}; it must be {_wanted(kind)}")
    return found


def check_range(name: str, value: object, where: str, error: type[VertebraError] = VertebraError) -> None:
    """Raise `error` where a value of preprocessing has the right type, and still cannot be."""
    numbers = cast("tuple[float, ...]", value if isinstance(value, tuple) else (value,))
    if value is None or isinstance(value, bool) or not name.endswith(("_size", "crop_pct", "std", "mean")):
        return
    if not numbers:
        raise error(f"{where}: {name} is empty; it must be a number a channel")
    if name != "mean" and not all(0 < number <= _LARGEST for number in numbers):
        raise error(f"{where}: {name} is {_named(value)}; it must be above 0, and at most {_LARGEST}")


def _fitted(kind: Any, value: Any) -> Any:
    """The value, or `_NOTHING` where it is not of that kind. Kinds that no record holds take anything."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return next((found for part in parts if (found := _fitted(part, value)) is not _NOTHING), _NOTHING)
    if origin is Literal:
        return value if value in parts and not isinstance(value, bool) else _NOTHING
    if origin is tuple:
        return _as_tuple(parts, value)
    if origin is list:
        found = _as_tuple((parts[0], Ellipsis), value)
        return found if found is _NOTHING else list(found)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _as_mapping(parts, value)
    if origin is Callable:
        return value if callable(value) else _NOTHING
    return _scalar(kind, value)


def _scalar(kind: Any, value: Any) -> Any:
    if kind in (None, type(None)):
        return None if value is None else _NOTHING
    if kind is bool:
        return value if isinstance(value, bool) else _NOTHING
    if kind is int:
        whole = hasattr(value, "__index__") and not isinstance(value, bool)
        return operator.index(value) if whole else _NOTHING
    if kind is float:
        good: bool = not isinstance(value, bool) and isinstance(value, Real) and _finite(value)
        return float(value) if good else _NOTHING
    if kind is str:
        return os.fspath(value) if isinstance(value, (str, os.PathLike)) else _NOTHING
    return value


def _finite(value: Real) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _as_tuple(parts: tuple[Any, ...], value: Any) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return _NOTHING
    items = cast("Sequence[Any]", value)
    kinds = parts[:1] * len(items) if parts[-1] is Ellipsis else parts
    found = tuple(_fitted(kind, item) for kind, item in zip(kinds, items, strict=False))
    return _NOTHING if len(items) != len(kinds) or any(each is _NOTHING for each in found) else found


def _as_mapping(parts: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _NOTHING
    items = cast("Mapping[Any, Any]", value)
    found = {_fitted(parts[0], key): _fitted(parts[1], item) for key, item in items.items()}
    return _NOTHING if any(each is _NOTHING for pair in found.items() for each in pair) else found


def _named(value: object) -> str:
    """What stands there, in few words."""
    if isinstance(value, Mapping):
        return "an object"
    text = repr(list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _wanted(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_wanted, parts)))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (tuple, list):
        many = parts[-1] is Ellipsis or origin is list
        return f"a list of {_wanted(parts[0])} each" if many else f"a list of {len(parts)}: {_wanted(parts[0])} each"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "an object of names and values"
    return _KINDS.get(kind, str(getattr(kind, "__name__", kind)))
