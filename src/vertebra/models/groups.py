"""A model's parameters by depth: for layer-wise learning rates, and for freezing what lies nearest the image."""

import re
from typing import Any

from vertebra.layers.statistics import keeps_statistics
from vertebra.models.backbone import Backbone
from vertebra.spec import VertebraError

_HEAD = (2**31,)
"""Sorts behind every depth: what no pattern names is the head."""


def _patterns(spec: dict[str, Any]) -> list[tuple[re.Pattern[str], tuple[int, ...], tuple[int, ...] | None]]:
    """(pattern, rank of its part, suffix) in the order in which they are tried."""
    out: list[tuple[re.Pattern[str], tuple[int, ...], tuple[int, ...] | None]] = []
    for rank, part in enumerate(spec.values()):
        rows: list[tuple[str, tuple[int, ...] | None]] = [(part, None)] if isinstance(part, str) else part
        out += [(re.compile(pattern), (rank,), suffix) for pattern, suffix in rows]
    return out


def layer_groups(model: Backbone, coarse: bool = False) -> list[list[str]]:
    """Parameter names, group by group from the image to the head, as `model.group_matcher(coarse)` sorts them."""
    patterns = _patterns(model.group_matcher(coarse))
    depths: dict[tuple[float, ...], list[str]] = {}
    for name, _ in model.named_parameters():
        depth: tuple[float, ...] = _HEAD
        for pattern, rank, suffix in patterns:
            if found := pattern.match(name):
                numbers = tuple(float(g) for g in found.groups() if g is not None and g.isdigit())
                depth = (*rank, *numbers, *(suffix or ()))
                break
        depths.setdefault(depth, []).append(name)
    return [depths[depth] for depth in sorted(depths)]


def freeze(model: Backbone, depth: int) -> list[str]:
    """Stop training the `depth` groups nearest the image (1: the stem; `coarse` groups); 0 frees everything.

    Frozen normalisation layers also keep their statistics in training mode. Returns the names frozen.
    """
    groups = layer_groups(model, coarse=True)
    if not 0 <= depth <= len(groups):
        raise VertebraError(
            f"depth {depth} is not possible; this model has {len(groups)} groups, stem and head included"
        )
    names = {name for group in groups[:depth] for name in group}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    model.frozen_modules = tuple(
        module
        for prefix, module in model.named_modules()
        if keeps_statistics(module) and any(name.startswith(f"{prefix}.") for name in names)
    )
    model.train(model.training)
    return sorted(names)
