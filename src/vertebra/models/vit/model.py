"""Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929): the model.

b batch, n tokens, p prefix tokens (class, distillation), d embedding, c channels, h w height and width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from vertebra.layers.attention import Attention
from vertebra.layers.attention_pool import AttentionPool
from vertebra.layers.drop_path import drop_path, linear_rates
from vertebra.layers.layer_scale import LayerScale
from vertebra.layers.mlp import Mlp
from vertebra.layers.patch_embed import PatchEmbed, resample_positions
from vertebra.models.backbone import Backbone, FeatureStage, Stage, reset_if_able
from vertebra.models.vit.config import VitConfig
from vertebra.spec import VertebraError, unknown_name

TOKEN_POOLS = ("", "token", "avg", "max", "avgmax", "map")
NORM_EPS = 1e-6


class Block(nn.Module):
    """Pre-norm attention and MLP, each a residual branch."""

    def __init__(self, config: VitConfig, drop: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(
            dim,
            config.num_heads,
            qkv_bias=config.qkv_bias,
            attn_drop=config.attn_drop_rate,
            proj_drop=config.proj_drop_rate,
        )
        self.ls1 = self._scale(config)
        self.drop_path1 = drop_path(drop)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), drop=config.proj_drop_rate)
        self.ls2 = self._scale(config)
        self.drop_path2 = drop_path(drop)

    @staticmethod
    def _scale(config: VitConfig) -> nn.Module:
        return nn.Identity() if config.init_values is None else LayerScale(config.embed_dim, config.init_values)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class VisionTransformer(Backbone):
    """Stages are the blocks; every map has the patch grid's size."""

    spatial: ClassVar[bool] = False
    config: VitConfig
    prefix_names: ClassVar[tuple[str, ...]] = ("cls_token",)
    """The learned tokens before the patches, in order."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__(config)
        dim, prefix = config.embed_dim, len(self.prefix_names)
        self.embed_dim = self.num_features = self.head_hidden_size = dim
        self.num_prefix_tokens = prefix
        patch_embed = PatchEmbed(
            config.image,
            config.patch_size,
            config.in_chans,
            dim,
            dynamic=config.dynamic_img_size,
            dynamic_pad=config.dynamic_img_pad,
        )
        tokens = patch_embed.num_patches + (0 if config.no_embed_class else prefix)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim))
        for name in self.prefix_names[1:]:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, dim)))
        self.patch_embed = patch_embed
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        rates = linear_rates(config.drop_path_rate, config.depth)
        self.blocks = nn.Sequential(*(Block(config, rate) for rate in rates))
        self.feature_info = [
            FeatureStage(num_chs=dim, reduction=config.patch_size, module=f"blocks.{i}") for i in range(config.depth)
        ]
        self.norm: nn.Module = nn.LayerNorm(dim, eps=NORM_EPS)
        self._set_pool(config.global_pool)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(config.num_classes)
        if not self.pos_embed.is_meta:
            self.init_weights()

    def _set_pool(self, global_pool: str) -> None:
        """Poolings over the patches normalise after pooling (`fc_norm`), the others before (`norm`)."""
        if global_pool not in TOKEN_POOLS:
            raise unknown_name("global_pool", global_pool, TOKEN_POOLS, where="tokens")
        self.global_pool = global_pool
        after, dim = global_pool in ("avg", "max", "avgmax"), self.embed_dim
        moved = getattr(self, "fc_norm", None) if isinstance(self.norm, nn.Identity) else self.norm
        norm = moved if isinstance(moved, nn.LayerNorm) else self.place(nn.LayerNorm(dim, eps=NORM_EPS))
        self.norm = nn.Identity() if after else norm
        self.fc_norm: nn.Module = norm if after else nn.Identity()
        if global_pool != "map":
            self.attn_pool: nn.Module | None = None
        elif getattr(self, "attn_pool", None) is None:
            self.attn_pool = self.place(AttentionPool(dim, self.config.num_heads, self.config.mlp_ratio, NORM_EPS))

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        tokens, prefix = self.patch_embed(x), self._prefix(x.shape[0])
        positions = self._positions(x.shape[-2], x.shape[-1])
        if self.config.no_embed_class:
            return self.pos_drop(torch.cat((*prefix, tokens + positions), 1))
        return self.pos_drop(torch.cat((*prefix, tokens), 1) + positions)

    def _prefix(self, batch: int) -> list[Tensor]:
        return [getattr(self, name).expand(batch, -1, -1) for name in self.prefix_names]

    def _positions(self, height: int, width: int) -> Float[Tensor, "1 n d"]:
        if not self.config.dynamic_img_size:
            return self.pos_embed
        grid = self.patch_embed.dynamic_grid(height, width)
        prefix = 0 if self.config.no_embed_class else self.num_prefix_tokens
        return resample_positions(self.pos_embed, grid, prefix=prefix, old_grid=self.patch_embed.grid_size)

    def steps(self) -> list[Stage]:
        return list(self.blocks)

    def as_map(self, state: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        prefix, tokens = state[:, : self.num_prefix_tokens], state[:, self.num_prefix_tokens :]
        rows, columns = self.patch_embed.dynamic_grid(*size)
        return tokens.transpose(1, 2).reshape(state.shape[0], -1, rows, columns), prefix

    def normalize(self, state: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.norm(state)

    def drop_stages(self, keep: int) -> None:
        self.blocks = self.blocks[:keep]

    def drop_norm(self) -> None:
        self.norm = nn.Identity()

    def pool(self, x: Float[Tensor, "b n d"]) -> Tensor:
        """All tokens -> the (b, d) embedding; unchanged with `global_pool=''`."""
        patches = x[:, self.num_prefix_tokens :]
        match self.global_pool:
            case "token":
                return x[:, 0]
            case "avg":
                return patches.mean(1)
            case "max":
                return patches.amax(1)
            case "avgmax":
                return 0.5 * (patches.mean(1) + patches.amax(1))
            case "map":
                assert self.attn_pool is not None
                return self.attn_pool(patches)
            case _:
                return x

    def forward_head(self, x: Float[Tensor, "b n d"], pre_logits: bool = False) -> Any:
        x = dropout(self.fc_norm(self.pool(x)), self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def get_intermediate_layers(
        self,
        x: Float[Tensor, "b c h w"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """The last `n` blocks' patch tokens, or those of the blocks `n`: (b, n, d), or (b, d, h, w) with `reshape`;
        pairs with the prefix tokens where these are asked for. `forward_intermediates`, as DINO's code calls it.
        """
        return self.forward_intermediates(
            x,
            n if isinstance(n, int) else list(n),
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
        )

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            self._set_pool(global_pool)
        self.declare_head(num_classes, self.global_pool)
        self.head = self._new_head()

    def _new_head(self) -> nn.Module:
        return self.place(nn.Linear(self.embed_dim, self.num_classes)) if self.num_classes > 0 else nn.Identity()

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Take images of this size, (height, width) in pixels, from now on: the position embedding is resampled."""
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        old, embed = self.patch_embed.grid_size, self.patch_embed
        if not embed.dynamic_pad and (height % embed.patch_size[0] or width % embed.patch_size[1]):
            raise VertebraError(
                f"img_size {height}x{width} is no whole number of {embed.patch_size[0]}x{embed.patch_size[1]} patches"
            )
        embed.img_size, embed.grid_size = (height, width), embed.dynamic_grid(height, width)
        embed.num_patches = embed.grid_size[0] * embed.grid_size[1]
        prefix = 0 if self.config.no_embed_class else self.num_prefix_tokens
        with torch.no_grad():
            table = resample_positions(self.pos_embed, embed.grid_size, prefix=prefix, old_grid=old)
        self.pos_embed = nn.Parameter(table.detach().clone(), requires_grad=self.pos_embed.requires_grad)
        self.config = replace(self.config, img_size=(height, width))
        super().set_input_size((height, width))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stem = "|".join((*self.prefix_names, "pos_embed", "patch_embed"))
        return {"stem": rf"^(?:{stem})", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", *self.prefix_names}

    def init_module(self, module: nn.Module, name: str) -> None:
        if module is self:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
            for token in self.prefix_names:
                nn.init.normal_(self.get_parameter(token), std=1e-6 if token == "cls_token" else 0.02)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]  # torch declares it Parameter
                nn.init.zeros_(module.bias)
        else:
            reset_if_able(module)
