"""Options of a ViT: starts, masks, registers, left-out patches."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import vertebra
from tests.zoo import random_state, relative
from vertebra import VertebraError

ARCH = "vit_tiny_patch16_224"


def pair(**options: Any) -> tuple[Any, Any]:
    ours, theirs = (lib.create_model(ARCH, img_size=32, depth=2, **options).eval() for lib in (vertebra, timm))
    state = random_state(theirs.state_dict())
    for model in (ours, theirs):
        model.load_state_dict(state)
    return ours, theirs


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mask", [torch.ones(5, 5, dtype=torch.bool).tril(), torch.randn(5, 5), None])
@pytest.mark.parametrize("causal", [True, False])
def test_masked_attention_is_the_references(mask: Tensor | None, causal: bool, fused: bool) -> None:
    if mask is not None and causal:
        with pytest.raises(RuntimeError):
            vertebra.create_model(ARCH, img_size=32, depth=1)(image(), mask, True)
        return
    ours, theirs = pair()
    for model in (ours, theirs):
        for block in model.blocks:
            block.attn.fused_attn = fused
    assert (
        relative(ours(image(), attn_mask=mask, is_causal=causal), theirs(image(), attn_mask=mask, is_causal=causal))
        < 1e-5
    )
    mine, reference = (m.forward_intermediates(image(), attn_mask=mask, is_causal=causal) for m in (ours, theirs))
    assert relative(mine[0], reference[0]) < 1e-5
    assert relative(mine[1][0], reference[1][0]) < 1e-5
    if causal or mask is not None:
        assert relative(ours(image(), attn_mask=mask, is_causal=causal), ours(image())) > 1e-3


@pytest.mark.parametrize("start", ["", "jax", "jax_nlhb", "moco", "reset"])
def test_weights_start_as_the_references(start: str) -> None:
    """Means and deviations of every tensor that is large enough to have them; `skip` leaves timm's undefined."""
    ours, theirs = (lib.create_model(ARCH, depth=2, weight_init=start, reg_tokens=64) for lib in (vertebra, timm))
    for (key, mine), reference in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        spread = float(reference.std())
        assert float(mine.mean() - reference.mean()) == pytest.approx(0, abs=0.3 * spread + 1e-7), key
        if reference.numel() > 10_000:
            assert float(mine.std()) == pytest.approx(spread, rel=0.05), key
            assert float(mine.abs().max()) == pytest.approx(float(reference.abs().max()), rel=0.35), key


def test_patches_are_left_out_in_training_only() -> None:
    model = vertebra.create_model(ARCH, img_size=64, depth=1, patch_drop_rate=0.25, reg_tokens=2)
    x = torch.randn(2, 3, 64, 64)
    assert model.forward_features(x).shape == (2, 3 + 12, 192)
    assert model(x).shape == (2, 1000)
    tokens, prefix = model.forward_intermediates(x, 1, True, output_fmt="NLC", intermediates_only=True)[0]
    assert tokens.shape == (2, 12, 192)
    assert prefix.shape == (2, 3, 192)
    with pytest.raises(VertebraError, match="fill no map; use output_fmt='NLC'"):
        model.forward_intermediates(x)
    assert model.eval().forward_features(x).shape == (2, 3 + 16, 192)
    assert model.forward_intermediates(x, 1)[1][0].shape == (2, 192, 4, 4)


def test_what_is_left_out_differs_between_images_and_keeps_the_tokens() -> None:
    drop = vertebra.create_model(ARCH, img_size=64, depth=1, patch_drop_rate=0.5).patch_drop
    tokens = torch.arange(17.0).reshape(1, 17, 1).expand(8, 17, 4)
    kept = drop(tokens)[..., 0]
    assert kept.shape == (8, 9)
    assert (kept[:, 0] == 0).all()
    assert all(row.unique().numel() == 9 for row in kept)
    assert len({tuple(sorted(row.tolist())) for row in kept}) > 1


def test_a_norm_stays_where_it_is_when_the_pooling_changes_and_is_saved_so(tmp_path: Any) -> None:
    model = vertebra.create_model(ARCH, img_size=32, depth=1, num_classes=5).eval()
    keys = list(model.state_dict())
    model.reset_classifier(5, "avg")
    assert list(model.state_dict()) == keys
    again = vertebra.load_model(vertebra.save_model(model, tmp_path / "vit.safetensors")).eval()
    assert torch.equal(again(image()), model(image()))
    assert again.config == model.config


@pytest.mark.parametrize("option", [{"weight_init": "jaxx"}, {"act_layer": "gelo"}, {"norm_layer": "layernrm"}])
def test_unknown_names_are_refused_with_the_closest(option: dict[str, str]) -> None:
    with pytest.raises(VertebraError, match="did you mean"):
        vertebra.create_model(ARCH, device="meta", **option)
