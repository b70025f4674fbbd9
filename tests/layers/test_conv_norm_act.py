import pytest
import torch
from torch.nn.functional import leaky_relu, silu

from vertebra.layers.activation import ActType, activate
from vertebra.layers.conv_norm_act import ConvNormAct


@pytest.mark.parametrize(
    ("act", "reference"),
    [("", lambda x: x), ("relu", torch.relu), ("leaky_relu", leaky_relu), ("silu", silu)],
)
def test_activation_is_the_one_named_and_in_place(act: ActType, reference) -> None:
    x = torch.linspace(-3, 3, 7)
    wanted = reference(x)
    out = activate(x, act)
    assert out is x
    assert torch.equal(out, wanted)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "size"), [(1, 1, 1, 9), (3, 1, 2, 9), (3, 2, 1, 5), (7, 2, 1, 5)]
)
def test_the_map_keeps_its_size_but_for_the_stride(kernel: int, stride: int, dilation: int, size: int) -> None:
    layer = ConvNormAct(3, 4, kernel, stride=stride, dilation=dilation, act="silu").eval()
    assert layer(torch.rand(1, 3, 9, 9)).shape == (1, 4, size, size)


def test_evaluation_without_gradients_answers_as_the_plain_steps_do() -> None:
    torch.manual_seed(0)
    layer = ConvNormAct(3, 8, 3, act="leaky_relu").eval()
    layer.bn.running_mean.normal_()
    layer.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 7, 6)
    wanted = leaky_relu(layer.bn(layer.conv(x)), 0.01)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-6)
