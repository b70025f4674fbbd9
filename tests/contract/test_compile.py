"""`torch.compile(fullgraph=True)`: one small model a family; with the default backend (C++) one model of all."""

from typing import Any

import pytest
import torch

from tests.zoo import ARCHS, random_state, relative, small_model, small_size
from vertebra.hub.registry import REGISTRY

SMALLEST = [
    min((a for a in ARCHS if REGISTRY.family(a).name == family), key=lambda a: REGISTRY.variant(a).params)
    for family in sorted({REGISTRY.family(a).name for a in ARCHS})
]


def check(arch: str, backend: str, **options: Any) -> None:
    model = small_model(arch, num_classes=10, **options).eval()
    model.load_state_dict(random_state(model.state_dict()))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = torch.randn(2, 3, *small_size(arch))
    with torch.no_grad():
        assert relative(compiled(x), model(x)) < 1e-5


@pytest.mark.parametrize("arch", SMALLEST)
def test_evaluation_is_one_graph(arch: str, unchecked_shapes: None) -> None:
    check(arch, "aot_eager")


@pytest.mark.parametrize("arch", SMALLEST)
def test_training_is_one_graph(arch: str, unchecked_shapes: None) -> None:
    model = small_model(arch, num_classes=10, drop_path_rate=0.1).train()
    torch.compiler.reset()
    torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(2, 3, *small_size(arch))).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_default_backend(unchecked_shapes: None) -> None:
    check("deit_tiny_patch16_224", "inductor", depth=2)
