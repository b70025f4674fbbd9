"""What only DeiT has: a second token, a second head, and the promise of what each mode answers."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import vertebra
from tests.zoo import random_state, relative

ARCH = "deit_tiny_distilled_patch16_224"


@pytest.fixture
def model():
    made = vertebra.create_model(ARCH, img_size=32, num_classes=5).eval()
    made.load_state_dict(random_state(made.state_dict()))
    return made


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@torch.no_grad()
def test_evaluation_averages_both_heads(model, x: Tensor) -> None:
    features = model.forward_features(x)
    own, taught = model.head(features[:, 0]), model.head_dist(features[:, 1])
    assert relative(model(x), (own + taught) / 2) < 1e-6
    model.set_distilled_training(True)
    assert relative(model(x), (own + taught) / 2) < 1e-6, "distilled training changes nothing in eval mode"


def test_training_answers_twice_only_while_distilled_training_is_on(model, x: Tensor) -> None:
    model.train()
    assert isinstance(model(x), Tensor)
    model.set_distilled_training(True)
    own, taught = model(x)
    assert own.shape == taught.shape == (2, 5)
    assert not torch.equal(own, taught)
    model.set_distilled_training(False)
    assert isinstance(model(x), Tensor)


@torch.no_grad()
def test_training_answers_as_the_reference(model, x: Tensor) -> None:
    theirs = timm.create_model(ARCH, img_size=32, num_classes=5).train()
    theirs.load_state_dict(model.state_dict())
    model.train()
    assert relative(model(x), theirs(x)) < 1e-5
    for each in (model, theirs):
        each.set_distilled_training(True)
    for a, b in zip(model(x), theirs(x), strict=True):
        assert relative(a, b) < 1e-5


def test_both_heads_are_the_classifier(model, x: Tensor) -> None:
    assert model.get_classifier() == (model.head, model.head_dist)
    model.reset_classifier(3)
    assert [c.out_features for c in model.get_classifier()] == [3, 3]
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert all(isinstance(c, nn.Identity) for c in model.get_classifier())
    features = model.forward_features(x)
    assert torch.equal(model(x), model.forward_head(features, pre_logits=True))
    assert torch.equal(model(x), (features[:, 0] + features[:, 1]) / 2)


def test_other_poolings_are_refused_with_a_way_on(model) -> None:
    with pytest.raises(vertebra.VertebraError, match="use 'token', or the plain DeiT"):
        vertebra.create_model(ARCH, global_pool="avg")


def test_shapes_of_the_convention() -> None:
    model = vertebra.create_model("deit_base_distilled_patch16_224.fb_in1k", num_classes=0, device="meta")
    x = torch.empty(1, 3, 224, 224, device="meta")
    features = model.forward_features(x)
    assert features.shape == (1, 198, 768)
    assert model.forward_head(features, pre_logits=True).shape == model(x).shape == (1, 768)
    assert model.num_features == 768


def test_image_size_can_be_changed_later_and_is_saved_and_preprocessed_for(model, x: Tensor, tmp_path: Path) -> None:
    model.set_input_size((64, 32))
    image = torch.randn(1, 3, 64, 32)
    assert model(image).shape == (1, 5)
    assert vertebra.data.resolve_model_data_config(model)["input_size"] == (3, 64, 32)
    again = vertebra.load_model(vertebra.save_model(model, tmp_path / "tall.safetensors")).eval()
    assert torch.allclose(again(image), model.eval()(image), atol=1e-6)
    with pytest.raises(vertebra.VertebraError, match="takes images of 64x32 pixels and was given 32x32"):
        model(x)


@torch.no_grad()
@pytest.mark.parametrize("arch", [ARCH, "deit3_small_patch16_224"])
def test_any_size_at_run_time_as_the_reference(arch: str) -> None:
    options = {"dynamic_img_size": True, "dynamic_img_pad": True, "num_classes": 5}
    ours = vertebra.create_model(arch, **options).eval()
    ours.load_state_dict(random_state(ours.state_dict()))
    theirs = timm.create_model(arch, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    odd = torch.randn(1, 3, 70, 45)
    assert relative(ours(odd), theirs(odd)) < 1e-5
    assert relative(ours.forward_intermediates(odd)[1][-1], theirs.forward_intermediates(odd)[1][-1]) < 1e-5


def test_the_authors_layer_scale_names_are_read() -> None:
    arch = "deit3_small_patch16_224"
    model = vertebra.create_model(arch, img_size=32, depth=1, num_classes=5)
    state = random_state(model.state_dict())
    theirs = {k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in state.items()}
    assert theirs.keys() != state.keys()
    loaded = vertebra.create_model(
        arch,
        img_size=32,
        depth=1,
        num_classes=5,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": {"model": theirs}, "num_classes": 5},
    )
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
