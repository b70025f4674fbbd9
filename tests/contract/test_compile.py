"""`torch.compile(fullgraph=True)` with values: training, one small model a family; the default backend (C++), one."""

import pytest
import torch

from tests.zoo import ARCHS, random_state, relative, small_model, small_size
from vertebra.hub.registry import REGISTRY

SMALLEST = [
    min((a for a in ARCHS if REGISTRY.family(a).name == family), key=lambda a: REGISTRY.variant(a).params)
    for family in sorted({REGISTRY.family(a).name for a in ARCHS})
]


@pytest.mark.parametrize("arch", SMALLEST)
def test_training_is_one_graph(arch: str, unchecked_shapes: None) -> None:
    model = small_model(arch, num_classes=10, drop_path_rate=0.1).train()
    torch.compiler.reset()
    torch.compile(model, fullgraph=True, backend="eager")(torch.randn(2, 3, *small_size(arch))).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@torch.no_grad()
def test_default_backend(unchecked_shapes: None) -> None:
    model = small_model("deit_tiny_patch16_224", num_classes=10, depth=2).eval()
    model.load_state_dict(random_state(model.state_dict()))
    torch.compiler.reset()
    x = torch.randn(2, 3, *small_size("deit_tiny_patch16_224"))
    assert relative(torch.compile(model, fullgraph=True)(x), model(x)) < 1e-5
