"""Layers and helpers with the signatures that code written for timm calls them by.

b batch, c channels, h w height and width in pixels, n tokens, d embedding.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, pad
from torchvision.ops import FrozenBatchNorm2d

import vertebra
from vertebra.data import imagenet1k_labels
from vertebra.spec import VertebraError, unknown_name


def to_ntuple(n: int) -> Callable[[Any], tuple[Any, ...]]:
    """A function that repeats a single value `n` times and turns an iterable into a tuple of its own length."""

    def convert(x: Any) -> tuple[Any, ...]:
        if isinstance(x, Iterable) and not isinstance(x, str):
            return tuple(cast("Iterable[Any]", x))
        return (x,) * n

    return convert


to_2tuple, to_3tuple, to_4tuple = (to_ntuple(n) for n in (2, 3, 4))


def make_divisible(v: float, divisor: int = 8, min_value: int | None = None, round_limit: float = 0.9) -> int:
    """The multiple of `divisor` nearest to `v`, never less than `round_limit * v` nor than `min_value`."""
    nearest = max(min_value or divisor, int(v + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < round_limit * v else nearest


def drop_path(
    x: Float[Tensor, "b *rest"], drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True
) -> Float[Tensor, "b *rest"]:
    """Stochastic depth: whole samples become zero with probability `drop_prob`; the others keep the mean, if scaled."""
    if drop_prob == 0.0 or not training:
        return x
    keep = 1.0 - drop_prob
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    return x * (mask / keep if scale_by_keep and keep > 0.0 else mask)


class DropPath(nn.Module):
    """`drop_path` as a layer."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Float[Tensor, "b *rest"]) -> Float[Tensor, "b *rest"]:
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:g}"


class LayerScale(nn.Module):
    """x * gamma, gamma starting at `init_values`."""

    def __init__(self, dim: int, init_values: float = 1e-5, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class Mlp(nn.Module):
    """Two linear layers (`use_conv`: 1x1 convolutions) with an activation, and on demand a norm, between them."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        biases, drops = to_2tuple(bias), to_2tuple(drop)

        def linear(cin: int, cout: int, bias: bool) -> nn.Module:
            return nn.Conv2d(cin, cout, 1, bias=bias) if use_conv else nn.Linear(cin, cout, bias=bias)

        self.fc1 = linear(in_features, hidden, biases[0])
        self.act = act_layer()
        self.drop1 = nn.Dropout(drops[0])
        self.norm = norm_layer(hidden) if norm_layer is not None else nn.Identity()
        self.fc2 = linear(hidden, out_features or in_features, biases[1])
        self.drop2 = nn.Dropout(drops[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class PatchEmbed(nn.Module):
    """(b, c, h, w) -> (b, n, d), or the (b, d, rows, columns) map with `flatten=False`. Sizes are pixels.

    `img_size=None` or `strict_img_size=False` takes any size; `dynamic_img_pad` pads to whole patches with zeros.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[[int], nn.Module] | None = None,
        flatten: bool = True,
        bias: bool = True,
        strict_img_size: bool = True,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = to_2tuple(patch_size)
        self.img_size = None if img_size is None else to_2tuple(img_size)
        self.grid_size = (
            None
            if self.img_size is None
            else tuple(s // p for s, p in zip(self.img_size, self.patch_size, strict=True))
        )
        self.num_patches = None if self.grid_size is None else self.grid_size[0] * self.grid_size[1]
        self.flatten = flatten
        self.strict_img_size = strict_img_size
        self.dynamic_img_pad = dynamic_img_pad
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.patch_size, bias=bias)
        self.norm = norm_layer(embed_dim) if norm_layer is not None else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        rows, columns = self.patch_size
        if self.img_size is not None and self.strict_img_size and size != self.img_size:
            raise VertebraError(f"this PatchEmbed takes images of {self.img_size} pixels and was given {size}")
        if self.dynamic_img_pad:
            x = pad(x, (0, -size[1] % columns, 0, -size[0] % rows))
        elif size[0] % rows or size[1] % columns:
            raise VertebraError(f"an image of {size} pixels is no whole number of {self.patch_size} patches")
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2) if self.flatten else x)


_POOLS = ("", "avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax")


