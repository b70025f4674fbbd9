"""Normalisation and activation before a convolution instead of behind it (He et al., 2016, arXiv:1603.05027)."""

# torch does not declare its oneDNN functions, and names them as private.
# pyright: reportPrivateUsage=false

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.activation import ActType, activate


class BnAct(nn.Module):
    """`act(bn(x))`."""

    def __init__(self, channels: int, act: ActType = "relu", *, eps: float = 1e-5) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=eps)
        self.act: ActType = act

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return activate(self.bn(x), self.act)

    def extra_repr(self) -> str:
        return f"act={self.act!r}"


class BnActConv(nn.Module):
    """`conv(relu(bn(x)))`; the map keeps its size but for the stride."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        pad = dilation * (kernel - 1) // 2
        self.bn = nn.BatchNorm2d(cin, eps=eps)
        self.conv = nn.Conv2d(cin, cout, kernel, stride, pad, dilation, groups, bias=False)

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        return self.conv(torch.relu_(self.bn(x)))


def bn_relu_of_view(x: Float[Tensor, "b c h w"], bn: nn.BatchNorm2d) -> Float[Tensor, "b c h w"]:
    """`relu(bn(x))` in evaluation and without gradient; dense and channels-last.

    torch's own kernel is four times slower where `x` is some channels of a wider channels-last map.
    """
    mean, var = bn.running_mean, bn.running_var
    assert mean is not None
    assert var is not None
    scale = (var.float() + bn.eps).rsqrt_()
    scale = scale * bn.weight if bn.affine else scale
    shift = torch.addcmul(bn.bias.float(), mean.float(), scale, value=-1) if bn.affine else -mean.float() * scale
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return torch.addcmul(shift.reshape(-1, 1, 1), x, scale.reshape(-1, 1, 1), out=out).relu_()


def project_into(
    room: Float[Tensor, "b d h w"], x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 1 1"], *, add: bool
) -> None:
    """A 1x1 convolution written, or added, where its output is wanted: some channels of a channels-last map.

    One matrix product of pixels by weight, which takes a stride between rows; nothing is concatenated afterwards.
    """
    target, pixels, matrix = _rows(room), _rows(x), weight.flatten(1).t()
    if x.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        target.addmm_(pixels, matrix, beta=1 if add else 0)
        return
    # A processor without bf16 arithmetic emulates it, slowly.
    wide = torch.mm(pixels.float(), matrix.float())
    target.copy_(wide.add_(target) if add else wide)


def is_product(conv: nn.Module, x: Tensor) -> bool:
    """Whether `project_into` may stand for a layer: a convolution as it was built, of `x`'s type."""
    return (
        type(conv) is nn.Conv2d
        and type(conv.weight) is nn.Parameter
        and conv.weight.dtype == x.dtype
        and conv.bias is None
        and conv.kernel_size == (1, 1)
    )


def _rows(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "n c"]:
    """A channels-last map's pixels, one a row; a view."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)
