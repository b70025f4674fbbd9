"""RegNet X, Y, V and Z (Radosavovic et al., CVPR 2020, arXiv:2003.13678; Dollar et al., 2021, arXiv:2103.06877).

A stage is a run of equal bottlenecks. X: of ratio 1; Y adds squeeze-and-excitation; V normalises before convolutions;
Z is wider inside than outside, and adds only where nothing changes shape.
b batch, c channels, h w height and width in pixels.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from vertebra.layers.activation import ActType, activate, activation
from vertebra.layers.conv_norm_act import ConvNormAct
from vertebra.layers.dilation import dilate
from vertebra.layers.drop_path import drop_path, linear_rates
from vertebra.layers.head import ClassifierHead
from vertebra.layers.norm import MAP_NORMS, norm_maker
from vertebra.layers.squeeze_excite import SqueezeExcite
from vertebra.models.backbone import Backbone, FeatureStage, Stage, reset_if_able
from vertebra.models.regnet.config import RegNetConfig, StagePlan, plan_stages


def _unit(config: RegNetConfig, cin: int, cout: int, kernel: int = 1, *, act: bool = True, **spread: int) -> nn.Module:
    layer = config.act_layer if act else ""
    return ConvNormAct(cin, cout, kernel, act=layer, norm=config.norm_layer, **spread)


def _squeeze_excite(config: RegNetConfig, mid: int, cin: int) -> nn.Module:
    if config.se_ratio == 0:
        return nn.Identity()
    return SqueezeExcite(mid, round(cin * config.se_ratio), config.act_layer)


def around(config: RegNetConfig, conv: Callable[[int], nn.Module], stride: int, dilation: int) -> nn.Module:
    """What leads around a block that changes the map: a convolution, or one behind the mean of 2x2 pixels."""
    if config.downsample != "avg":
        return conv(stride)
    if stride > 1:
        return nn.Sequential(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), conv(1))
    # Where dilation took the stride's place, pixel by pixel.
    return nn.Sequential(SameAvgPool() if dilation > 1 else nn.Identity(), conv(1))


class SameAvgPool(nn.Module):
    """The mean of each 2x2 pixels; zeros stand right of and below the map, which keeps its size."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return avg_pool2d(pad(x, (0, 1, 0, 1)), 2, 1)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, squeeze-and-excitation (not X), 1x1."""

    def __init__(
        self, config: RegNetConfig, plan: StagePlan, cin: int, drop: float, *, stride: int, dilation: int
    ) -> None:
        super().__init__()
        mid, groups = plan.mid, plan.mid // plan.group_size
        self.conv1 = _unit(config, cin, mid)
        self.conv2 = _unit(config, mid, mid, 3, stride=stride, dilation=dilation, groups=groups)
        self.se = _squeeze_excite(config, mid, cin)
        self.conv3 = _unit(config, mid, plan.width, act=False)
        changes = stride > 1 or cin != plan.width
        self.adds = not changes or bool(config.downsample)
        conv = partial(_unit, config, cin, plan.width, 1, act=False)
        self.downsample = (
            around(config, lambda s: conv(stride=s), stride, dilation) if changes and self.adds else nn.Identity()
        )
        self.act: ActType | nn.Module = activation("" if config.linear_out else config.act_layer)
        self.drop_path = drop_path(drop) if self.adds else nn.Identity()

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        branch = self.conv3(self.se(self.conv2(self.conv1(x))))
        if self.adds:
            branch = self.drop_path(branch) + self.downsample(x)
        return activate(branch, self.act)


