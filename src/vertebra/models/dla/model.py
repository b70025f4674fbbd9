"""Deep Layer Aggregation (Yu et al., CVPR 2018, arXiv:1707.06484): the model.

A stride-2 stage is a binary tree of residual blocks; a root convolution fuses the blocks below it (hierarchical deep
aggregation). Parameter names are those of the authors' checkpoints.

b batch, c channels, h w height and width in pixels.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.aggregation import AggregationNode
from vertebra.layers.dilation import dilate
from vertebra.layers.drop_path import drop_path, linear_rates
from vertebra.layers.pool import GlobalPool
from vertebra.models.backbone import Backbone, FeatureStage, Stage, reset_if_able
from vertebra.models.dla.config import DlaConfig


def conv3x3(cin: int, cout: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """Without bias; the map keeps its size but for the stride."""
    return nn.Conv2d(cin, cout, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)


def conv_bn(conv: nn.Conv2d, *, relu: bool = False) -> nn.Sequential:
    """A convolution, its normalisation and, with `relu`, an activation, under the names `0`, `1`, `2`."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), *([nn.ReLU(inplace=True)] if relu else []))


def bottleneck_width(config: DlaConfig, cout: int) -> int:
    """Channels of one 3x3 convolution inside a bottleneck that puts out `cout`."""
    return int(math.floor(cout * config.group_width / 64) * config.groups) // 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions. `shortcut` stands for the input on the identity branch."""

    def __init__(self, config: DlaConfig, cin: int, cout: int, stride: int, dilation: int, drop: float) -> None:
        super().__init__()
        self.conv1 = conv3x3(cin, cout, stride, dilation)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = conv3x3(cout, cout, 1, dilation)
        self.bn2 = nn.BatchNorm2d(cout)
        self.drop_path = drop_path(drop)

    def forward(self, x: Float[Tensor, "b cin h w"], shortcut: Tensor | None = None) -> Float[Tensor, "b cout ho wo"]:
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = self.drop_path(self.bn2(self.conv2(y)))
        return torch.relu_(y + (x if shortcut is None else shortcut))


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in the X variants), 1x1."""

    def __init__(self, config: DlaConfig, cin: int, cout: int, stride: int, dilation: int, drop: float) -> None:
        super().__init__()
        mid = bottleneck_width(config, cout)
        self.conv1 = nn.Conv2d(cin, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = conv3x3(mid, mid, stride, dilation, config.groups)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.drop_path = drop_path(drop)

    def forward(self, x: Float[Tensor, "b cin h w"], shortcut: Tensor | None = None) -> Float[Tensor, "b cout ho wo"]:
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = torch.relu_(self.bn2(self.conv2(y)))
        y = self.drop_path(self.bn3(self.conv3(y)))
        return torch.relu_(y + (x if shortcut is None else shortcut))


class Res2Block(nn.Module):
    """The 3x3 of a bottleneck as a cascade over four slices of channels (Res2Net, arXiv:1904.01169)."""

    SCALE = 4

    def __init__(self, config: DlaConfig, cin: int, cout: int, stride: int, dilation: int, drop: float) -> None:
        super().__init__()
        self.width = bottleneck_width(config, cout)
        # A block that shrinks the map has nothing of its new size to add to a slice: its slices run side by side.
        self.cascade = stride == 1 and cin == cout
        wide = self.width * self.SCALE
        self.conv1 = nn.Conv2d(cin, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        slices = range(self.SCALE - 1)
        self.convs = nn.ModuleList(conv3x3(self.width, self.width, stride, dilation, config.groups) for _ in slices)
        self.bns = nn.ModuleList(nn.BatchNorm2d(self.width) for _ in slices)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if not self.cascade else nn.Identity()
        self.conv3 = nn.Conv2d(wide, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.drop_path = drop_path(drop)

    def forward(self, x: Float[Tensor, "b cin h w"], shortcut: Tensor | None = None) -> Float[Tensor, "b cout ho wo"]:
        y = torch.relu_(self.bn1(self.conv1(x)))
        # Indexed, not unpacked: torch.fx cannot tell how many slices a split gives.
        slices = [y[:, i * self.width : (i + 1) * self.width] for i in range(self.SCALE)]
        outs: list[Tensor] = []
        for part, conv, bn in zip(slices, self.convs, self.bns):  # noqa: B905 - the last slice has no convolution
            source = outs[-1] + part if self.cascade and outs else part
            outs.append(torch.relu_(bn(conv(source))))
        y = torch.cat((*outs, self.pool(slices[-1])), 1)
        y = self.drop_path(self.bn3(self.conv3(y)))
        return torch.relu_(y + (x if shortcut is None else shortcut))


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck, "res2": Res2Block}


class Tree(nn.Module):
    """A tree of 2**depth blocks (paper, fig. 3): its right half sees its left half's output, and both end in a root."""

    def __init__(
        self,
        config: DlaConfig,
        depth: int,
        cin: int,
        cout: int,
        rates: Iterator[float],
        *,
        stride: int = 1,
        dilation: int = 1,
        keep_input: bool = False,
        inherited: int = 0,
    ) -> None:
        """`inherited` channels come to the root from outside; `keep_input` adds the tree's own input to them."""
        super().__init__()
        self.depth = depth
        self.keep_input = keep_input
        inherited += cin if keep_input else 0
        # ceil_mode: a map of odd size must shrink as the stride-2 convolution beside it does.
        self.downsample = nn.MaxPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        if depth == 1:
            block = partial(BLOCKS[config.block], config, dilation=dilation)
            self.project = conv_bn(nn.Conv2d(cin, cout, 1, bias=False)) if cin != cout else nn.Identity()
            self.tree1 = block(cin=cin, cout=cout, stride=stride, drop=next(rates))
            self.tree2 = block(cin=cout, cout=cout, stride=1, drop=next(rates))
            self.root = AggregationNode(2 * cout + inherited, cout, config.residual_root)
        else:
            grow = partial(Tree, config, depth - 1, rates=rates, dilation=dilation)
            self.tree1 = grow(cin=cin, cout=cout, stride=stride)
            self.tree2 = grow(cin=cout, cout=cout, inherited=cout + inherited)

    def forward(
        self, x: Float[Tensor, "b cin h w"], inherited: tuple[Tensor, ...] = ()
    ) -> Float[Tensor, "b cout ho wo"]:
        if self.keep_input or self.depth == 1:
            bottom = self.downsample(x)
            if self.keep_input:
                inherited = (*inherited, bottom)
            if self.depth == 1:
                left = self.tree1(x, self.project(bottom))
                return self.root([self.tree2(left), left, *inherited])
        left = self.tree1(x)
        return self.tree2(left, (*inherited, left))


