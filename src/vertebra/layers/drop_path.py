"""Stochastic depth (Huang et al., 2016, arXiv:1603.09382)."""

from jaxtyping import Float
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training; the kept ones are scaled to the same mean."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Float[Tensor, "b *rest"]) -> Float[Tensor, "b *rest"]:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        # keep == 0 would divide by zero: the branch is then dropped for every sample.
        return x * (mask / keep if keep > 0.0 else mask)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:g}"


def drop_path(rate: float) -> nn.Module:
    """`DropPath(rate)`, or an identity that costs nothing where the rate is 0."""
    return DropPath(rate) if rate > 0.0 else nn.Identity()


def linear_rates(last: float, depth: int) -> list[float]:
    """`depth` drop probabilities that rise linearly from 0 to `last`."""
    return [last * i / (depth - 1) if depth > 1 else last for i in range(depth)]
