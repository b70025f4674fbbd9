"""Pooling of tokens by a learned query (`global_pool='map'`; Zhai et al., 2022, arXiv:2106.04560)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vertebra.layers.mlp import Mlp
from vertebra.spec import Layer


class AttentionPool(nn.Module):
    """One latent query attends to all tokens; an MLP follows."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, norm_eps: float, act: Layer = "gelu") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act=act)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The query's own start: normal with variance 1/d, cut at two deviations."""
        nn.init.trunc_normal_(self.latent, std=self.latent.shape[-1] ** -0.5)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        b, n, d = x.shape
        head = d // self.num_heads
        q = self.q(self.latent.expand(b, -1, -1)).reshape(b, 1, self.num_heads, head).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, self.num_heads, head).permute(2, 0, 3, 1, 4).unbind(0)
        x = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 1, d))
        x = x + self.mlp(self.norm(x))
        return x[:, 0]
