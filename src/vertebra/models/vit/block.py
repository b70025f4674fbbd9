"""One block of a Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929)."""

from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.attention import Attention
from vertebra.layers.drop_path import drop_path
from vertebra.layers.layer_scale import LayerScale
from vertebra.layers.mlp import Mlp
from vertebra.layers.norm import TOKEN_NORMS, norm_maker
from vertebra.models.vit.config import VitConfig


def token_norm(config: VitConfig) -> nn.Module:
    """A normalisation of the config's kind and width."""
    return norm_maker(config.norm_layer, TOKEN_NORMS)(config.embed_dim)


class Block(nn.Module):
    """Pre-norm attention and MLP, each a residual branch."""

    def __init__(self, config: VitConfig, drop: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = token_norm(config)
        self.attn = Attention(
            dim,
            config.num_heads,
            qkv_bias=config.qkv_bias,
            attn_drop=config.attn_drop_rate,
            proj_drop=config.proj_drop_rate,
        )
        self.ls1 = self._scale(config)
        self.drop_path1 = drop_path(drop)
        self.norm2 = token_norm(config)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), drop=config.proj_drop_rate, act=config.act_layer)
        self.ls2 = self._scale(config)
        self.drop_path2 = drop_path(drop)

    @staticmethod
    def _scale(config: VitConfig) -> nn.Module:
        return nn.Identity() if config.init_values is None else LayerScale(config.embed_dim, config.init_values)

    def forward(
        self, x: Float[Tensor, "b n d"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "b n d"]:
        """`attn_mask` and `is_causal` as torch's `scaled_dot_product_attention` takes them."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask, is_causal)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
