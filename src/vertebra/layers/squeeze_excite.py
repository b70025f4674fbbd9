"""Squeeze-and-excitation (Hu et al., 2018, arXiv:1709.01507)."""

from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.activation import ActType, activate, activation
from vertebra.spec import Layer


def squeezed(channels: int, ratio: float, divisor: int = 8) -> int:
    """Channels after the squeeze: the nearest multiple of `divisor` to `channels * ratio`, at least one."""
    return max(divisor, int(channels * ratio + divisor / 2) // divisor * divisor)


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate computed from all channels' means."""

    def __init__(self, channels: int, hidden: int, act: Layer) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.act: ActType | nn.Module = activation(act)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        gate = activate(self.fc1(x.mean((2, 3), keepdim=True)), self.act)
        return x * self.fc2(gate).sigmoid()
