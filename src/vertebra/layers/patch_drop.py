"""Patches left out of training (Li et al., 2022, arXiv:2212.00794): a masked image costs less, and regularises."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PatchDropout(nn.Module):
    """Keeps a random share of the patches while training, others for every image; the `prefix` tokens stay."""

    def __init__(self, prob: float, prefix: int) -> None:
        super().__init__()
        self.prob = prob
        self.num_prefix_tokens = prefix

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        if not self.training or self.prob == 0.0:
            return x
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        keep = max(1, int(patches.shape[1] * (1.0 - self.prob)))
        chosen = torch.rand(patches.shape[:2], device=x.device).argsort(dim=1)[:, :keep, None]
        return torch.cat((prefix, patches.gather(1, chosen.expand(-1, -1, x.shape[2]))), 1)

    def extra_repr(self) -> str:
        return f"prob={self.prob:g}"
