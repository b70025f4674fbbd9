"""Every architecture has timm's layout; the sample, filled with the same random state, answers as timm does."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vertebra
from tests.zoo import ARCHS, SAMPLE, is_transformer, native_side, random_state, relative, shortened, small_size
from vertebra.spec import State

TOLERANCE = 1e-5


def pair(arch: str, state: State | None, **options: Any) -> tuple[Any, Any]:
    """(ours, theirs), both in eval mode and both strictly filled with `state` (None: both stay on `meta`)."""
    ours = vertebra.create_model(arch, device="meta", **options)
    with torch.device("meta"):
        theirs: nn.Module = timm.create_model(arch, **options)
    assert {name for name, _ in theirs.named_buffers()} <= set(theirs.state_dict()), "a buffer would stay on meta"
    if state is not None:
        for model in (ours, theirs):
            model.load_state_dict(state, strict=True, assign=True)
    return ours.eval(), theirs.eval()


@dataclass
class Filled:
    """One architecture's random state, shared by all checks of that architecture."""

    arch: str
    state: State

    def at(self, size: tuple[int, int]) -> tuple[Any, Any]:
        options = shortened(self.arch)
        if not is_transformer(self.arch):
            return pair(self.arch, self.state, **options)
        like = vertebra.create_model(self.arch, device="meta", img_size=size, **options)
        table = random_state({"pos_embed": like.pos_embed})
        return pair(self.arch, {**self.state, **table}, img_size=size, **options)


@pytest.fixture(scope="module", params=SAMPLE)
def filled(request: pytest.FixtureRequest) -> Filled:
    arch: str = request.param
    return Filled(arch, random_state(vertebra.create_model(arch, device="meta", **shortened(arch)).state_dict()))


def image(size: tuple[int, int], batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("arch", ARCHS)
def test_keys_shapes_and_order(arch: str, shared_reference: Path) -> None:
    ours, theirs = pair(arch, None)
    layout = [(key, tuple(value.shape), value.dtype) for key, value in ours.state_dict().items()]
    assert layout == [(key, tuple(value.shape), value.dtype) for key, value in theirs.state_dict().items()]
    with gzip.open(shared_reference / "state_dict_shapes.json.gz") as file:
        published = json.load(file).get(arch)
    # RegNets are published in more sizes than the reference lists; what it lists must be there (test_reference_files).
    assert published is not None or arch.startswith("regnet")
    assert published is None or [(key, list(shape)) for key, shape, _ in layout] == list(published.items())
    names = [name for name, _ in ours.named_parameters()]
    assert names == [name for name, _ in theirs.named_parameters()], "an optimiser's state is kept by position"


@pytest.mark.parametrize("rows_columns", [(4, 4), (6, 4)], ids=["square", "tall"])
@torch.inference_mode()
def test_features_maps_and_logits(filled: Filled, rows_columns: tuple[int, int]) -> None:
    size = small_size(filled.arch, *rows_columns)
    ours, theirs = filled.at(size)
    x = image(size, batch=2)
    features, maps = ours.forward_intermediates(x)
    their_features, their_maps = theirs.forward_intermediates(x)
    assert relative(features, their_features) < TOLERANCE
    assert len(maps) == len(their_maps)
    assert max(relative(a, b) for a, b in zip(maps, their_maps, strict=True)) < TOLERANCE
    assert relative(ours.forward_head(features), theirs.forward_head(their_features)) < TOLERANCE
    embedding = theirs.forward_head(their_features, pre_logits=True)
    assert relative(ours.forward_head(features, pre_logits=True), embedding) < TOLERANCE


@torch.inference_mode()
def test_logits_at_the_size_it_was_trained_for(filled: Filled) -> None:
    size = (native_side(filled.arch),) * 2
    ours, theirs = filled.at(size)
    assert relative(ours(image(size)), theirs(image(size))) < TOLERANCE


@torch.inference_mode()
def test_features_without_a_list_of_maps(filled: Filled) -> None:
    size = small_size(filled.arch)
    ours, theirs = filled.at(size)
    assert relative(ours.forward_features(image(size)), theirs.forward_features(image(size))) < TOLERANCE


@pytest.mark.parametrize("stride", [8, 16])
@torch.inference_mode()
def test_output_stride(filled: Filled, stride: int) -> None:
    size = small_size(filled.arch)
    try:
        ours, theirs = pair(filled.arch, filled.state, output_stride=stride)
    except (AssertionError, NotImplementedError, TypeError, ValueError):
        # The reference cannot; then ours either cannot and says so, or keeps the weights and the promised shape.
        assert_dilates_or_refuses(filled, stride, size)
        return
    maps = ours.forward_intermediates(image(size), intermediates_only=True)
    their_maps = theirs.forward_intermediates(image(size), intermediates_only=True)
    assert max(relative(a, b) for a, b in zip(maps, their_maps, strict=True)) < TOLERANCE
    assert relative(ours(image(size)), theirs(image(size))) < TOLERANCE


def assert_dilates_or_refuses(filled: Filled, stride: int, size: tuple[int, int]) -> None:
    if is_transformer(filled.arch):
        with pytest.raises(vertebra.UnknownNameError, match="output_stride"):
            vertebra.create_model(filled.arch, output_stride=stride, device="meta")
        return
    model = vertebra.create_model(filled.arch, output_stride=stride, device="meta")
    model.load_state_dict(filled.state, strict=True, assign=True)
    maps = model.eval().forward_intermediates(image(size), intermediates_only=True)
    for stage, found in zip(model.feature_info, maps, strict=True):
        reduction = min(stage["reduction"], stride)
        assert found.shape == (1, stage["num_chs"], size[0] // reduction, size[1] // reduction)
        assert found.isfinite().all()
