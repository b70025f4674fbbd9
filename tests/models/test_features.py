"""`features_only`: its kinds by name and class, what it answers, and the keys it is saved under."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vertebra
from vertebra import VertebraError
from vertebra.models.features import FEATURE_CLASSES, FeatureDictNet, FeatureListNet

CNNS = ("dla46_c", "cs3darknet_s", "dpn48b", "regnetx_002")
VIT = "vit_tiny_patch16_224"


def small(arch: str, **options: Any) -> Any:
    return vertebra.create_model(
        arch, features_only=True, **options, **({"img_size": 32, "depth": 3} if arch == VIT else {})
    )


def image() -> Tensor:
    return torch.randn(1, 3, 32, 32)


@torch.no_grad()
@pytest.mark.parametrize("arch", [*CNNS, VIT])
def test_a_state_dict_loads_into_every_other_kind(arch: str) -> None:
    first = small(arch).eval()
    x = image()
    for name in FEATURE_CLASSES:
        if arch == VIT and name in ("list", "dict"):
            with pytest.raises(VertebraError, match="for CNNs"):
                small(arch, feature_cls=name)
            continue
        other = small(arch, feature_cls=name).eval()
        bare = dict(first.model.state_dict())
        other.load_state_dict(bare)
        maps = other(x).values() if name == "dict" else other(x)
        if arch != VIT or name == "getter":
            assert all(torch.equal(a, b) for a, b in zip(maps, first(x), strict=True))
        again = small(arch, feature_cls=name)
        again.load_state_dict(other.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), bare.values(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("arch", CNNS)
def test_checkpoints_of_the_references_feature_networks_load(arch: str) -> None:
    theirs = timm.create_model(arch, features_only=True).eval()
    ours = small(arch).eval()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.return_layers == theirs.return_layers
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-4)


def test_a_dicts_keys_are_the_stages_asked_for() -> None:
    model = small("dla46_c", feature_cls="dict", out_indices=(1, -1)).eval()
    assert list(model(image())) == ["1", "-1"]
    model.return_layers = {"level1": "low", "level5": "high"}
    assert list(model(image())) == ["low", "high"]


def test_classes_and_what_else_can_be_called() -> None:
    assert isinstance(small("dla46_c", feature_cls=FeatureDictNet), FeatureDictNet)
    assert isinstance(small("dla46_c"), FeatureListNet)

    def wrap(model: nn.Module, out_indices: tuple[int, ...]) -> Any:
        return model, out_indices

    model, stages = small("dla46_c", feature_cls=wrap, out_indices=(0, 2))
    assert isinstance(model, nn.Module)
    assert stages == (0, 2)
    with pytest.raises(VertebraError, match="unknown feature_cls 'lst'; did you mean 'list'"):
        small("dla46_c", feature_cls="lst")
    with pytest.raises(TypeError, match="feature_cls needs features_only=True"):
        vertebra.create_model("dla46_c", feature_cls="list")


def test_a_stage_that_does_not_exist_is_an_index_error_too() -> None:
    with pytest.raises(IndexError, match="stage 99 does not exist"):
        small("dla46_c", out_indices=(99,))
    with pytest.raises(VertebraError, match="no stage is named"):
        small("dla46_c", out_indices=())
