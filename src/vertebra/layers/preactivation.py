"""Normalisation and activation before a convolution instead of behind it (He et al., 2016, arXiv:1603.05027)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.activation import ActType, activate, activation
from vertebra.spec import Layer


class BnAct(nn.Module):
    """`act(bn(x))`."""

    def __init__(self, channels: int, act: Layer = "relu", *, eps: float = 1e-5) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=eps)
        self.act: ActType | nn.Module = activation(act)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return activate(self.bn(x), self.act)

    def extra_repr(self) -> str:
        return f"act={self.act!r}" if isinstance(self.act, str) else ""


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
