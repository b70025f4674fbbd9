"""The promises that concern how a model is run and built upon: sizes, strides, tracers, aggregation, freezing."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import vertebra
from tests.contract.subject import keeps
from tests.zoo import SAMPLE, has_option, is_transformer, random_state, relative, small_model, small_size
from vertebra.hub.fit import adapt_input
from vertebra.hub.registry import REGISTRY
from vertebra.spec import VertebraError

CNNS = [arch for arch in SAMPLE if not is_transformer(arch)]
TRANSFORMERS = [arch for arch in SAMPLE if is_transformer(arch)]
ODD = (45, 71)
LIGHT = 8_000_000
"""Up to so many parameters a model is filled and its values are compared; a larger one of the same blocks stays on
`meta`, where the same graph is traced and the same formats and shapes come out."""


def is_light(arch: str) -> bool:
    return REGISTRY.variant(arch).params < LIGHT


def filled(arch: str, **options: Any) -> Any:
    model = small_model(arch, num_classes=5, **options).eval()
    model.load_state_dict(random_state(model.state_dict()))
    return model


@pytest.mark.parametrize("arch", CNNS)
def test_any_size(arch: str) -> None:
    """Odd, not square: a map's side is the image's over its reduction, rounded up or down by less than a pixel."""
    extractor = vertebra.create_model(arch, features_only=True, device="meta").eval()
    for size in (ODD, (32, 32), (33, 96)):
        maps = extractor(torch.empty(1, 3, *size, device="meta"))
        for level, reduction in zip(maps, extractor.feature_info.reduction(), strict=True):
            for side, pixels in zip(level.shape[-2:], size, strict=True):
                assert side in (pixels // reduction, -(-pixels // reduction)), (size, reduction, level.shape)


@pytest.mark.parametrize("arch", TRANSFORMERS)
def test_any_size_of_tokens(arch: str) -> None:
    """At creation, and at run time on `dynamic_img_size`; `dynamic_img_pad` takes what is no whole patch."""
    patch = REGISTRY.variant(arch).config.patch_size  # type: ignore[attr-defined]
    size = (3 * patch, 5 * patch)
    few = {} if is_light(arch) else {"depth": 2}  # every block is like the others, and none sees the image's size
    fixed = filled(arch, img_size=size, **few)
    free = filled(arch, img_size=4 * patch, dynamic_img_size=True, dynamic_img_pad=True, **few)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert fixed(x).shape == free(x).shape == (1, 5)
        cut = x[..., : size[0] - 3, : size[1] - 5]
        padded = nn.functional.pad(cut, (0, 5, 0, 3))
        torch.testing.assert_close(free(cut), free(padded))
        _, maps = free.forward_intermediates(cut, indices=1)
    assert maps[0].shape[-2:] == (3, 5)
    with pytest.raises(VertebraError, match="img_size"):
        fixed(cut)


@pytest.mark.parametrize("arch", [arch for arch in SAMPLE if keeps(arch, "output_stride")])
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride(arch: str, stride: int) -> None:
    """The same parameters, maps no smaller than the stride allows, and the shapes that `feature_info` announces."""
    plain = vertebra.create_model(arch, device="meta")
    dense = vertebra.create_model(arch, output_stride=stride, device="meta").eval()
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in dense.state_dict().items()}
    maps = dense.forward_intermediates(torch.empty(1, 3, 96, 64, device="meta"), intermediates_only=True)
    for level, info in zip(maps, dense.feature_info, strict=True):
        assert info["reduction"] <= stride
        assert level.shape[1:] == (info["num_chs"], 96 // info["reduction"], 64 // info["reduction"])


@pytest.mark.parametrize("arch", [arch for arch in SAMPLE if has_option(arch, "output_stride")])
def test_output_stride_refuses_others(arch: str) -> None:
    with pytest.raises(VertebraError, match="8, 16, 32"):
        vertebra.create_model(arch, output_stride=12, device="meta")


@pytest.mark.parametrize("arch", SAMPLE)
def test_thirteen_channels_from_three(arch: str) -> None:
    """Every number of channels: the stem's weight is converted, and equal channels give what they gave before."""
    for chans in range(1, 14):
        model = small_model(arch, in_chans=chans, device="meta")
        stem = model.get_parameter(f"{model.config.first_conv}.weight")
        three = torch.rand(stem.shape[0], 3, *stem.shape[2:])
        adapted = adapt_input(three, chans)
        assert adapted.shape == stem.shape
        expected = three.sum(1) if chans != 3 else adapted.sum(1)
        if chans % 3 == 0 or chans == 1:
            torch.testing.assert_close(adapted.sum(1), expected)


