"""Deep Layer Aggregation (Yu et al., CVPR 2018, arXiv:1707.06484).

A stride-2 stage is a binary tree of residual blocks; a root convolution fuses the blocks below it (hierarchical deep
aggregation). Parameter names are those of the authors' checkpoints.

b batch, c channels, h w height and width in pixels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from vertebra.layers.dilation import dilate
from vertebra.layers.drop_path import drop_path, linear_rates
from vertebra.layers.pool import GlobalPool
from vertebra.models.backbone import Backbone, FeatureStage, Stage, reset_if_able
from vertebra.spec import Accuracy, Family, ModelConfig, Preprocess, TrainedWith, Variant, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class DlaConfig(ModelConfig):
    """The defaults are DLA-60."""

    depths: tuple[int, ...] = (1, 1, 1, 2, 3, 1)
    """Levels 0-1: number of plain convolutions. Levels 2-5: depth of the level's tree."""
    channels: tuple[int, ...] = (16, 32, 128, 256, 512, 1024)
    block: Literal["basic", "bottleneck", "res2"] = "bottleneck"
    groups: int = 1
    group_width: int = 64
    """Channels of a group in a bottleneck, for every 64 that the block puts out, before halving."""
    residual_root: bool = False
    """Add the last block's output to the root's."""
    output_stride: int = 32
    """8 or 16: the last levels trade their stride for dilation."""

    first_conv: ClassVar[str] = "base_layer.0"
    classifier: ClassVar[str] = "fc"
    default_out_indices: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5)


