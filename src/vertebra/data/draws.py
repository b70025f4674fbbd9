"""Random numbers from a generator that the caller holds (or torch's default), hence saved and restored with it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def uniforms(count: int, generator: torch.Generator | None = None) -> list[float]:
    """`count` numbers in 0..1."""
    return cast("list[float]", torch.rand(count, generator=generator).tolist())


def dirichlet(alpha: float, count: int, generator: torch.Generator | None = None) -> Tensor:
    """(count,) shares that add up to 1, in double precision; of two, the first is Beta(alpha, alpha)."""
    # torch.distributions takes no generator. Tiny gammas may all be 0: then one share, drawn evenly, has everything.
    gamma: Tensor = torch.ops.aten._standard_gamma(torch.full((count,), alpha, dtype=torch.float64), generator)
    total = float(gamma.sum())
    if total > 0:
        return gamma / total
    return torch.nn.functional.one_hot(torch.randint(count, (), generator=generator), count).double()


def uniform(low: float, high: float) -> float:
    """One number in `low`..`high`, from torch's default generator."""
    return low + (high - low) * torch.rand(()).item()
