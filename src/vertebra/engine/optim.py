"""Optimisers by name, and parameters in groups: what decays and what does not, and at which rate each learns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vertebra.engine.optimisers import Lamb, RMSpropTF
from vertebra.models.backbone import Backbone
from vertebra.models.groups import layer_groups
from vertebra.spec import VertebraError, unknown_name

Group = dict[str, Any]

_WITH_PREVIOUS = (99999,)
"""The suffix by which `group_matcher` says so."""

OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any], frozenset[str]]] = {
    # name: class, what the name implies, options that it takes beside lr and weight_decay
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, frozenset({"momentum", "nesterov", "dampening"})),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, frozenset({"momentum", "dampening"})),
    "adam": (torch.optim.Adam, {}, frozenset({"betas", "eps", "amsgrad"})),
    "adamw": (torch.optim.AdamW, {}, frozenset({"betas", "eps", "amsgrad"})),
    "nadam": (torch.optim.NAdam, {}, frozenset({"betas", "eps", "momentum_decay"})),
    "nadamw": (torch.optim.NAdam, {"decoupled_weight_decay": True}, frozenset({"betas", "eps", "momentum_decay"})),
    "radam": (torch.optim.RAdam, {}, frozenset({"betas", "eps"})),
    "adagrad": (torch.optim.Adagrad, {}, frozenset({"eps", "lr_decay"})),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "alpha": 0.9}, frozenset({"alpha", "eps", "momentum"})),
    "rmsproptf": (
        RMSpropTF,
        {"momentum": 0.9},
        frozenset({"alpha", "eps", "momentum", "decoupled_decay", "lr_in_momentum"}),
    ),
    "lamb": (
        Lamb,
        {},
        frozenset({"betas", "eps", "bias_correction", "grad_averaging", "max_grad_norm", "trust_clip", "always_adapt"}),
    ),
}

_FUSED: tuple[Callable[..., Optimizer], ...] = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Classes that have all of an update in one kernel: a third of the time on a processor."""


def create_optimizer(
    model_or_groups: nn.Module | Iterable[Group],
    name: str,
    *,
    lr: float,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    **options: Any,
) -> Optimizer:
    """The optimiser of that name (`OPTIMIZERS`) over `param_groups(model)`, or over groups already made.

    `options` are those of the optimiser itself (momentum, betas, eps, ...); one that it does not have raises.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    kind, implied, allowed = OPTIMIZERS[name]
    for option in options:
        if option not in allowed:
            raise unknown_name("option", option, sorted(allowed), where=f"optimizer {name!r}")
    if lr <= 0 or weight_decay < 0:
        raise VertebraError(f"lr={lr}, weight_decay={weight_decay}: lr is above 0, weight_decay at least 0")
    groups = (
        param_groups(model_or_groups, weight_decay, layer_decay)
        if isinstance(model_or_groups, nn.Module)
        else list(model_or_groups)
    )
    for group in groups:
        group.setdefault("lr", lr * group.get("lr_scale", 1.0))
    fused: dict[str, Any] = {"fused": True} if kind in _FUSED and _whole(groups) else {}
    return kind(groups, lr=lr, weight_decay=weight_decay, **{**implied, **fused, **options})


def _whole(groups: list[Group]) -> bool:
    """Parameters lie whole on a processor or an NVIDIA GPU; processes may yet share them out among each other."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False
    if not all(isinstance(group["params"], list) for group in groups):  # to look into an iterator would empty it
        return False
    parameters = [p for group in groups for p in group["params"]]
    return all(
        isinstance(p, torch.Tensor) and p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters
    )


def param_groups(model: nn.Module, weight_decay: float = 0.0, layer_decay: float | None = None) -> list[Group]:
    """Parameters that learn, in groups with "weight_decay", "lr_scale" and "param_names".

    No decay for vectors and scalars (biases, norms, layer scales) nor for what `model.no_weight_decay()` names.
    `layer_decay`: each of `layer_groups` learns at this share of the rate of the one behind it, the head at the full
    rate; a final norm or a transition goes with the layer in front of it.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise VertebraError(f"layer_decay={layer_decay}: give a share above 0 and up to 1, as 0.75")
    spared: set[str] = model.no_weight_decay() if isinstance(model, Backbone) else set()
    scales = _scales(model, layer_decay)
    groups: dict[tuple[float, float], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in spared
        key = (scales.get(name, 1.0), weight_decay if decays else 0.0)
        group = groups.setdefault(key, {"params": [], "param_names": [], "weight_decay": key[1], "lr_scale": key[0]})
        group["params"].append(parameter)
        group["param_names"].append(name)
    if not groups:
        raise VertebraError("nothing to train: every parameter is frozen; free some with vertebra.models.groups.freeze")
    return list(groups.values())


def _scales(model: nn.Module, layer_decay: float | None) -> dict[str, float]:
    if layer_decay is None:
        return {}
    if not isinstance(model, Backbone):
        raise VertebraError(f"layer_decay needs a vertebra model, which knows its layers, not a {type(model).__name__}")
    depths = layer_groups(model)
    joining = _joining(model)
    number, numbers = -1, dict[str, int]()
    for names in depths:
        number += not any(pattern.match(names[0]) for pattern in joining)
        numbers.update(dict.fromkeys(names, number))
    return {name: layer_decay ** (number - own) for name, own in numbers.items()}


def _joining(model: Backbone) -> list[re.Pattern[str]]:
    """What `group_matcher` marks as belonging to the layer in front of it: final norms, transitions."""
    rows = [row for part in model.group_matcher().values() if not isinstance(part, str) for row in part]
    return [re.compile(pattern) for pattern, suffix in rows if suffix == _WITH_PREVIOUS]