class SelectAdaptivePool2d(nn.Module):
    """(b, c, h, w) -> (b, c, *output_size), twice the channels for `catavgmax`; `''` pools nothing.

    The `fast` types are the same arithmetic at `output_size=1`. `flatten` drops the spatial axes.
    """

    def __init__(self, output_size: int | tuple[int, int] = 1, pool_type: str = "fast", flatten: bool = False) -> None:
        super().__init__()
        if pool_type not in _POOLS:
            raise unknown_name("pool_type", pool_type, _POOLS)
        if pool_type.startswith("fast") and output_size != 1:
            raise VertebraError(f"pool_type {pool_type!r} pools to one pixel; output_size={output_size} needs 'avg'")
        self.output_size = output_size
        self.pool_type = pool_type
        self.kind = (pool_type.removeprefix("fast") or "avg") if pool_type else ""
        self.flatten = nn.Flatten(1) if flatten else nn.Identity()

    def is_identity(self) -> bool:
        """Whether nothing is pooled."""
        return self.pool_type == ""

    def feat_mult(self) -> int:
        """How many times more channels come out than go in."""
        return 2 if self.kind == "catavgmax" else 1

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        if self.kind == "":
            return self.flatten(x)
        if self.kind == "avg":
            return self.flatten(adaptive_avg_pool2d(x, self.output_size))
        if self.kind == "max":
            return self.flatten(adaptive_max_pool2d(x, self.output_size))
        mean, peak = adaptive_avg_pool2d(x, self.output_size), adaptive_max_pool2d(x, self.output_size)
        return self.flatten(0.5 * (mean + peak) if self.kind == "avgmax" else torch.cat((mean, peak), 1))

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, pool_type={self.pool_type!r}"


_Norm = TypeVar("_Norm", nn.BatchNorm2d, FrozenBatchNorm2d)


def freeze_batch_norm_2d(module: nn.Module) -> nn.Module:
    """Every BatchNorm2d becomes torchvision's FrozenBatchNorm2d, in place; returns the module, or what replaces it."""
    return _replace(module, nn.BatchNorm2d, _frozen)


def unfreeze_batch_norm_2d(module: nn.Module) -> nn.Module:
    """The way back."""
    return _replace(module, FrozenBatchNorm2d, _thawed)


def _replace(module: nn.Module, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> nn.Module:
    if isinstance(module, kind):
        return by(module)
    for name, child in list(module.named_children()):
        setattr(module, name, _replace(child, kind, by))
    return module


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    return _take(frozen, norm)


def _thawed(frozen: FrozenBatchNorm2d) -> nn.BatchNorm2d:
    return _take(nn.BatchNorm2d(len(cast("Tensor", frozen.weight)), eps=frozen.eps), frozen)


def _take(target: _Norm, source: nn.Module) -> _Norm:
    target.to(cast("Tensor", source.running_mean))
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(source, name)
            if value is not None:
                getattr(target, name).copy_(value)
    return target.train(source.training)


class Absent(nn.Module):
    """Base of what others import, or derive from, and vertebra does not have."""

    stands_for: ClassVar[str]

    def __init__(self, *args: object, **options: object) -> None:
        families = ", ".join(vertebra.list_modules())
        raise VertebraError(
            f"{self.stands_for} is not in vertebra, which stands in for timm here; its families are {families}"
            "; for others run without vertebra.compat.timm.install()"
        )


class ImageNetInfo:
    """Names of ImageNet-1k's classes. Vertebra carries no WordNet numbers: a class is known by its name."""

    def __init__(self, subset: str = "imagenet-1k") -> None:
        if subset not in ("imagenet-1k", "imagenet1k"):
            raise VertebraError(f"vertebra has the names of 'imagenet-1k' only, not of {subset!r}")

    def num_classes(self) -> int:
        """1000."""
        return len(imagenet1k_labels())

    def label_names(self) -> list[str]:
        """Names in the order of the classes."""
        return list(imagenet1k_labels())

    def label_descriptions(self, as_dict: bool = False) -> list[str] | dict[str, str]:
        """The same names; `as_dict` keyed by `label_names`' entries."""
        names = self.label_names()
        return dict(zip(names, names, strict=True)) if as_dict else names

    def index_to_label_name(self, index: int) -> str:
        """The name of class `index`."""
        return imagenet1k_labels()[index]

    def index_to_description(self, index: int) -> str:
        """The same name."""
        return imagenet1k_labels()[index]


def infer_imagenet_subset(model_or_cfg: object) -> str | None:
    """`'imagenet-1k'` for 1,000 classes; None otherwise: vertebra has no other subset's names."""
    if isinstance(model_or_cfg, Mapping):
        count: object = cast("Mapping[str, object]", model_or_cfg).get("num_classes")
    else:
        count = getattr(model_or_cfg, "num_classes", None)
    return "imagenet-1k" if count == 1000 else None
