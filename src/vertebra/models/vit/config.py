"""Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929): what can vary, and one row a variant."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from vertebra.spec import Layer, ModelConfig, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class VitConfig(ModelConfig):
    """The defaults are ViT-B/16 at 224 px."""

    img_size: int | tuple[int, int] = 224
    """Pixels: one side of a square, or (height, width)."""
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    init_values: float | None = None
    """Where layer scale starts; None: no layer scale."""
    no_embed_class: bool = False
    """The position embedding covers patches only, not the class token."""
    global_pool: str = "token"
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    dynamic_img_size: bool = False
    """Take images of any size at run time; the position embedding is resampled to their grid."""
    dynamic_img_pad: bool = False
    """Pad images, right and below, to whole patches."""
    patch_drop_rate: float = 0.0
    """Share of the patches that training leaves out, other ones for every image (Li et al., arXiv:2212.00794)."""
    reg_tokens: int = 0
    """Learned tokens behind the class token that no head reads ("registers"; Darcet et al., arXiv:2309.16588)."""
    fc_norm: bool | None = None
    """Normalise behind the pooling instead of before it; None: where the pooling averages or takes the maximum."""
    weight_init: str = ""
    """How training starts: see `models.vit.init`."""
    act_layer: Layer = "gelu"
    norm_layer: Layer = "layernorm"
    """Called with a number of channels."""

    first_conv: ClassVar[str] = "patch_embed.proj"
    classifier: ClassVar[str | tuple[str, ...]] = "head"
    default_out_indices: ClassVar[tuple[int, ...]] = (-3, -2, -1)
    limits: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "output_stride": "all blocks share one grid of patches: choose patch_size or img_size",
            "channels_last": "tokens have no memory format beyond the patch embedding",
        }
    )

    @property
    def image(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size


VARIANTS = {
    "vit_tiny_patch16_224": Variant(VitConfig(embed_dim=192, num_heads=3), params=5_717_416, gmacs=1.26, macts=5.97),
    "vit_small_patch16_224": Variant(VitConfig(embed_dim=384, num_heads=6), params=22_050_664, gmacs=4.61, macts=11.95),
    "vit_base_patch16_224": Variant(VitConfig(), params=86_567_656, gmacs=17.58, macts=23.9),
}
