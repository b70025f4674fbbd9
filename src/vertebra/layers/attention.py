"""Multi-head self-attention (Vaswani et al., 2017, arXiv:1706.03762).

b batch, n tokens, d channels, h heads.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vertebra.spec import VertebraError


def attend(q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"]) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, (b, h, n, d), in three steps.

    Forward and backward take half as long as torch's fused kernel for processors where that computes in bf16.
    """
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1) @ v


def _bf16_on_cpu(x: object) -> bool:
    """What torch.fx traces is no tensor, and cannot be asked."""
    return isinstance(x, Tensor) and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _masked(scores: Float[Tensor, "b h n n"], mask: Tensor | None, causal: bool) -> Float[Tensor, "b h n n"]:
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if mask is None:
        return scores
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


class Attention(nn.Module):
    """Queries, keys and values of all heads come from one product with one weight.

    With `fused_attn` set to False, the attention map (b, h, n, n) goes through `attn_drop`, where a hook sees it.
    """

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise VertebraError(f"embed_dim {dim} is not divisible by num_heads {num_heads}; choose a divisor of it")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x: Float[Tensor, "b n d"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "b n d"]:
        """`attn_mask`, broadcast over (b, h, n, n): true where a token may look, or a float added to the map."""
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if not self.fused_attn:
            scores = _masked((q * self.scale) @ k.transpose(-2, -1), attn_mask, is_causal)
            x = self.attn_drop(torch.softmax(scores, dim=-1)) @ v
        elif self.training and self.attn_drop.p == 0 and _bf16_on_cpu(q) and attn_mask is None and not is_causal:
            x = attend(q, k, v)
        else:
            dropout = self.attn_drop.p if self.training else 0.0
            x = scaled_dot_product_attention(q, k, v, attn_mask, dropout_p=dropout, is_causal=is_causal)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, n, d)))
