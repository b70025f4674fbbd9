"""Cross-stage partial networks and their plain parents.

In a cross stage one half of the channels passes the residual blocks, the other goes around them; both meet in a
transition convolution (CSPNet paper, fig. 2 and 3).  b batch, c channels, h w height and width in pixels.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.activation import ActType, activate, activation
from vertebra.layers.conv_norm_act import ConvNormAct
from vertebra.layers.dilation import dilate
from vertebra.layers.drop_path import drop_path, linear_rates
from vertebra.layers.head import ClassifierHead
from vertebra.layers.squeeze_excite import SqueezeExcite, squeezed
from vertebra.models.backbone import Backbone, FeatureStage, Stage, reset_if_able
from vertebra.models.cspnet.config import CspNetConfig


@dataclass(frozen=True, slots=True)
class StageShape:
    """Where one stage stands: number, channels, and what output_stride left of its stride."""

    index: int
    cin: int
    cout: int
    stride: int
    dilation: int
    down_dilation: int
    """Of the strided convolution: it still sees the pixels of the stage before."""
    has_down: bool
    down_out: int
    """Channels behind the strided convolution."""


def stage_shapes(config: CspNetConfig) -> Iterator[StageShape]:
    """The stages of a config, in order."""
    plan = dilate((config.stem_stride, *(2 for _ in config.depths)), config.output_stride)
    cin = config.stem_channels[-1]
    for i, cout in enumerate(config.channels):
        has_down = i > 0 or not config.stem_pool
        yield StageShape(
            index=i,
            cin=cin,
            cout=cout,
            stride=plan[i + 1][0],
            dilation=plan[i + 1][1],
            down_dilation=plan[i][1],
            has_down=has_down,
            down_out=cout if has_down and config.down_grows else cin,
        )
        cin = cout


def unit(config: CspNetConfig, cin: int, cout: int, kernel: int = 1, **spread: int) -> ConvNormAct:
    """A convolution with the config's normalisation and activation."""
    return ConvNormAct(cin, cout, kernel, act=config.act_layer, norm=config.norm_layer, **spread)


def linear_unit(config: CspNetConfig, cin: int, cout: int) -> ConvNormAct:
    """A 1x1 convolution with the config's normalisation, and nothing behind it."""
    return ConvNormAct(cin, cout, norm=config.norm_layer)


def downsample(config: CspNetConfig, shape: StageShape) -> nn.Module:
    """The map at half its size, unless the stem's pool or output_stride has seen to that."""
    if not shape.has_down:
        return nn.Identity()
    conv = partial(unit, config, shape.cin, shape.down_out, groups=config.groups[shape.index])
    if config.down_average:
        return nn.Sequential(nn.AvgPool2d(2) if shape.stride == 2 else nn.Identity(), conv(1))
    return conv(3, stride=shape.stride, dilation=shape.down_dilation)


def stem(config: CspNetConfig) -> nn.Sequential:
    """`conv1`, `conv2` ..., `pool`."""
    layers, cin = dict[str, nn.Module](), config.in_chans
    for i, cout in enumerate(config.stem_channels, start=1):
        first = {"kernel": config.stem_kernel, "stride": config.stem_stride} if i == 1 else {"kernel": 3}
        layers[f"conv{i}"] = unit(config, cin, cout, **first)
        cin = cout
    if config.stem_pool:
        layers["pool"] = nn.MaxPool2d(3, 2, padding=1)
    return nn.Sequential(OrderedDict(layers))


def _squeeze_excite(config: CspNetConfig, channels: int) -> nn.Module:
    if config.se_ratio == 0.0:
        return nn.Identity()
    return SqueezeExcite(channels, squeezed(channels, config.se_ratio), config.act_layer)


class DarkBlock(nn.Module):
    """1x1, 3x3; nothing follows the addition (YOLOv3 paper, table 1)."""

    def __init__(self, config: CspNetConfig, channels: int, mid: int, drop: float, **spread: int) -> None:
        super().__init__()
        self.conv1 = unit(config, channels, mid)
        self.attn = _squeeze_excite(config, mid)
        self.conv2 = unit(config, mid, channels, 3, **spread)
        self.drop_path = drop_path(drop)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.drop_path(self.conv2(self.attn(self.conv1(x)))) + x


