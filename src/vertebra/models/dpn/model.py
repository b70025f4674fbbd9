"""Dual Path Networks (Chen et al., NIPS 2017, arXiv:1707.01629).

A stage's map has two parts: the first channels are a residual path, to which every block adds; the others are a dense
path, to which every block appends. Parameter names are those of the published checkpoints.
b batch, c channels, h w height and width in pixels, k classes.
"""

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.fx
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, dropout

from vertebra.layers.activation import ActType, activate, activation
from vertebra.layers.dilation import dilate
from vertebra.layers.drop_path import drop_path, linear_rates
from vertebra.layers.pool import GlobalPool
from vertebra.layers.preactivation import BnAct, BnActConv
from vertebra.models.backbone import Backbone, FeatureStage, Stage, reset_if_able
from vertebra.models.dpn.config import DpnConfig
from vertebra.spec import VertebraError

BN_EPS = 1e-3


class Stem(nn.Module):
    """The convolution that sees the image; stride 2."""

    def __init__(self, config: DpnConfig) -> None:
        super().__init__()
        kernel, width = config.stem_kernel, config.stem_width
        self.conv = nn.Conv2d(config.in_chans, width, kernel, 2, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=BN_EPS)
        self.act: ActType | nn.Module = activation(config.act_layer)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d ho wo"]:
        return activate(self.bn(self.conv(x)), self.act)


class DualPathBlock(nn.Module):
    """1x1, grouped 3x3, 1x1, all with normalisation and ReLU before them (paper, eq. 5 to 9).

    `widen`, in a stage's first block, is the stride of a 1x1 convolution that makes both paths from the stage before.
    """

    def __init__(
        self, config: DpnConfig, stage: int, cin: int, drop: float, *, widen: int = 0, stride: int = 1, dilation: int
    ) -> None:
        super().__init__()
        self.residual, self.growth = config.residual_width << stage, config.growth[stage]
        mid = config.mid_width << stage
        preact = partial(BnActConv, eps=BN_EPS)
        # The published name tells the stride that the weights were trained with, not the one that dilation leaves.
        self.widen = f"c1x1_w_s{widen}" if widen else ""
        if widen:
            self.add_module(self.widen, preact(cin, self.residual + 2 * self.growth, stride=stride))
        self.c1x1_a = preact(cin, mid)
        self.c3x3_b = preact(mid, mid, 3, stride=stride, dilation=dilation, groups=config.groups)
        self.split_last = config.split_last
        if config.split_last:
            self.c1x1_c: BnAct | BnActConv = BnAct(mid, eps=BN_EPS)
            self.c1x1_c1 = nn.Conv2d(mid, self.residual, 1, bias=False)
            self.c1x1_c2 = nn.Conv2d(mid, self.growth, 1, bias=False)
        else:
            self.c1x1_c = preact(mid, self.residual + self.growth)
        self.drop_path = drop_path(drop)

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        h = self.c1x1_c(self.c3x3_b(self.c1x1_a(x)))
        if self.split_last:
            added, appended = self.c1x1_c1(h), self.c1x1_c2(h)
        else:
            added, appended = h[:, : self.residual], h[:, self.residual :]
        both = self.get_submodule(self.widen)(x) if self.widen else x
        kept, dense = both[:, : self.residual], both[:, self.residual :]
        return torch.cat((kept + self.drop_path(added), dense, appended), 1)


