"""The sample whose values are tested stands for every architecture: each option, and each kind of layer, is in it."""

from collections import defaultdict
from dataclasses import fields
from typing import Any

from torch import nn

from tests.zoo import ARCHS, SIZES, facts, representatives, small_model
from vertebra.hub.registry import REGISTRY

CHOSEN = representatives()


def test_every_value_of_every_option_is_in_the_sample() -> None:
    everywhere, sampled = defaultdict[tuple[str, str], set[Any]](set), defaultdict[tuple[str, str], set[Any]](set)
    for arch in ARCHS:
        config = REGISTRY.variant(arch).config
        for name in {f.name for f in fields(config)} - SIZES:
            key, value = (REGISTRY.family(arch).name, name), getattr(config, name)
            everywhere[key].add(value)
            if arch in CHOSEN:
                sampled[key].add(value)
    assert sampled == everywhere


def test_sizes_are_fields_of_some_config() -> None:
    named = {f.name for arch in ARCHS for f in fields(REGISTRY.variant(arch).config)}
    assert named >= SIZES


def layers(arch: str) -> set[tuple[Any, ...]]:
    """Kinds of layers: a convolution's kernel, stride, bias and whether it is grouped or depthwise; others' types."""
    found = set[tuple[Any, ...]]()
    for module in small_model(arch, device="meta").modules():
        kind: tuple[Any, ...] = (REGISTRY.family(arch).name, type(module))
        if isinstance(module, nn.Conv2d):
            grouped = (module.groups > 1) + (module.groups == module.in_channels)
            kind = (*kind, module.kernel_size, module.stride, module.bias is None, grouped)
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            kind = (*kind, module.eps)
        found.add(kind)
    return found


def test_every_kind_of_layer_is_in_the_sample() -> None:
    of = {arch: layers(arch) for arch in ARCHS}
    sampled = set[tuple[Any, ...]]().union(*(of[arch] for arch in CHOSEN))
    assert not {arch: found - sampled for arch, found in of.items() if found - sampled}


def test_the_sample_is_small() -> None:
    """A cover that takes in most of the zoo would be none: then a size was taken for an option."""
    assert len(CHOSEN) < len(ARCHS) / 2
    assert all(facts(arch) for arch in ARCHS)
