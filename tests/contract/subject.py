"""What the suites of this folder share: small models with values, small images, and what was promised of them."""

import copy
from typing import Any

import torch
from torch import Tensor

from tests.zoo import random_state, small_model, small_size
from vertebra.hub.registry import REGISTRY
from vertebra.models.deit import DistilledConfig

SAME = 1e-5
"""Two copies of a model may differ in the last bit: where its weights lie in memory decides which kernels run."""


def keeps(arch: str, promise: str) -> bool:
    return promise not in REGISTRY.variant(arch).config.limits


def is_distilled(arch: str) -> bool:
    return isinstance(REGISTRY.variant(arch).config, DistilledConfig)


def image(arch: str, batch: int = 2, *, chans: int = 3, device: str = "cpu", dtype: Any = None) -> Tensor:
    return torch.randn(batch, chans, *small_size(arch), device=device, dtype=dtype)


def on_meta(arch: str, **options: Any) -> Any:
    return small_model(arch, device="meta", **options)


def shapes(maps: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(m.shape) for m in maps]


def promised(arch: str, stages: list[dict[str, Any]], batch: int = 2) -> list[tuple[int, ...]]:
    """The shapes that `feature_info` announces for `image(arch)`."""
    height, width = small_size(arch)
    return [(batch, s["num_chs"], height // s["reduction"], width // s["reduction"]) for s in stages]


def with_state(arch: str, state: dict[str, Tensor], **options: Any) -> Any:
    """Built on `meta` and given copies of `state`: nothing is initialised in vain."""
    model = on_meta(arch, num_classes=10, **options).eval()
    model.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    return model


class Subject:
    """A filled model in eval mode that no test changes (`own()` is a copy to change), and what it answers."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.state = random_state(on_meta(arch, num_classes=10).state_dict())
        self.model = with_state(arch, self.state)
        self.x = image(arch)
        with torch.no_grad():
            self.features, self.maps = self.model.forward_intermediates(self.x)
            self.logits = self.model.forward_head(self.features)

    def own(self) -> Any:
        return copy.deepcopy(self.model)