def conv3x3(cin: int, cout: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """Without bias; the map keeps its size but for the stride."""
    return nn.Conv2d(cin, cout, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)


def bottleneck_width(config: DlaConfig, cout: int) -> int:
    """Channels of one 3x3 convolution inside a bottleneck that puts out `cout`."""
    return int(math.floor(cout * config.group_width / 64) * config.groups) // 2


class Block(nn.Module):
    """A residual block; `shortcut` overrides its input on the identity branch."""

    drop_path: nn.Module

    def branch(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        """The residual branch, without the addition."""
        raise AssertionError("a block defines its branch")

    def forward(self, x: Float[Tensor, "b cin h w"], shortcut: Tensor | None = None) -> Float[Tensor, "b cout ho wo"]:
        return torch.relu_(self.drop_path(self.branch(x)).add_(x if shortcut is None else shortcut))


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    def __init__(self, config: DlaConfig, cin: int, cout: int, stride: int, dilation: int, drop: float) -> None:
        super().__init__()
        self.conv1 = conv3x3(cin, cout, stride, dilation)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = conv3x3(cout, cout, 1, dilation)
        self.bn2 = nn.BatchNorm2d(cout)
        self.drop_path = drop_path(drop)

    def branch(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        return self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))


class Bottleneck(Block):
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

    def branch(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class Res2Block(Block):
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

    def branch(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        first, *middle, last = torch.relu_(self.bn1(self.conv1(x))).split(self.width, 1)
        outs = list[Tensor]()
        for part, conv, bn in zip((first, *middle), self.convs, self.bns, strict=True):
            source = outs[-1] + part if self.cascade and outs else part
            outs.append(torch.relu_(bn(conv(source))))
        return self.bn3(self.conv3(torch.cat((*outs, self.pool(last)), 1)))


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck, "res2": Res2Block}


class Root(nn.Module):
    """The aggregation node (paper, eq. 2): one 1x1 convolution over everything that ends here."""

    def __init__(self, cin: int, cout: int, residual: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 1, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.residual = residual

    def forward(self, inputs: list[Tensor]) -> Float[Tensor, "b c h w"]:
        x = self.bn(self.conv(torch.cat(inputs, 1)))
        return torch.relu_(x.add_(inputs[0]) if self.residual else x)


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
        self.downsample = nn.MaxPool2d(stride, stride) if stride > 1 else nn.Identity()
        if depth == 1:
            block = partial(BLOCKS[config.block], config, dilation=dilation)
            self.project = (
                nn.Sequential(nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))
                if cin != cout
                else nn.Identity()
            )
            self.tree1 = block(cin=cin, cout=cout, stride=stride, drop=next(rates))
            self.tree2 = block(cin=cout, cout=cout, stride=1, drop=next(rates))
            self.root = Root(2 * cout + inherited, cout, config.residual_root)
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
        rates = iter(linear_rates(config.drop_path_rate, sum(2**d for d in config.depths[2:])))
        self.base_layer = nn.Sequential(
            nn.Conv2d(config.in_chans, widths[0], 7, padding=3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(True)
        )
        self.level0 = self._plain(widths[0], widths[0], config.depths[0], 1)
        self.level1 = self._plain(widths[0], widths[1], config.depths[1], 2)
        for level in range(2, 6):
            stride, dilation = plan[level]
            cin, cout, depth = widths[level - 1], widths[level], config.depths[level]
            tree = Tree(config, depth, cin, cout, rates, stride=stride, dilation=dilation, keep_input=level > 2)
            self.add_module(f"level{level}", tree)
        self.feature_info = [
            FeatureStage(num_chs=c, reduction=min(2**i, config.output_stride), module=f"level{i}")
            for i, c in enumerate(widths)
        ]
        self.num_features = self.head_hidden_size = widths[-1]
        self.reset_classifier(config.num_classes, config.global_pool)

    @staticmethod
    def _plain(cin: int, cout: int, count: int, stride: int) -> nn.Sequential:
        layers = list[nn.Module]()
        for i in range(count):
            layers += [conv3x3(cin if i == 0 else cout, cout, stride if i == 0 else 1)]
            layers += [nn.BatchNorm2d(cout), nn.ReLU(True)]
        return nn.Sequential(*layers)

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return self.base_layer(x)

    def stages(self) -> list[Stage]:
        return [self.get_submodule(f"level{i}") for i in range(len(self.feature_info))]

    def drop_stages(self, keep: int) -> None:
        for level in range(keep, len(self.feature_info)):
            delattr(self, f"level{level}")

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Tensor:
        x = dropout(self.global_pool(x), self.drop_rate, self.training)
        x = x if pre_logits else self.fc(x)
        return x.flatten(1) if self.global_pool.pool_type else x

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = GlobalPool(global_pool)
        width = self.num_features * self.global_pool.feature_multiple
        self.fc = self.place(nn.Conv2d(width, num_classes, 1)) if num_classes > 0 else nn.Identity()

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


_DLA34 = DlaConfig(block="basic", depths=(1, 1, 1, 2, 2, 1), channels=(16, 32, 64, 128, 256, 512))
_COMPACT = DlaConfig(channels=(16, 32, 64, 64, 128, 256))
_DLA60 = DlaConfig()
_DLA102 = DlaConfig(depths=(1, 1, 1, 3, 4, 1), residual_root=True)

VARIANTS = {
    "dla34": Variant(_DLA34, params=15_742_104, gmacs=3.07, macts=5.02),
    "dla46_c": Variant(replace(_COMPACT, depths=(1, 1, 1, 2, 2, 1)), params=1_301_400, gmacs=0.58, macts=4.5),
    "dla46x_c": Variant(
        replace(_COMPACT, depths=(1, 1, 1, 2, 2, 1), groups=32, group_width=4), params=1_068_440, gmacs=0.54, macts=5.66
    ),
    "dla60": Variant(_DLA60, params=22_036_632, gmacs=4.26, macts=10.16),
    "dla60_res2net": Variant(replace(_DLA60, block="res2", group_width=28), params=20_848_072, gmacs=4.15, macts=12.34),
    "dla60_res2next": Variant(
        replace(_DLA60, block="res2", groups=8, group_width=4), params=17_032_984, gmacs=3.49, macts=13.17
    ),
    "dla60x": Variant(replace(_DLA60, groups=32, group_width=4), params=17_352_344, gmacs=3.54, macts=13.8),
    "dla60x_c": Variant(replace(_COMPACT, groups=32, group_width=4), params=1_319_832, gmacs=0.59, macts=6.01),
    "dla102": Variant(_DLA102, params=33_268_888, gmacs=7.19, macts=14.18),
    "dla102x": Variant(replace(_DLA102, groups=32, group_width=4), params=26_309_272, gmacs=5.89, macts=19.42),
    "dla102x2": Variant(replace(_DLA102, groups=64, group_width=4), params=41_282_200, gmacs=9.34, macts=29.91),
    "dla169": Variant(replace(_DLA102, depths=(1, 1, 2, 3, 5, 1)), params=53_389_720, gmacs=11.6, macts=20.2),
}

_AUTHORS_RECIPE = TrainedWith(learning_rate=0.1, epochs=120, batch_size=256, momentum=0.9, weight_decay=1e-4)


def _row(
    name: str, file: str, top1: float, top5: float, recipe: TrainedWith | None = _AUTHORS_RECIPE
) -> tuple[str, Weights]:
    """A checkpoint of the authors, or (no recipe known) one of Res2Net's, which states no licence."""
    authors = recipe is not None
    releases = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-res2net/"
    return name, Weights(
        hub=f"timm/{name}",
        url=("http://dl.yf.io/dla/models/imagenet/" if authors else releases) + file,
        license="bsd-3-clause" if authors else "unknown",
        preprocess=Preprocess(interpolation="bilinear", pool_size=(7, 7)),
        accuracy=(Accuracy(top1, top5, 224),),
        paper="arXiv:1707.06484" if authors else "arXiv:1904.01169",
        source="https://github.com/ucbdrive/dla" if authors else "https://github.com/gasvn/Res2Net",
        trained_with=recipe,
    )


WEIGHTS = dict(
    [
        _row("dla34.in1k", "dla34-ba72cf86.pth", 74.632, 92.052),
        _row("dla46_c.in1k", "dla46_c-2bfd52c3.pth", 64.88, 86.33),
        _row("dla46x_c.in1k", "dla46x_c-d761bae7.pth", 66.008, 86.946),
        _row("dla60.in1k", "dla60-24839fc4.pth", 77.036, 93.316, replace(_AUTHORS_RECIPE, dropout=0.2)),
        _row("dla60_res2net.in1k", "res2net_dla60_4s-d88db7f9.pth", 78.48, 94.204, None),
        _row("dla60_res2next.in1k", "res2next_dla60_4s-d327927b.pth", 78.488, 94.144, None),
        _row("dla60x.in1k", "dla60x-d15cacda.pth", 78.234, 94.022),
        _row("dla60x_c.in1k", "dla60x_c-b870c45c.pth", 67.928, 88.426),
        _row("dla102.in1k", "dla102-d94d9790.pth", 78.016, 93.952),
        _row("dla102x.in1k", "dla102x-ad62be81.pth", 78.516, 94.226),
        _row("dla102x2.in1k", "dla102x2-262837b6.pth", 79.448, 94.654),
        _row("dla169.in1k", "dla169-0914e092.pth", 78.702, 94.334),
    ]
)

FAMILY = Family(
    name="dla",
    build=Dla,
    variants=VARIANTS,
    weights=WEIGHTS,
    unused={
        r"^level\d(\.tree\d)*\.project\.": "a tree of depth > 1 holds a projection that no forward pass reads",
    },
)