class Dla(Backbone):
    """Stages are levels 0 to 5, at strides 1 to 32."""

    config: DlaConfig

    def __init__(self, config: DlaConfig) -> None:
        super().__init__(config)
        widths, plan = config.channels, dilate((1, 2, 2, 2, 2, 2), config.output_stride)
        rates = iter(linear_rates(config.drop_path_rate, sum(2**depth for depth in config.depths)))
        self.base_layer = conv_bn(nn.Conv2d(config.in_chans, widths[0], 7, padding=3, bias=False), relu=True)
        self.level0 = conv_bn(conv3x3(widths[0], widths[0]), relu=True)
        self.level1 = conv_bn(conv3x3(widths[0], widths[1], stride=2), relu=True)
        for level in range(2, 6):
            stride, dilation = plan[level]
            cin, cout, depth = widths[level - 1], widths[level], config.depths[level - 2]
            tree = Tree(config, depth, cin, cout, rates, stride=stride, dilation=dilation, keep_input=level > 2)
            self.add_module(f"level{level}", tree)
        self.feature_info = [
            FeatureStage(num_chs=c, reduction=min(2**i, config.output_stride), module=f"level{i}")
            for i, c in enumerate(widths)
        ]
        self.num_features = widths[-1]
        self.head_drop = nn.Dropout(config.drop_rate)
        self.reset_classifier(config.num_classes, config.global_pool)

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return self.base_layer(x)

    def steps(self) -> list[Stage]:
        return [self.get_submodule(f"level{i}") for i in range(len(self.feature_info))]

    def drop_stages(self, keep: int) -> None:
        for level in range(keep, len(self.feature_info)):
            delattr(self, f"level{level}")

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.global_pool(x))
        return self.flatten(x if pre_logits else self.fc(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            self.global_pool = self.place(GlobalPool(global_pool))
            self.flatten: nn.Module = self.place(nn.Flatten(1) if global_pool else nn.Identity())
        self.declare_head(num_classes, self.global_pool.pool_type)
        self.head_hidden_size = self.num_features * self.global_pool.feature_multiple
        layer: nn.Module = nn.Conv2d(self.head_hidden_size, num_classes, 1) if num_classes > 0 else nn.Identity()
        self.fc = self.place(layer)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        tree = [(r"^level(\d+)\.tree(\d+)", None), (r"^level(\d+)\.root", (2,)), (r"^level(\d+)", (1,))]
        return {"stem": r"^base_layer", "blocks": r"^level(\d+)" if coarse else tree}

    def init_module(self, module: nn.Module, name: str) -> None:
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            reset_if_able(module)
