"""RegNet X and Y (Radosavovic et al., CVPR 2020, arXiv:2003.13678): widths and depths on a line, quantised.

A stage is a run of equal bottlenecks of ratio 1, "X blocks"; Y adds squeeze-and-excitation.
b batch, c channels, h w height and width in pixels.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.conv_norm_act import ConvNormAct
from vertebra.layers.dilation import dilate
from vertebra.layers.drop_path import drop_path, linear_rates
from vertebra.layers.head import ClassifierHead
from vertebra.layers.squeeze_excite import SqueezeExcite
from vertebra.models.backbone import Backbone, FeatureStage, Stage, reset_if_able
from vertebra.spec import Family, ModelConfig, Preprocess, Variant, Weights

STEM_WIDTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RegNetConfig(ModelConfig):
    """The defaults are RegNetX-200MF. Block j of the network would be w0 + wa * j wide (paper, eq. 2)."""

    depth: int = 13
    """Blocks in all."""
    w0: int = 24
    wa: float = 36.44
    wm: float = 2.49
    """Widths are rounded to w0 * wm**s with a whole s (eq. 3, 4), then to multiples of 8: equal ones form a stage."""
    group_width: int = 8
    """Channels of a group in the 3x3 convolution; a narrower stage is one group."""
    se_ratio: float = 0.0
    """Channels inside a squeeze, for each that enters the block; 0: no squeeze-and-excitation (X)."""
    output_stride: int = 32
    """8 or 16: the last stages trade their stride for dilation."""

    first_conv: ClassVar[str] = "stem.conv"
    classifier: ClassVar[str] = "head.fc"
    default_out_indices: ClassVar[tuple[int, ...]] = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What the line says of one stage."""

    width: int
    depth: int
    group_width: int


def plan_stages(config: RegNetConfig) -> list[StagePlan]:
    """The stages of a config's line, in order (paper, section 3.3; widths are made divisible by the groups)."""
    depths = Counter[int]()
    for j in range(config.depth):
        exponent = round(math.log((config.w0 + config.wa * j) / config.w0) / math.log(config.wm))
        depths[round(config.w0 * config.wm**exponent / 8) * 8] += 1
    plans = list[StagePlan]()
    for width, depth in sorted(depths.items()):
        group = min(config.group_width, width)
        plans.append(StagePlan(round(width / group) * group, depth, group))
    return plans


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, squeeze-and-excitation (Y), 1x1; all of the block's width."""

    def __init__(
        self, config: RegNetConfig, plan: StagePlan, cin: int, drop: float, *, stride: int, dilation: int
    ) -> None:
        super().__init__()
        width = plan.width
        groups = width // plan.group_width
        self.conv1 = ConvNormAct(cin, width, act="relu")
        self.conv2 = ConvNormAct(width, width, 3, stride=stride, dilation=dilation, groups=groups, act="relu")
        self.se = SqueezeExcite(width, round(cin * config.se_ratio), "relu") if config.se_ratio > 0 else nn.Identity()
        self.conv3 = ConvNormAct(width, width)
        self.downsample = ConvNormAct(cin, width, stride=stride) if stride > 1 or cin != width else nn.Identity()
        self.drop_path = drop_path(drop)

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        branch = self.drop_path(self.conv3(self.se(self.conv2(self.conv1(x)))))
        return torch.relu_(branch.add_(self.downsample(x)))


