"""One fused map from all of a backbone's stages: `vertebra.aggregate(backbone, kind='ida')`."""

from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.aggregation import AGGREGATIONS
from vertebra.models.backbone import Backbone
from vertebra.models.features import feature_maker
from vertebra.spec import VertebraError, unknown_name


class AggregatedBackbone(nn.Module):
    """(b, c, h, w) image -> (b, channels, h / out_stride, w / out_stride) map (rounded up)."""

    def __init__(self, backbone: Backbone, kind: str, out_stride: int, channels: int) -> None:
        super().__init__()
        if kind not in AGGREGATIONS:
            raise unknown_name("aggregation", kind, AGGREGATIONS)
        if channels < 1 or out_stride < 1:
            raise VertebraError(f"channels={channels} and out_stride={out_stride} must be at least 1")
        chosen = _stages(backbone, out_stride)
        like = next(backbone.parameters())
        self.features = feature_maker(None, backbone)(backbone, chosen)
        info = self.features.feature_info
        self.aggregation = AGGREGATIONS[kind](info.channels(), info.reduction(), out_stride, channels)
        self.aggregation.to(device=like.device, dtype=like.dtype)
        self.num_features = channels
        self.out_stride = out_stride

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d ho wo"]:
        return self.aggregation(self.features(x), (x.shape[-2], x.shape[-1]))


def _stages(backbone: Backbone, out_stride: int) -> tuple[int, ...]:
    """The stages to fuse: a CNN's last one of each stride that is not finer than wanted; a ViT's default ones."""
    info = backbone.feature_info
    if not backbone.spatial:
        return tuple(i % len(info) for i in backbone.config.default_out_indices)
    last = {stage["reduction"]: number for number, stage in enumerate(info)}
    chosen = tuple(number for reduction, number in sorted(last.items()) if reduction >= out_stride)
    if not chosen:
        raise VertebraError(f"out_stride {out_stride} is coarser than every stage; the coarsest is {max(last)}")
    return chosen


def aggregate(backbone: nn.Module, kind: str = "ida", out_stride: int = 4, channels: int = 64) -> AggregatedBackbone:
    """Fuse a backbone's stages into one map at `out_stride` (pixels of the image a map's pixel, a side).

    `kind`: `ida` (a chain from the finest stage to the coarsest) or `hda` (a binary tree); see `layers.aggregation`.
    The backbone is taken over: its classifier is removed. Where its finest stage is coarser than `out_stride` (ViT),
    the fused map is brought up by a learned up-sampling.
    """
    if not isinstance(backbone, Backbone):
        raise VertebraError(
            f"aggregate takes a model from create_model (no features_only), not {type(backbone).__name__}"
        )
    return AggregatedBackbone(backbone, kind, out_stride, channels)
