"""What the suites over every model share: which models, made how small, filled with what.

Two tiers, so that the suite does not grow with the zoo (docs/design.md says what each proves): names, keys, shapes and
counts are looked at for every architecture, on `meta`; values for one of each distinct block and option.
"""

import os
from dataclasses import fields
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

import vertebra
from vertebra.hub.registry import REGISTRY
from vertebra.models.vit import VitConfig
from vertebra.spec import State

ARCHS = REGISTRY.archs
SIZES = frozenset(
    {
        "channels",
        "depth",
        "depths",
        "embed_dim",
        "group_size",
        "group_width",
        "growth",
        "img_size",
        "mid_width",
        "num_heads",
    }
    | {"residual_width", "stem_channels", "stem_width", "w0", "wa", "wm"}
)
"""Config fields that say how much there is of the same. Every other field is an option, and so is any new one."""

ODD_ONES = frozenset({"regnetx_080"})
"""Architectures with a layer that comes of their sizes: here groups wider than a stage, which are then one."""


def facts(arch: str) -> set[tuple[Any, ...]]:
    """What `arch` has of its family: each option's value, each pair of kinds of block, and whether a stage has one
    block only (its first is then its last)."""
    config = REGISTRY.variant(arch).config
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    found = {(name, 1 in (value if isinstance(value, tuple) else (value,))) for name, value in values.items()}
    options = {name: value for name, value in values.items() if name not in SIZES}
    kinds = {name: _kind(value) for name, value in options.items()} | {"config": type(config).__name__}
    found = {fact for fact in found if fact[0] in SIZES} | set(options.items())
    return {(REGISTRY.family(arch).name, *fact) for fact in (*found, *combinations(sorted(kinds.items()), 2))}


def _kind(value: Any) -> Any:
    """Numbers differ in kind where there is none, one, or several: no squeeze, one group."""
    many = value if isinstance(value, tuple) else (value,)
    return tuple(v if isinstance(v, (bool, str)) or v is None else (v > 0) + (v > 1) for v in {*many})


def representatives() -> tuple[str, ...]:
    """Of each distinct block and option one architecture, as small as there is: a cover, chosen greedily."""
    of = {arch: facts(arch) for arch in ARCHS}
    chosen = {*ODD_ONES}
    left = set[tuple[Any, ...]]().union(*of.values()).difference(*(of[arch] for arch in chosen))
    while left:
        best = max(ARCHS, key=lambda arch: (len(of[arch] & left), -REGISTRY.variant(arch).params))
        chosen.add(best)
        left -= of[best]
    return tuple(arch for arch in ARCHS if arch in chosen)


SAMPLE = ARCHS if os.environ.get("VERTEBRA_TEST_ALL") else representatives()
"""The architectures whose values are tested; `scripts/test --all` takes every one."""
HUGE = 200_000_000
"""More parameters than this: a transformer of three blocks stands for all of its equal blocks (the weights of
deit3_huge alone are 2.5 GB). Its keys and shapes are compared whole, on `meta`."""


def is_transformer(arch: str) -> bool:
    return isinstance(REGISTRY.variant(arch).config, VitConfig)


def has_option(arch: str, name: str) -> bool:
    return name in {f.name for f in fields(REGISTRY.variant(arch).config)}


def shortened(arch: str) -> dict[str, Any]:
    """Options that leave out what is only more of the same."""
    variant = REGISTRY.variant(arch)
    return {"depth": 3} if variant.params > HUGE and is_transformer(arch) else {}


def native_side(arch: str) -> int:
    config = REGISTRY.variant(arch).config
    if isinstance(config, VitConfig):
        return config.image[0]
    found = REGISTRY.default_weights(arch)
    return found[1].preprocess.input_size[1] if found else 224


def small_size(arch: str, rows: int = 4, columns: int = 4) -> tuple[int, int]:
    """(height, width) in pixels: so many patches, or for a CNN 16 pixels each."""
    config = REGISTRY.variant(arch).config
    unit = config.patch_size if isinstance(config, VitConfig) else 16
    return rows * unit, columns * unit


def small_options(arch: str, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Options that make `arch` cheap to run at `size` and leave it what it is."""
    if not is_transformer(arch):
        return {}
    return {"img_size": size or small_size(arch), **shortened(arch)}


def small_model(arch: str, **options: Any) -> Any:
    return vertebra.create_model(arch, **{**small_options(arch), **options})


def random_state(like: State, seed: int = 7) -> dict[str, Tensor]:
    """Values for every entry: BatchNorm statistics, biases and layer scales too; activations keep their magnitude."""
    generator = torch.Generator().manual_seed(seed)

    def fill(key: str, tensor: Tensor) -> Tensor:
        if not tensor.dtype.is_floating_point:
            return torch.ones_like(tensor, device="cpu")
        value = torch.empty(tensor.shape, dtype=tensor.dtype)
        positive = key.endswith(("running_var", "gamma")) or (value.ndim == 1 and key.endswith("weight"))
        if positive:
            return value.uniform_(0.5, 1.5, generator=generator)
        if value.ndim == 1:
            return value.normal_(0, 0.2, generator=generator)
        if key in ("cls_token", "dist_token", "pos_embed"):
            return value.normal_(0, 0.5, generator=generator)
        return value.normal_(0, (value[0].numel()) ** -0.5, generator=generator)

    return {key: fill(key, tensor) for key, tensor in like.items()}


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
