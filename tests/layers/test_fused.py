"""One kernel in evaluation on a CPU: the same answers as the plain steps, whatever changes in between."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from vertebra.layers import fused
from vertebra.layers.fused import conv_bn_act, forget


def layers(cin: int = 8, cout: int = 16, kernel: int = 3, groups: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, groups=groups, bias=False)
    bn = nn.BatchNorm2d(cout)
    with torch.no_grad():
        for tensor in (bn.weight, bn.bias, bn.running_mean):
            tensor.normal_()
        bn.running_var.uniform_(0.5, 2)
    return conv.eval(), bn.eval()


def plain(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, act: str = "", add: Tensor | None = None) -> Tensor:
    out = bn(conv(x)) if add is None else bn(conv(x)) + add
    kinds = {"relu": torch.relu, "silu": nn.functional.silu, "leaky_relu": nn.functional.leaky_relu}
    return kinds[act](out) if act else out


@pytest.mark.parametrize("act", ["", "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_it_answers_as_the_steps(act: Literal["", "relu", "leaky_relu", "silu"], added: bool, groups: int) -> None:
    conv, bn = layers(groups=groups)
    x = torch.randn(2, 8, 9, 11)
    add = torch.randn(2, 16, 9, 11) if added else None
    with torch.no_grad():
        expected = plain(x, conv, bn, act, add)
        before = None if add is None else add.clone()
        torch.testing.assert_close(conv_bn_act(x, conv, bn, act, add), expected, rtol=1e-5, atol=1e-5)
        assert add is None or torch.equal(add, before), "the shortcut is somebody else's tensor"
        assert conv in fused._packed


def test_every_way_of_changing_the_weights_is_seen() -> None:
    """In place, through `.data`, by another tensor, by a loaded state, and the statistics alike."""
    conv, bn = layers()
    x = torch.randn(1, 8, 6, 6)

    def same() -> None:
        with torch.no_grad():
            torch.testing.assert_close(conv_bn_act(x, conv, bn), plain(x, conv, bn), rtol=1e-4, atol=1e-4)

    same()
    with torch.no_grad():
        conv.weight.mul_(2)
    same()
    conv.weight.data.add_(0.5)
    same()
    bn.running_mean.data.add_(3)
    same()
    bn.weight.data[0] = 7.0
    same()
    conv.weight = nn.Parameter(torch.randn_like(conv.weight))
    same()
    bn.load_state_dict({k: v + 1 for k, v in bn.state_dict().items()})
    same()


@pytest.mark.parametrize(("cin", "cout", "kernel", "groups"), [(48, 64, 3, 1), (72, 40, 1, 1), (64, 64, 5, 64)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_editing_a_channel_by_hand_is_seen(
    cin: int, cout: int, kernel: int, groups: int, layout: torch.memory_format
) -> None:
    """Every output channel, every input channel and every place of the kernel, through `.data`."""
    conv, bn = layers(cin, cout, kernel, groups)
    conv = conv.to(memory_format=layout)
    x = torch.randn(1, cin, 6, 6)
    for axis, size in enumerate(conv.weight.shape):
        for at in range(size):
            with torch.no_grad():
                before = conv_bn_act(x, conv, bn)
                conv.weight.data.select(axis, at).mul_(-1)
                after = conv_bn_act(x, conv, bn)
            assert not torch.equal(before, after), (axis, at)
            torch.testing.assert_close(after, plain(x, conv, bn).detach(), rtol=1e-4, atol=1e-4)


def test_changing_shapes_answer_alike() -> None:
    """A layout suits one shape: each gets its own, the oldest goes, and nothing depends on what came before."""
    conv, bn = layers()
    for size in (5, 9, 9, 9, 9, 5, 7, 5, 9):
        x = torch.randn(2, 8, size, size)
        with torch.no_grad():
            answer = conv_bn_act(x, conv, bn)
            torch.testing.assert_close(answer, plain(x, conv, bn), rtol=1e-5, atol=1e-5)
            assert torch.equal(answer, conv_bn_act(x, conv, bn))
            assert len(fused._packed[conv].layouts) <= 2


def test_steps_that_somebody_watches_are_taken() -> None:
    conv, bn = layers()
    x = torch.randn(1, 8, 6, 6)
    seen: list[str] = []
    handle = bn.register_forward_hook(lambda *_: seen.append("bn"))
    with torch.no_grad():
        conv_bn_act(x, conv, bn)
    assert seen == ["bn"]
    handle.remove()
    assert conv_bn_act(x, conv, bn).requires_grad
    assert conv not in fused._packed


def test_copies_are_forgotten() -> None:
    conv, bn = layers()
    with torch.no_grad():
        conv_bn_act(torch.randn(1, 8, 6, 6), conv, bn)
    forget(nn.Sequential(conv, bn))
    assert conv not in fused._packed
