"""Global pooling of a feature map to one vector an image."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.spec import unknown_name

PoolType = Literal["", "avg", "max", "avgmax", "catavgmax"]
POOL_TYPES: tuple[str, ...] = get_args(PoolType)


class GlobalPool(nn.Module):
    """(b, c, h, w) -> (b, c, 1, 1), or (b, 2c, 1, 1) for `catavgmax`; `''` returns its input."""

    def __init__(self, pool_type: str = "avg") -> None:
        super().__init__()
        if pool_type.startswith("fast"):  # older code names the same results so, computed without a layer
            pool_type = pool_type.removeprefix("fast") or "avg"
        if pool_type not in POOL_TYPES:
            raise unknown_name("global_pool", pool_type, POOL_TYPES, where="a feature map")
        self.pool_type = pool_type

    @property
    def feature_multiple(self) -> int:
        """How many times more channels come out than go in."""
        return 2 if self.pool_type == "catavgmax" else 1

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d ho wo"]:
        if self.pool_type == "":
            return x
        if self.pool_type == "avg":
            return x.mean((2, 3), keepdim=True)
        if self.pool_type == "max":
            return x.amax((2, 3), keepdim=True)
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return 0.5 * (mean + peak) if self.pool_type == "avgmax" else torch.cat((mean, peak), 1)

    def extra_repr(self) -> str:
        return f"pool_type={self.pool_type!r}"
