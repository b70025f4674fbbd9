"""What the suites over every model share: which models, made how small, filled with what."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

import vertebra
from vertebra.hub.registry import REGISTRY
from vertebra.models.vit import VitConfig
from vertebra.spec import State

ARCHS = REGISTRY.archs
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