class RegNet(Backbone):
    """Stages are the stem and the line's four, at strides 2 to 32."""

    config: RegNetConfig

    def __init__(self, config: RegNetConfig) -> None:
        super().__init__(config)
        plans = plan_stages(config)
        strides = dilate((2,) * (len(plans) + 1), config.output_stride)
        rates = iter(linear_rates(config.drop_path_rate, config.depth))
        self.stem = ConvNormAct(config.in_chans, STEM_WIDTH, 3, stride=2, act="relu")
        self.feature_info = [FeatureStage(num_chs=STEM_WIDTH, reduction=2, module="stem")]
        cin, reduction = STEM_WIDTH, 2
        for i, plan in enumerate(plans, 1):
            reduction *= strides[i][0]
            # A stage's first 3x3 still sees the map before its stride: it keeps the dilation that map came with.
            self.add_module(f"s{i}", self._stage(plan, cin, rates, strides[i], strides[i - 1][1]))
            self.feature_info.append(FeatureStage(num_chs=plan.width, reduction=reduction, module=f"s{i}"))
            cin = plan.width
        self.num_features = cin
        self.reset_classifier(config.num_classes, config.global_pool)

    def _stage(
        self, plan: StagePlan, cin: int, rates: Iterator[float], strides: tuple[int, int], first_dilation: int
    ) -> nn.Sequential:
        blocks = OrderedDict[str, nn.Module]()
        for i in range(1, plan.depth + 1):
            stride, dilation = (strides[0], first_dilation) if i == 1 else (1, strides[1])
            blocks[f"b{i}"] = Bottleneck(self.config, plan, cin, next(rates), stride=stride, dilation=dilation)
            cin = plan.width
        return nn.Sequential(blocks)

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x

    def steps(self) -> list[Stage]:
        return [self.get_submodule(stage["module"]) for stage in self.feature_info]

    def drop_stages(self, keep: int) -> None:
        for stage in self.feature_info[keep:]:
            delattr(self, stage["module"])

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)  # which may be the caller's own

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        pool = self.head.global_pool.pool_type if global_pool is None else global_pool
        self.head = ClassifierHead(self.num_features, num_classes, pool, self.drop_rate)
        self.place(self.head)
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
            if name.endswith("conv3.bn") and isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.weight)  # a block starts as the identity
        bias = module.bias if isinstance(module, nn.Conv2d | nn.Linear) else None
        if bias is not None:
            nn.init.zeros_(bias)


def _variant(
    se_ratio: float, depth: int, w0: int, wa: float, wm: float, group_width: int, cost: tuple[int, float, float]
) -> Variant:
    """Columns of the paper's tables of models; `cost`: parameters, 10^9 MACs, 10^6 activations at 224 px."""
    return Variant(RegNetConfig(depth=depth, w0=w0, wa=wa, wm=wm, group_width=group_width, se_ratio=se_ratio), *cost)


VARIANTS = {
    "regnetx_002": _variant(0.0, 13, 24, 36.44, 2.49, 8, (2_684_792, 0.2, 2.16)),
    "regnetx_004": _variant(0.0, 22, 24, 24.48, 2.54, 16, (5_157_512, 0.4, 3.14)),
    "regnetx_006": _variant(0.0, 16, 48, 36.97, 2.24, 24, (6_196_040, 0.61, 3.98)),
    "regnetx_008": _variant(0.0, 16, 56, 35.73, 2.28, 16, (7_259_656, 0.81, 5.15)),
    "regnetx_016": _variant(0.0, 18, 80, 34.01, 2.25, 24, (9_190_136, 1.62, 7.93)),
    "regnetx_032": _variant(0.0, 25, 88, 26.31, 2.25, 48, (15_296_552, 3.2, 11.37)),
    "regnetx_040": _variant(0.0, 23, 96, 38.65, 2.43, 40, (22_118_248, 3.99, 12.2)),
    "regnetx_064": _variant(0.0, 17, 184, 60.83, 2.07, 56, (26_209_256, 6.49, 16.37)),
    "regnetx_080": _variant(0.0, 23, 80, 49.56, 2.88, 120, (39_572_648, 8.02, 14.06)),
    "regnetx_120": _variant(0.0, 19, 168, 73.36, 2.37, 112, (46_106_056, 12.13, 21.37)),
    "regnetx_160": _variant(0.0, 22, 216, 55.59, 2.1, 128, (54_278_536, 15.99, 25.52)),
    "regnetx_320": _variant(0.0, 23, 320, 69.86, 2.0, 168, (107_811_560, 31.81, 36.3)),
    "regnety_002": _variant(0.25, 13, 24, 36.44, 2.49, 8, (3_162_996, 0.2, 2.17)),
    "regnety_004": _variant(0.25, 16, 48, 27.89, 2.09, 8, (4_344_144, 0.41, 3.89)),
    "regnety_006": _variant(0.25, 15, 48, 32.54, 2.32, 16, (6_055_160, 0.61, 4.33)),
    "regnety_008": _variant(0.25, 14, 56, 38.84, 2.4, 16, (6_263_168, 0.81, 5.25)),
    "regnety_016": _variant(0.25, 27, 48, 20.71, 2.65, 24, (11_202_430, 1.63, 8.04)),
    "regnety_032": _variant(0.25, 21, 80, 42.63, 2.66, 24, (19_436_338, 3.2, 11.26)),
    "regnety_040": _variant(0.25, 22, 96, 31.41, 2.24, 64, (20_646_656, 4.0, 12.29)),
    "regnety_064": _variant(0.25, 25, 112, 33.22, 2.27, 72, (30_583_252, 6.39, 16.41)),
    "regnety_080": _variant(0.25, 17, 192, 76.82, 2.19, 56, (39_180_068, 8.0, 17.97)),
    "regnety_120": _variant(0.25, 19, 168, 73.36, 2.37, 112, (51_822_544, 12.14, 21.38)),
    "regnety_160": _variant(0.25, 18, 200, 106.23, 2.48, 112, (83_590_140, 15.96, 23.04)),
    "regnety_320": _variant(0.25, 20, 232, 115.89, 2.53, 232, (145_046_770, 32.34, 30.26)),
}