@torch.fx.wrap  # one opaque node where torch.fx traces the model; the sizes are proxies there
def window_means(x: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c ho wo"]:
    """Mean of every window of `side` by `side` pixels; a smaller map is one window."""
    return avg_pool2d(x, (min(side, x.shape[-2]), min(side, x.shape[-1])), stride=1)


class Dpn(Backbone):
    """Stages are the stem and conv2 to conv5, at strides 2 to 32."""

    config: DpnConfig

    def __init__(self, config: DpnConfig) -> None:
        super().__init__(config)
        plan = dilate((2, 2, 2, 2, 2), config.output_stride)
        rates = iter(linear_rates(config.drop_path_rate, sum(config.depths)))
        # The first block of conv2 has no stride: the pooling before it has.
        layers = OrderedDict[str, nn.Module](conv1_1=Stem(config), conv1_pool=nn.MaxPool2d(3, 2, padding=1))
        self.feature_info = [FeatureStage(num_chs=config.stem_width, reduction=2, module="features.conv1_1")]
        cin, reduction = config.stem_width, 2
        for stage, depth in enumerate(config.depths):
            stride, dilation = plan[stage + 1]
            reduction *= stride
            blocks = self._blocks(stage, cin, rates, stride if stage else 1, (plan[stage][1], dilation))
            layers |= blocks
            cin = (config.residual_width << stage) + (depth + 2) * config.growth[stage]
            self.feature_info.append(
                FeatureStage(num_chs=cin, reduction=reduction, module=f"features.conv{stage + 2}_{depth}")
            )
        layers["conv5_bn_ac"] = BnAct(cin, config.act_layer, eps=BN_EPS)
        self.features = nn.Sequential(layers)
        self.num_features = self.head_hidden_size = cin
        self.drop_rate = config.drop_rate
        self.reset_classifier(config.num_classes, config.global_pool)

    def _blocks(
        self, stage: int, cin: int, rates: Iterator[float], stride: int, dilations: tuple[int, int]
    ) -> dict[str, nn.Module]:
        """A stage's blocks by name. Its first 3x3 sees the map before the stride, and keeps that map's dilation."""
        blocks = dict[str, nn.Module]()
        growth = self.config.growth[stage]
        for i in range(self.config.depths[stage]):
            block = partial(DualPathBlock, self.config, stage, cin, next(rates))
            if i == 0:
                blocks[f"conv{stage + 2}_1"] = block(widen=2 if stage else 1, stride=stride, dilation=dilations[0])
                cin = (self.config.residual_width << stage) + 3 * growth
            else:
                blocks[f"conv{stage + 2}_{i + 1}"] = block(dilation=dilations[1])
                cin += growth
        return blocks

    def _names(self, stage: int) -> list[str]:
        """The modules of feature `stage`, in order."""
        if stage == 0:
            return ["conv1_1"]
        pool = ["conv1_pool"] if stage == 1 else []
        return pool + [f"conv{stage + 1}_{i + 1}" for i in range(self.config.depths[stage - 1])]

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x

    def steps(self) -> list[Stage]:
        return [partial(self._stage, stage) for stage in range(len(self.feature_info))]

    def _stage(self, stage: int, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d ho wo"]:
        for name in self._names(stage):
            x = self.features.get_submodule(name)(x)
        return x

    def normalize(self, state: Tensor, *, last: bool) -> Tensor:
        """It has the last stage's channels, and fits no other."""
        return self.features.get_submodule("conv5_bn_ac")(state) if last else state

    def drop_norm(self) -> None:
        self.features.conv5_bn_ac = self.place(nn.Identity())

    def drop_stages(self, keep: int) -> None:
        for stage in range(keep, len(self.feature_info)):
            for name in self._names(stage):
                delattr(self.features, name)
        if keep < len(self.feature_info):
            self.drop_norm()

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Tensor:
        if self.config.test_pool and self.num_classes > 0 and not (pre_logits or self.training):
            # 7x7 at stride 32: the last map of the 224 px that all checkpoints were trained at.
            logits = self.classifier(window_means(x, 7 * 32 // self.config.output_stride))
            return 0.5 * (logits.mean((2, 3)) + logits.amax((2, 3)))
        x = dropout(self.global_pool(x), self.drop_rate, self.training)
        return self.flatten(x if pre_logits else self.classifier(x))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            if self.config.test_pool and global_pool != "avg" and num_classes > 0:
                raise VertebraError(
                    f"test_pool averages windows and was given global_pool {global_pool!r}; use 'avg', or no test_pool"
                )
            self.global_pool = self.place(GlobalPool(global_pool))
            self.flatten: nn.Module = self.place(nn.Flatten(1) if global_pool else nn.Identity())
        self.declare_head(num_classes, self.global_pool.pool_type)
        self.head_hidden_size = self.num_features * self.global_pool.feature_multiple
        layer: nn.Module = nn.Conv2d(self.head_hidden_size, num_classes, 1) if num_classes > 0 else nn.Identity()
        self.classifier = self.place(layer)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^features\.conv(\d+)" if coarse else r"^features\.conv(\d+)_(\d+)"
        return {"stem": r"^features\.conv1", "blocks": [(blocks, None), (r"^features\.conv5_bn_ac", (99999,))]}

    def init_module(self, module: nn.Module, name: str) -> None:
        reset_if_able(module)
