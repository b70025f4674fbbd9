"""Convolution, batch normalisation, activation: the unit that most CNNs repeat."""

from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.activation import ActType, activate, activation
from vertebra.layers.norm import MAP_NORMS, norm_maker
from vertebra.spec import Layer


class ConvNormAct(nn.Module):
    """`act(bn(conv(x)))`; the map keeps its size but for the stride."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: Layer = "",
        norm: Layer = "batchnorm2d",
    ) -> None:
        super().__init__()
        pad = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(cin, cout, kernel, stride, pad, dilation, groups, bias=False)
        self.bn = norm_maker(norm, MAP_NORMS)(cout)
        self.act: ActType | nn.Module = activation(act)

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        return activate(self.bn(self.conv(x)), self.act)

    def extra_repr(self) -> str:
        return f"act={self.act!r}" if isinstance(self.act, str) else ""