class PreactBottleneck(nn.Module):
    """The same with normalisation and activation before each convolution, and none behind the addition.

    What goes around the convolutions is normalised, too.
    """

    def __init__(
        self, config: RegNetConfig, plan: StagePlan, cin: int, drop: float, *, stride: int, dilation: int
    ) -> None:
        super().__init__()
        norm, mid = norm_maker(config.norm_layer, MAP_NORMS), plan.mid
        self.norm1 = norm(cin)
        self.conv1 = nn.Conv2d(cin, mid, 1, bias=False)
        self.norm2 = norm(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, dilation, dilation, mid // plan.group_size, bias=False)
        self.se = _squeeze_excite(config, mid, cin)
        self.norm3 = norm(mid)
        self.conv3 = nn.Conv2d(mid, plan.width, 1, bias=False)
        changes = stride > 1 or cin != plan.width
        self.adds = not changes or bool(config.downsample)
        self.downsample = (
            around(config, lambda s: nn.Conv2d(cin, plan.width, 1, s, bias=False), stride, dilation)
            if changes and self.adds
            else None
        )
        self.act: ActType | nn.Module = activation(config.act_layer)
        self.drop_path = drop_path(drop) if self.adds else nn.Identity()

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        h = activate(self.norm1(x), self.act)
        around = h if self.downsample is None else self.downsample(h)
        h = self.conv2(activate(self.norm2(self.conv1(h)), self.act))
        h = self.conv3(activate(self.norm3(self.se(h)), self.act))
        return self.drop_path(h) + around if self.adds else h


class RegNet(Backbone):
    """Stages are the stem and the line's four, at strides 2 to 32."""

    config: RegNetConfig

    def __init__(self, config: RegNetConfig) -> None:
        super().__init__(config)
        plans, width = plan_stages(config), config.stem_width
        strides = dilate((2,) * (len(plans) + 1), config.output_stride)
        rates = iter(linear_rates(config.drop_path_rate, config.depth))
        if config.preact:
            self.stem: nn.Module = nn.Conv2d(config.in_chans, width, 3, 2, 1, bias=False)
        else:
            self.stem = _unit(config, config.in_chans, width, 3, stride=2)
        self.feature_info = [FeatureStage(num_chs=width, reduction=2, module="stem")]
        cin, reduction = width, 2
        for i, plan in enumerate(plans, 1):
            reduction *= strides[i][0]
            # A stage's first 3x3 still sees the map before its stride: it keeps the dilation that map came with.
            self.add_module(f"s{i}", self._stage(plan, cin, rates, strides[i], strides[i - 1][1]))
            self.feature_info.append(FeatureStage(num_chs=plan.width, reduction=reduction, module=f"s{i}"))
            cin = plan.width
        self.final_conv: nn.Module = _unit(config, cin, config.num_features) if config.num_features else nn.Identity()
        ends = config.preact or config.linear_out
        self.final_act: ActType | nn.Module = activation(config.act_layer if ends and not config.num_features else "")
        self.num_features = config.num_features or cin
        self.drop_rate = config.drop_rate
        self.reset_classifier(config.num_classes, config.global_pool)

    def _stage(
        self, plan: StagePlan, cin: int, rates: Iterator[float], strides: tuple[int, int], first_dilation: int
    ) -> nn.Sequential:
        block = PreactBottleneck if self.config.preact else Bottleneck
        blocks = OrderedDict[str, nn.Module]()
        for i in range(1, plan.depth + 1):
            stride, dilation = (strides[0], first_dilation) if i == 1 else (1, strides[1])
            blocks[f"b{i}"] = block(self.config, plan, cin, next(rates), stride=stride, dilation=dilation)
            cin = plan.width
        return nn.Sequential(blocks)

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x

    def steps(self) -> list[Stage]:
        return [self.get_submodule(stage["module"]) for stage in self.feature_info]

    def finish(self, state: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        state = self.final_conv(state)
        # Not in place: without a convolution that state is a feature map, too.
        return state if self.final_act == "" else activate(state.clone(), self.final_act)

    def drop_stages(self, keep: int) -> None:
        for stage in self.feature_info[keep:]:
            delattr(self, stage["module"])

    def drop_norm(self) -> None:
        """A last convolution, with its normalisation: the head, which reads its channels, goes, too."""
        if self.config.num_features:
            self.drop_head()

    def drop_head(self) -> None:
        if self.config.num_features:
            self.num_features = self.feature_info[-1]["num_chs"]
        self.final_conv, self.final_act = self.place(nn.Identity()), ""
        self.reset_classifier(0, "")

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)  # which may be the caller's own

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        pool = self.head.global_pool.pool_type if global_pool is None else global_pool
        self.head = self.place(ClassifierHead(self.num_features, num_classes, pool, self.drop_rate), "head")
        self.declare_head(num_classes, pool)
        self.head_hidden_size = self.head.num_features

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^s(\d+)" if coarse else r"^s(\d+)\.b(\d+)"}

    def init_module(self, module: nn.Module, name: str) -> None:
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            reset_if_able(module)
            if re.search(r"conv3\.bn$", name) and isinstance(module.weight, nn.Parameter):
                nn.init.zeros_(module.weight)  # a block starts as the identity
        bias = module.bias if isinstance(module, nn.Conv2d | nn.Linear) else None
        if bias is not None:
            nn.init.zeros_(bias)
