"""One kernel in evaluation on a CPU: the same answers as the steps that it stands for."""

import threading

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.passes.conftest import filled, steps
from vertebra.runtime.passes import onednn
from vertebra.runtime.passes.convs import Activation
from vertebra.runtime.passes.onednn import OneDnnConv


@pytest.mark.parametrize("act", [Activation(), Activation("relu"), Activation("leaky_relu", 0.2), Activation("silu")])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_it_answers_as_the_steps(act: Activation, added: bool, groups: int, bias: bool) -> None:
    conv, bn = filled(groups=groups, bias=bias)
    x = torch.randn(2, 8, 9, 11)
    add = torch.randn(2, 16, 9, 11) if added else None
    with torch.no_grad():
        expected = steps(x, conv, bn, act, add)
        before = None if add is None else add.clone()
        torch.testing.assert_close(OneDnnConv(conv, bn, act)(x, add), expected, rtol=1e-5, atol=1e-5)
        assert add is None or torch.equal(add, before), "the shortcut is somebody else's tensor"


@torch.no_grad()
def test_bfloat16_rounds_as_the_steps_do_or_less() -> None:
    conv, bn = filled()
    x = torch.randn(2, 8, 9, 11)
    expected = steps(x, conv, bn, Activation("relu"), None)
    answer = OneDnnConv(conv.bfloat16(), bn.bfloat16(), Activation("relu"))(x.bfloat16())
    assert answer.dtype == torch.bfloat16
    torch.testing.assert_close(answer.float(), expected, rtol=0.02, atol=0.05)


@torch.no_grad()
def test_changing_shapes_answer_alike() -> None:
    """A layout suits one shape: each gets its own, the oldest goes, and nothing depends on what came before."""
    conv, bn = filled()
    layer = OneDnnConv(conv, bn, Activation())
    for size in (5, 9, 9, 9, 9, 5, 7, 5, 9):
        x = torch.randn(2, 8, size, size)
        answer = layer(x)
        torch.testing.assert_close(answer, steps(x, conv, bn, Activation(), None), rtol=1e-5, atol=1e-5)
        assert torch.equal(answer, OneDnnConv(conv, bn, Activation())(x))
        assert len(layer._layouts) <= onednn.LAYOUTS


@torch.no_grad()
def test_what_is_added_may_have_another_shape() -> None:
    """oneDNN itself would read beyond the end of it."""
    conv, bn = filled()
    layer, x = OneDnnConv(conv, bn, Activation("relu")), torch.randn(2, 8, 9, 9)
    one = torch.randn(1, 16, 1, 1)
    torch.testing.assert_close(layer(x, one), steps(x, conv, bn, Activation("relu"), one), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="must match the size"):
        layer(x, torch.randn(2, 16, 8, 9))
    with pytest.raises(RuntimeError, match=r"this convolution takes \(b, 8, h, w\)"):
        layer(torch.randn(2, 7, 9, 9))


@torch.no_grad()
def test_threads_share_it() -> None:
    conv, bn = filled()
    layer = OneDnnConv(conv, bn, Activation())
    images = [torch.randn(1, 8, 5 + n % 4, 6) for n in range(40)]
    expected = [steps(x, conv, bn, Activation(), None) for x in images]
    found: list[Tensor | None] = [None] * len(images)

    def run(first: int) -> None:
        with torch.no_grad():
            for number in range(first, len(images), 4):
                found[number] = layer(images[number])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(answer, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_keeps_its_own_weights() -> None:
    conv, bn = filled()
    layer, x = OneDnnConv(conv, bn, Activation()), torch.randn(1, 8, 6, 6)
    before = layer(x)
    for tensor in (conv.weight, bn.weight, bn.running_mean):
        assert isinstance(tensor, Tensor)
        tensor.mul_(3)
    assert torch.equal(layer(x), before)
    assert torch.equal(layer(x[..., :5]), layer(x[..., :5].clone()))
    assert isinstance(layer, nn.Module)
    assert not list(layer.parameters())
