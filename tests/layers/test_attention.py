"""Attention in three steps answers, and learns, as torch's fused kernel does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vertebra.layers import attention
from vertebra.layers.attention import Attention, attend


def test_it_is_attention() -> None:
    q, k, v = (torch.randn(2, 3, 11, 8, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(attend(q, k, v), scaled_dot_product_attention(q, k, v))


def learnt(layer: Attention, x: Tensor, *, half: bool) -> tuple[Tensor, Tensor]:
    """The answer, and its gradient in the input."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = layer(x)
    y.float().square().sum().backward()
    assert x.grad is not None
    return y.float(), x.grad


def test_in_bf16_it_is_as_near_to_f32_as_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Attention(64, 2).train(), torch.randn(4, 50, 64)
    exact, errors = learnt(layer, x, half=False), dict[str, list[Tensor]]()
    for name, way in {"steps": attend, "fused": scaled_dot_product_attention}.items():
        monkeypatch.setattr(attention, "attend", way)
        found = learnt(layer, x, half=True)
        errors[name] = [(a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)]
    for steps, fused in zip(errors["steps"], errors["fused"], strict=True):
        assert steps < 1.3 * fused


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_only_training_in_bf16_goes_step_by_step(monkeypatch: pytest.MonkeyPatch, training: bool, half: bool) -> None:
    calls: list[str] = []

    def watched(name: str, way: object) -> object:
        return lambda *args, **options: (calls.append(name), way(*args, **options))[1]

    monkeypatch.setattr(attention, "attend", watched("steps", attend))
    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched("fused", scaled_dot_product_attention))
    learnt(Attention(16, 2).train(training), torch.randn(1, 5, 16), half=half)
    assert calls == ["steps" if training and half else "fused"]


def test_the_attention_map_can_be_looked_at() -> None:
    layer = Attention(16, 2).eval()
    x, seen = torch.randn(1, 5, 16), list[torch.Tensor]()
    layer.attn_drop.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    fused = layer(x)
    layer.fused_attn = False
    torch.testing.assert_close(layer(x), fused)
    (attention_map,) = seen
    assert attention_map.shape == (1, 2, 5, 5)
    torch.testing.assert_close(attention_map.sum(-1), torch.ones(1, 2, 5))


def test_dropout_of_weights_is_left_to_the_fused_kernel() -> None:
    layer: nn.Module = Attention(16, 2, attn_drop=1.0).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(torch.randn(1, 5, 16)), layer(torch.randn(1, 5, 16)))  # nothing is attended to
