"""A learned factor a channel on a residual branch (Touvron et al., 2021, arXiv:2103.17239)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LayerScale(nn.Module):
    """x * gamma, gamma starting at `init_values`."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.init_values = init_values
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def reset_parameters(self) -> None:
        """Gamma back to where it starts."""
        nn.init.constant_(self.gamma, self.init_values)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return x * self.gamma