class EdgeBlock(nn.Module):
    """3x3, 1x1: the bottleneck's expansion fused into its 3x3 convolution."""

    def __init__(self, config: CspNetConfig, channels: int, mid: int, drop: float, **spread: int) -> None:
        super().__init__()
        self.conv1 = unit(config, channels, mid, 3, **spread)
        self.attn = _squeeze_excite(config, mid)
        self.conv2 = unit(config, mid, channels)
        self.drop_path = drop_path(drop)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.drop_path(self.conv2(self.attn(self.conv1(x)))) + x


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (grouped in cspresnext50), 1x1; the activation follows the addition."""

    def __init__(self, config: CspNetConfig, channels: int, mid: int, drop: float, **spread: int) -> None:
        super().__init__()
        self.conv1 = unit(config, channels, mid)
        self.conv2 = unit(config, mid, mid, 3, **spread)
        self.attn2 = _squeeze_excite(config, mid)
        self.conv3 = linear_unit(config, mid, channels)
        self.drop_path = drop_path(drop)
        self.act: ActType | nn.Module = activation(config.act_layer)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        branch = self.conv3(self.attn2(self.conv2(self.conv1(x))))
        return activate(self.drop_path(branch) + x, self.act)


LAST_NORMS = {
    "dark": r"blocks\.\d+\.conv2\.bn$",
    "bottleneck": r"blocks\.\d+\.conv3\.bn$",
    "edge": r"blocks\.\d+\.conv2\.bn$",
}
BLOCKS = {"dark": DarkBlock, "bottleneck": BottleneckBlock, "edge": EdgeBlock}


def residual_blocks(config: CspNetConfig, shape: StageShape, channels: int, rates: Iterator[float]) -> nn.Sequential:
    """The blocks of a stage, `channels` wide."""
    i = shape.index
    build = partial(BLOCKS[config.block], config, channels, round(channels * config.mid_ratio[i]))
    return nn.Sequential(
        *(build(drop=next(rates), dilation=shape.dilation, groups=config.groups[i]) for _ in range(config.depths[i]))
    )


class ResidualStage(nn.Module):
    """Halve the map, then residual blocks: DarkNet."""

    def __init__(self, config: CspNetConfig, shape: StageShape, rates: Iterator[float]) -> None:
        super().__init__()
        self.conv_down = downsample(config, shape)
        self.blocks = residual_blocks(config, shape, shape.cout, rates)

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        return self.blocks(self.conv_down(x))


class CrossStage(nn.Module):
    """Half of the channels goes around the blocks; both halves meet in the last transition."""

    def __init__(self, config: CspNetConfig, shape: StageShape, rates: Iterator[float]) -> None:
        super().__init__()
        width = int(shape.cout * config.path_ratio[shape.index])
        self.conv_down = downsample(config, shape)
        self.conv_exp = (linear_unit if config.path_linear else unit)(config, shape.down_out, 2 * width)
        self.blocks = residual_blocks(config, shape, width, rates)
        self.around_first = config.stage == "cross"
        if self.around_first:
            self.conv_transition_b = unit(config, width, width)
        self.conv_transition = unit(config, 2 * width, shape.cout)

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        first, second = self.conv_exp(self.conv_down(x)).chunk(2, 1)
        if self.around_first:
            return self.conv_transition(torch.cat((first, self.conv_transition_b(self.blocks(second))), 1))
        return self.conv_transition(torch.cat((self.blocks(first), second), 1))


class CspNet(Backbone):
    """Feature 0 is the stem's last convolution, feature i stage i - 1."""

    config: CspNetConfig

    def __init__(self, config: CspNetConfig) -> None:
        super().__init__(config)
        self.stem = stem(config)
        rates = iter(linear_rates(config.drop_path_rate, sum(config.depths)))
        build = ResidualStage if config.stage == "dark" else CrossStage
        self.stages = nn.Sequential(*(build(config, shape, rates) for shape in stage_shapes(config)))
        widths = (config.stem_channels[-1], *config.channels)
        modules = (f"stem.conv{len(config.stem_channels)}", *(f"stages.{i}" for i in range(len(config.depths))))
        self.feature_info = [
            FeatureStage(num_chs=c, reduction=min(config.stem_stride * 2**i, config.output_stride), module=module)
            for i, (c, module) in enumerate(zip(widths, modules, strict=True))
        ]
        self.num_features = widths[-1]
        self.drop_rate = config.drop_rate
        self.reset_classifier(config.num_classes, config.global_pool)

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x

    def steps(self) -> list[Stage]:
        return [self._stem_convolutions, self._first_stage, *self.stages[1:]][: len(self.feature_info)]

    def _stem_convolutions(self, x: Tensor) -> Tensor:
        for name, layer in self.stem.named_children():
            x = layer(x) if name != "pool" else x
        return x

    def _first_stage(self, x: Tensor) -> Tensor:
        return self.stages[0](self.stem.get_submodule("pool")(x) if self.config.stem_pool else x)

    def leave(self, state: Tensor, stage: int) -> Tensor:
        """The stem ends with its pooling, which its feature comes before."""
        return self.stem.get_submodule("pool")(state) if stage == 0 and self.config.stem_pool else state

    def drop_stages(self, keep: int) -> None:
        self.stages = self.stages[: max(keep - 1, 0)]
        if keep == 0:
            self.stem = nn.Sequential()

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)  # which may be the caller's own

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is None:
            global_pool = self.head.global_pool.pool_type
        head = ClassifierHead(self.num_features, num_classes, global_pool, self.drop_rate)
        self.declare_head(num_classes, global_pool)
        self.head_hidden_size = head.num_features
        self.head = head
        self.place(self.head)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        # A stage's transition closes it: it sorts behind every block.
        fine = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)\..*transition", (99999,))]
        fine += [(r"^stages\.(\d+)", (0,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def init_module(self, module: nn.Module, name: str) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        else:
            reset_if_able(module)
            # The last normalisation of a residual branch starts at zero: every block starts as the identity.
            if isinstance(module, nn.BatchNorm2d) and re.search(LAST_NORMS[self.config.block], name):
                nn.init.zeros_(module.weight)
