"""Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929): the model.

b batch, n tokens, p prefix tokens (class, distillation), d embedding, c channels, h w height and width.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.attention_pool import AttentionPool
from vertebra.layers.drop_path import linear_rates
from vertebra.layers.patch_drop import PatchDropout
from vertebra.layers.patch_embed import PatchEmbed, resample_positions
from vertebra.models.backbone import Backbone, FeatureStage, Indices, Stage
from vertebra.models.vit.block import Block, token_norm
from vertebra.models.vit.config import VitConfig
from vertebra.models.vit.init import WEIGHT_INITS
from vertebra.spec import VertebraError, unknown_name

TOKEN_POOLS = ("", "token", "avg", "max", "avgmax", "map")
PATCH_POOLS = ("avg", "max", "avgmax")
POOL_NORM_EPS = 1e-6


class VisionTransformer(Backbone):
    """Stages are the blocks; every map has the patch grid's size."""

    spatial: ClassVar[bool] = False
    config: VitConfig
    taught: ClassVar[tuple[str, ...]] = ()
    """Tokens with a head of their own, beside the class token."""
    has_class_token: ClassVar[bool] = True

    def __init__(self, config: VitConfig) -> None:
        super().__init__(config)
        if config.weight_init not in WEIGHT_INITS:
            raise unknown_name("weight_init", config.weight_init, WEIGHT_INITS)
        dim, registers = config.embed_dim, config.reg_tokens
        self.embed_dim = self.num_features = self.head_hidden_size = dim
        self.prefix_names = ("cls_token", *self.taught, *(("reg_token",) if registers else ()))
        self.num_reg_tokens = registers
        self.num_prefix_tokens = prefix = 1 + len(self.taught) + registers
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
        self.reg_token = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim))
        for name in self.taught:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, dim)))
        self.patch_embed = patch_embed
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        self.patch_drop = PatchDropout(config.patch_drop_rate, prefix) if config.patch_drop_rate else nn.Identity()
        self.norm_pre = nn.Identity()
        rates = linear_rates(config.drop_path_rate, config.depth)
        self.blocks = nn.Sequential(*(Block(config, rate) for rate in rates))
        self.feature_info = [
            FeatureStage(num_chs=dim, reduction=config.patch_size, module=f"blocks.{i}") for i in range(config.depth)
        ]
        after = config.global_pool in PATCH_POOLS if config.fc_norm is None else config.fc_norm
        self.norm = nn.Identity() if after else token_norm(config)
        self.attn_pool: nn.Module | None = None
        self._set_pool(config.global_pool)
        self.fc_norm = token_norm(config) if after else nn.Identity()
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(config.num_classes)
        if not self.pos_embed.is_meta:
            self.init_weights()

    @property
    def dynamic_img_size(self) -> bool:
        """Whether images of other sizes than the model's are taken."""
        return self.config.dynamic_img_size

    @property
    def no_embed_class(self) -> bool:
        """Whether the position embedding covers patches only."""
        return self.config.no_embed_class

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in TOKEN_POOLS:
            raise unknown_name("global_pool", global_pool, TOKEN_POOLS, where="tokens")
        self.global_pool = global_pool
        if global_pool != "map":
            self.attn_pool = None
        elif self.attn_pool is None:
            config = self.config
            pool = AttentionPool(config.embed_dim, config.num_heads, config.mlp_ratio, POOL_NORM_EPS, config.act_layer)
            self.attn_pool = self.place(pool)

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        tokens, prefix = self.patch_embed(x), self._prefix(x.shape[0])
        positions = self._positions(x.shape[-2], x.shape[-1])
        if self.config.no_embed_class:
            x = torch.cat((*prefix, tokens + positions), 1)
        else:
            x = torch.cat((*prefix, tokens), 1) + positions
        return self.norm_pre(self.patch_drop(self.pos_drop(x)))

    def _prefix(self, batch: int) -> list[Tensor]:
        return [getattr(self, name).expand(batch, -1, -1) for name in self.prefix_names]

    def _positions(self, height: int, width: int) -> Float[Tensor, "1 n d"]:
        if not self.config.dynamic_img_size:
            return self.pos_embed
        grid = self.patch_embed.dynamic_grid(height, width)
        prefix = 0 if self.config.no_embed_class else self.num_prefix_tokens
        return resample_positions(self.pos_embed, grid, prefix=prefix, old_grid=self.patch_embed.grid_size)

    def steps(self, attn_mask: Tensor | None = None, is_causal: bool = False) -> list[Stage]:
        if attn_mask is None and not is_causal:
            return list(self.blocks)
        return [partial(block, attn_mask=attn_mask, is_causal=is_causal) for block in self.blocks]

    def forward_features(
        self, x: Float[Tensor, "b c h w"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """The (b, n, d) normalised tokens. `attn_mask`, broadcast over (b, heads, n, n): which tokens see which."""
        return self._through(x, self.steps(attn_mask, is_causal))

    def forward(self, x: Float[Tensor, "b c h w"], attn_mask: Tensor | None = None, is_causal: bool = False) -> Any:
        """(b, c, h, w) image -> (b, k) logits."""
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))

    # Callers by position know two orders, a CNN's and this.
    def forward_intermediates(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Tensor, "b c h w"],
        indices: Indices = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """As every model's. `return_prefix_tokens` makes each entry a pair `(map, prefix tokens)`.

        `output_dict` answers with `image_features`, `image_intermediates` and, where the tokens are asked for,
        `image_intermediates_prefix`.
        """
        seen = self._walk(
            x,
            self.steps(attn_mask, is_causal),
            indices,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            maps_only=intermediates_only,
        )
        maps = [level for level, _ in seen.maps]
        prefixes = [prefix for _, prefix in seen.maps]
        if output_dict:
            named: dict[str, Any] = {"image_intermediates": maps}
            named |= {"image_intermediates_prefix": prefixes} if return_prefix_tokens else {}
            return named if intermediates_only else named | {"image_features": seen.features}
        levels = list(zip(maps, prefixes, strict=True)) if return_prefix_tokens else maps
        return levels if intermediates_only else (seen.features, levels)

    def as_tokens(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        return state[:, self.num_prefix_tokens :], state[:, : self.num_prefix_tokens]

    def as_map(self, state: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        if self.training and self.config.patch_drop_rate:
            raise VertebraError(
                "patch_drop_rate leaves patches out while training, so that they fill no map"
                "; use output_fmt='NLC', or the model in evaluation mode"
            )
        tokens, prefix = self.as_tokens(state)
        rows, columns = self.patch_embed.dynamic_grid(*size)
        return tokens.transpose(1, 2).reshape(state.shape[0], -1, rows, columns), prefix

    def normalize(self, state: Float[Tensor, "b n d"], *, last: bool) -> Float[Tensor, "b n d"]:
        """It fits every block's tokens."""
        return self.norm(state)

    def drop_stages(self, keep: int) -> None:
        self.blocks = self.blocks[:keep]

    def drop_head(self) -> None:
        self.reset_classifier(0)
        self.fc_norm = self.place(nn.Identity())
        self.attn_pool, self.global_pool = None, ""

    def drop_norm(self) -> None:
        self.norm = self.place(nn.Identity())

    def pool(self, x: Float[Tensor, "b n d"], pool_type: str | None = None) -> Tensor:
        """All tokens -> the (b, d) embedding, by `pool_type` or the model's `global_pool`; unchanged with `''`."""
        patches = x[:, self.num_prefix_tokens :]
        match self.global_pool if pool_type is None else pool_type:
            case "token":
                return x[:, 0]
            case "avg":
                return patches.mean(1)
            case "max":
                return patches.amax(1)
            case "avgmax":
                return 0.5 * (patches.mean(1) + patches.amax(1))
            case "map":
                if self.attn_pool is None:
                    raise VertebraError("this model has no attention pool; create it with global_pool='map'")
                return self.attn_pool(patches)
            case _:
                return x

    def forward_head(self, x: Float[Tensor, "b n d"], pre_logits: bool = False) -> Any:
        x = self.head_drop(self.fc_norm(self.pool(x)))
        return x if pre_logits else self.head(x)

    def get_intermediate_layers(
        self,
        x: Float[Tensor, "b c h w"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        attn_mask: Tensor | None = None,
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
            attn_mask=attn_mask,
        )

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None and global_pool != self.global_pool:
            # The norm stays where it is, and another model of this config has it there.
            after = not isinstance(self.fc_norm, nn.Identity)
            self._set_pool(global_pool)
            self.config = replace(self.config, fc_norm=None if after == (global_pool in PATCH_POOLS) else after)
        self.declare_head(num_classes, self.global_pool)
        self.head = self._new_head("head")

    def _new_head(self, name: str) -> nn.Module:
        layer = nn.Linear(self.embed_dim, self.num_classes) if self.num_classes > 0 else nn.Identity()
        return self.place(layer, name)

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
                nn.init.normal_(self.get_parameter(token), std=0.02 if token in self.taught else 1e-6)
        else:
            WEIGHT_INITS[self.config.weight_init](module, name)
