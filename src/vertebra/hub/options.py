"""What `create_model` was asked for, as an architecture's config."""

from collections.abc import Mapping
from dataclasses import fields, replace
from numbers import Integral, Real
from typing import Any, cast

from vertebra.layers.activation import ACTIVATIONS, spelled
from vertebra.layers.norm import MAP_NORMS, TOKEN_NORMS
from vertebra.spec import ModelConfig, Variant, VertebraError, unknown_name


def make_config(arch: str, variant: Variant, options: Mapping[str, Any]) -> ModelConfig:
    """The variant's config with some fields replaced; an option that it does not have is an error."""
    allowed = {f.name for f in fields(variant.config)}
    for option in options:
        if option not in allowed:
            known = allowed | {"features_only", "out_indices", "feature_cls", "device", "dtype"}
            raise unknown_name("option", option, sorted(known), where=arch)
        _check_value(option, options[option])
    return replace(variant.config, **{option: _plain(option, value) for option, value in options.items()})


def _plain(option: str, value: Any) -> Any:
    """As a record can hold it: lists as tuples, numpy's whole numbers as Python's, layers by their names."""
    if option in ("act_layer", "norm_layer"):
        return spelled(value, ACTIVATIONS if option == "act_layer" else {**MAP_NORMS, **TOKEN_NORMS})
    if isinstance(value, list):
        return tuple(cast("list[Any]", value))
    return int(value) if isinstance(value, Integral) and not isinstance(value, int) else value


_LEAST = {"num_classes": 0, "in_chans": 1}


def _check_value(option: str, value: Any) -> None:
    """Raise for what would build a model, of no use, or fail where nobody sees why."""
    least = _LEAST.get(option)
    if least is not None and not (isinstance(value, Integral) and cast("int", value) >= least):
        raise VertebraError(f"{option}={value!r}: give a whole number, {least} or more")
    if option.endswith("_rate") and not (isinstance(value, Real) and 0 <= cast("float", value) <= 1):
        raise VertebraError(f"{option}={value!r}: a rate is a number between 0 and 1")