_DEIT_TEACHER = Weights(
    hub="timm/regnety_160.deit_in1k",
    url="https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth",
    license="apache-2.0",
    preprocess=Preprocess(crop_pct=0.95, test_input_size=(3, 288, 288), test_crop_pct=1.0, pool_size=(7, 7)),
    paper="arXiv:2012.12877",
    source="https://github.com/facebookresearch/deit",
)

_TV2 = Preprocess(crop_pct=0.965, pool_size=(7, 7))
_RA = Preprocess(crop_pct=0.95, test_input_size=(3, 288, 288), test_crop_pct=1.0, pool_size=(7, 7))


def _later(name: str, file: str | None = None) -> tuple[str, Weights]:
    """A checkpoint trained after the paper's, which the bare name means: `tv2` is torchvision's second recipe."""
    tv2 = name.endswith(".tv2_in1k")
    origin = (
        "https://download.pytorch.org/models"
        if tv2
        else "https://github.com/huggingface/pytorch-image-models/releases/download"
    )
    return name, Weights(
        hub=f"timm/{name}",
        url=f"{origin}/{file}" if file else None,
        license="bsd-3-clause" if tv2 else "apache-2.0",
        preprocess=_TV2 if tv2 else _RA,
        paper="arXiv:2003.13678",
        source="https://github.com/pytorch/vision" if tv2 else "https://github.com/huggingface/pytorch-image-models",
    )


_LATER = dict(
    [
        _later("regnetx_008.tv2_in1k", "regnet_x_800mf-94a99ebd.pth"),
        _later("regnetx_016.tv2_in1k", "regnet_x_1_6gf-a12f2b72.pth"),
        _later("regnetx_032.tv2_in1k", "regnet_x_3_2gf-7071aa85.pth"),
        _later("regnetx_080.tv2_in1k", "regnet_x_8gf-2b70d774.pth"),
        _later("regnetx_160.tv2_in1k", "regnet_x_16gf-ba3796d7.pth"),
        _later("regnetx_320.tv2_in1k", "regnet_x_32gf-6eb8fdc6.pth"),
        _later("regnety_004.tv2_in1k", "regnet_y_400mf-e6988f5f.pth"),
        _later("regnety_016.tv2_in1k", "regnet_y_1_6gf-0d7bc02a.pth"),
        _later("regnety_320.tv2_in1k", "regnet_y_32gf-8db6d4b5.pth"),
        _later("regnety_032.ra_in1k", "v0.1-weights/regnety_032_ra-7f2439f9.pth"),
        _later("regnety_040.ra3_in1k", "v0.1-tpu-weights/regnety_040_ra3-670e1166.pth"),
        _later("regnety_064.ra3_in1k", "v0.1-tpu-weights/regnety_064_ra3-aa26dc7d.pth"),
        _later("regnety_080.ra3_in1k", "v0.1-tpu-weights/regnety_080_ra3-1fdc4344.pth"),
        _later("regnety_120.sw_in12k_ft_in1k"),
        _later("regnety_160.sw_in12k_ft_in1k"),
    ]
)

WEIGHTS = {**_LATER, "regnety_160.deit_in1k": _DEIT_TEACHER} | {
    f"{name}.pycls_in1k": Weights(
        hub=f"timm/{name}.pycls_in1k",
        license="mit",
        preprocess=Preprocess(pool_size=(7, 7)),
        paper="arXiv:2003.13678",
        source="https://github.com/facebookresearch/pycls",
    )
    for name in VARIANTS
}

FAMILY = Family(name="regnet", build=RegNet, variants=VARIANTS, weights=WEIGHTS)