@pytest.mark.parametrize("arch", SAMPLE)
@pytest.mark.parametrize("kind", ["ida", "hda"])
def test_aggregate(arch: str, kind: str) -> None:
    """One map at stride 4 on `meta`; gradients reach the first convolution (checked with values on small models)."""
    height, width = small_size(arch)
    model = vertebra.aggregate(small_model(arch, device="meta"), kind, out_stride=4, channels=16).eval()
    assert model(torch.empty(2, 3, height, width, device="meta")).shape == (2, 16, -(-height // 4), -(-width // 4))


@pytest.mark.parametrize("arch", SAMPLE)
def test_freezing_by_depth(arch: str) -> None:
    model = small_model(arch, device="meta")
    groups = vertebra.layer_groups(model, coarse=True)
    assert sorted(name for group in groups for name in group) == sorted(name for name, _ in model.named_parameters())
    frozen = set(vertebra.freeze(model, 2))
    assert frozen == {name for group in groups[:2] for name in group}
    assert f"{model.config.first_conv}.weight" in frozen
    assert not any(name.startswith(model.config.classifiers) for name in frozen)
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training != (f"{name}.weight" in frozen)
    vertebra.freeze(model, 0)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("arch", SAMPLE)
def test_torchvision_extracts_features(arch: str, unchecked_shapes: None) -> None:
    """torch.fx traces the model; the node named like a stage's module answers as the stage does."""
    light = is_light(arch)
    model = filled(arch) if light else small_model(arch, num_classes=5, device="meta").eval()
    x = torch.randn(1, 3, *small_size(arch), device="cpu" if light else "meta")
    last = model.feature_info[-1]["module"]
    extractor = create_feature_extractor(model, {last: "map"})
    with torch.no_grad():
        got = extractor(x)["map"]
        _, maps = model.forward_intermediates(x, indices=1, output_fmt="NLC")
    got = got[:, model.num_prefix_tokens :] if is_transformer(arch) else got.flatten(2).transpose(1, 2)
    assert got.shape == maps[0].shape
    if light:
        assert relative(got, maps[0]) < 1e-5


@pytest.mark.parametrize("arch", [arch for arch in CNNS if keeps(arch, "channels_last")])
def test_channels_last_stays(arch: str) -> None:
    """No stage answers in another format than the model and its image have."""
    model = small_model(arch, num_classes=5, device="meta").to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()  # formats do not depend on values, and `meta` chooses other formats than a processor does
        x = torch.randn(2, 3, 64, 64)
        for fmt in (torch.channels_last, torch.contiguous_format):
            model.to(memory_format=fmt)
            for level in model.forward_intermediates(x.contiguous(memory_format=fmt), intermediates_only=True):
                assert level.is_contiguous(memory_format=fmt) or 1 in level.shape[-2:]


@pytest.mark.parametrize("arch", SAMPLE)
def test_compiles_whole(arch: str, unchecked_shapes: None) -> None:
    """One graph, no break. Traced, not lowered: what a backend makes of the graph is its own affair."""
    torch.compiler.reset()
    model = small_model(arch, device="meta").eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert compiled(torch.empty(2, 3, *small_size(arch), device="meta")).shape == (2, model.num_classes)
