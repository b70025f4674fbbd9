"""Layers under the convention's signatures: the same parameters, the same arithmetic as the reference's."""

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import timm.utils.model
import torch
from torch import Tensor, nn

import vertebra
from vertebra.compat import parts


def same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x.clone()), theirs.eval()(x.clone()))


TOKENS = (2, 5, 8)
IMAGE = (2, 8, 12, 20)
CASES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "mlp": ("Mlp", (8,), {}, TOKENS),
    "mlp, wide": ("Mlp", (8, 24, 6), {"act_layer": nn.ReLU, "norm_layer": nn.LayerNorm, "bias": (False, True)}, TOKENS),
    "mlp, map": ("Mlp", (8, 16), {"use_conv": True, "drop": (0.1, 0.2)}, IMAGE),
    "scale": ("LayerScale", (8,), {"init_values": 0.3}, TOKENS),
    "scale, in place": ("LayerScale", (8,), {"inplace": True}, TOKENS),
    "patches": ("PatchEmbed", (), {"img_size": (12, 20), "patch_size": 4, "in_chans": 8, "embed_dim": 6}, IMAGE),
    "patches, padded": (
        "PatchEmbed",
        (None, 5, 8, 6),
        {"norm_layer": nn.LayerNorm, "bias": False, "dynamic_img_pad": True},
        IMAGE,
    ),
    "patches, a map": (
        "PatchEmbed",
        (224, 4, 8, 6),
        {"flatten": False, "strict_img_size": False},
        IMAGE,
    ),
    "drop path": ("DropPath", (0.3,), {}, TOKENS),
    **{
        f"pool {kind!r} {flat}": ("SelectAdaptivePool2d", (), {"pool_type": kind, "flatten": flat}, IMAGE)
        for kind in ("", "fast", "avg", "max", "avgmax", "catavgmax", "fastmax", "fastavgmax", "fastcatavgmax")
        for flat in (False, True)
    },
    "pool to 2x3": ("SelectAdaptivePool2d", ((2, 3),), {"pool_type": "avgmax"}, IMAGE),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_is_the_references(case: str) -> None:
    name, args, options, shape = CASES[case]
    ours, theirs = (getattr(home, name)(*args, **options) for home in (parts, timm.layers))
    same(ours, theirs, torch.randn(shape))


@pytest.mark.parametrize("kind", ["avg", "catavgmax", ""])
def test_pool_describes_itself(kind: str) -> None:
    ours, theirs = parts.SelectAdaptivePool2d(pool_type=kind), timm.layers.SelectAdaptivePool2d(pool_type=kind)
    assert (ours.feat_mult(), ours.is_identity()) == (theirs.feat_mult(), theirs.is_identity())


@pytest.mark.parametrize("size", [(None, 16), (33, 16), ((32, 64), (16, 8))])
def test_patch_embed_counts_its_patches(size: tuple[Any, Any]) -> None:
    ours, theirs = parts.PatchEmbed(*size), timm.layers.PatchEmbed(*size)
    for name in ("img_size", "patch_size", "grid_size", "num_patches"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("scaled", [True, False])
def test_drop_path_drops_whole_samples(scaled: bool) -> None:
    x = torch.ones(4000, 3)
    out = parts.DropPath(0.25, scale_by_keep=scaled).train()(x)
    assert (out == out[:, :1]).all()
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75 if scaled else 1.0).item()}
    assert abs((out[:, 0] > 0).float().mean().item() - 0.75) < 0.03
    assert parts.drop_path(x, 0.25, training=False) is x
    assert not parts.drop_path(x, 1.0, training=True).any()


@pytest.mark.parametrize("value", [3, (1, 2, 3), [4, 5], "ab", 2.5])
@pytest.mark.parametrize("name", ["to_2tuple", "to_3tuple", "to_4tuple"])
def test_tuples(name: str, value: object) -> None:
    assert getattr(parts, name)(value) == getattr(timm.layers, name)(value)


def test_make_divisible() -> None:
    for value in [*range(1, 200), 33.3]:
        for options in ({}, {"divisor": 16}, {"min_value": 32}, {"round_limit": 0.0}):
            assert parts.make_divisible(value, **options) == timm.layers.make_divisible(value, **options)


@pytest.mark.parametrize(
    "build",
    [
        lambda: parts.SelectAdaptivePool2d(pool_type="mean"),
        lambda: parts.SelectAdaptivePool2d(2, "fast"),
        lambda: parts.PatchEmbed(32, 16)(torch.zeros(1, 3, 32, 48)),
        lambda: parts.PatchEmbed(None, 16)(torch.zeros(1, 3, 32, 40)),
        lambda: parts.ImageNetInfo("imagenet-22k"),
    ],
)
def test_refusals(build: Callable[[], object]) -> None:
    with pytest.raises(vertebra.VertebraError):
        build()


def test_freezing_batch_norm_and_back(unchecked_shapes: None) -> None:
    model = vertebra.create_model("dla34", num_classes=2)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    x = torch.randn(2, 3, 32, 32)
    before = model.eval()(x)
    frozen = parts.freeze_batch_norm_2d(model)
    assert frozen is model
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.testing.assert_close(model.train()(x), before, rtol=1e-4, atol=1e-4)
    parts.unfreeze_batch_norm_2d(model)
    torch.testing.assert_close(model.eval()(x), before, rtol=1e-4, atol=1e-4)
    lone = parts.freeze_batch_norm_2d(nn.BatchNorm2d(3))
    assert type(lone).__name__ == type(timm.utils.model.freeze_batch_norm_2d(nn.BatchNorm2d(3))).__name__.replace(
        "Act", ""
    )


def test_names_of_classes() -> None:
    info, theirs = parts.ImageNetInfo(), timm.data.ImageNetInfo()
    described = info.label_descriptions(as_dict=True)
    assert [described[name] for name in info.label_names()] == info.label_names() == info.label_descriptions()
    assert (info.num_classes(), info.index_to_description(1)) == (theirs.num_classes(), "goldfish")
    ours = [parts.infer_imagenet_subset({"num_classes": n}) for n in (1000, 10)]
    assert ours == [timm.data.infer_imagenet_subset({"num_classes": n}) for n in (1000, 10)]
    assert parts.infer_imagenet_subset(vertebra.create_model("dla34", device="meta")) == "imagenet-1k"
