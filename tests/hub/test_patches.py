"""Transformers for other images and other patches: the grid of the position embedding, the projection; strictness."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import vertebra
from tests.zoo import random_state
from vertebra import WeightsError
from vertebra.hub.factory import describe
from vertebra.layers.patch_embed import resample_positions

PLAIN, DISTILLED, THREE = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"
OBLONG = (128, 288)
"""Pixels: 8 x 18 patches, as many as a square of 12 x 12."""


@pytest.mark.parametrize("size", [(224, 224), (384, 384), (160, 256), (96, 48)])
@pytest.mark.parametrize("arch", ["deit_tiny_patch16_224", DISTILLED, THREE])
def test_position_embedding_as_the_reference(arch: str, size: tuple[int, int], tmp_path: Path) -> None:
    state = random_state(vertebra.create_model(arch, depth=1, device="meta").state_dict())
    save_file(state, tmp_path / "a.safetensors")
    options: dict[str, Any] = {"depth": 1, "img_size": size, "pretrained": True}
    options["pretrained_cfg_overlay"] = {"file": str(tmp_path / "a.safetensors")}
    ours, theirs = vertebra.create_model(arch, **options), timm.create_model(arch, **options)
    assert ours.load_report.resized == ([] if size == (224, 224) else ["pos_embed"])
    torch.testing.assert_close(ours.pos_embed, theirs.pos_embed, rtol=1e-5, atol=1e-6)
    assert ours.pretrained_cfg["input_size"] == (3, *size), "preprocessing follows the model"
    expected = {k: v for k, v in state.items() if k != "pos_embed"}
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items() if key in expected)


# --- the checkpoint's own grid ----------------------------------------------------------------------------------------


def oblong(img_size: tuple[int, int] = OBLONG, arch: str = PLAIN) -> Any:
    model = vertebra.create_model(arch, depth=1, img_size=img_size, num_classes=3)
    model.load_state_dict(random_state(model.state_dict()))
    return model


def expected(model: Any, grid: tuple[int, int]) -> Tensor:
    """Of a model of one prefix token, by its own true grid."""
    return resample_positions(model.pos_embed.detach(), grid, prefix=1, old_grid=model.patch_embed.grid_size)


def _as_file(model: Any, folder: Path, **options: Any) -> Any:
    return vertebra.load_model(vertebra.save_model(model, folder / "a.safetensors"), **options)


def _as_file_of_a_name(model: Any, folder: Path, **options: Any) -> Any:
    file = vertebra.save_model(model, folder / "a.safetensors")
    return vertebra.load_model(PLAIN, weights=file, depth=1, **options)


def _as_checkpoint_path(model: Any, folder: Path, **options: Any) -> Any:
    file = vertebra.save_model(model, folder / "a.safetensors")
    return vertebra.create_model(PLAIN, checkpoint_path=file, depth=1, num_classes=3, **options)


def _as_file_of_a_record(model: Any, folder: Path, **options: Any) -> Any:
    overlay = {"file": str(vertebra.save_model(model, folder / "a.safetensors")), "num_classes": 3}
    return vertebra.create_model(PLAIN, pretrained=True, pretrained_cfg_overlay=overlay, depth=1, **options)


def _as_folder(model: Any, folder: Path, **options: Any) -> Any:
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(describe(model)))
    return vertebra.create_model(f"local-dir:{folder}", pretrained=True, **options)


def _as_state_with_its_size(model: Any, folder: Path, **options: Any) -> Any:
    torch.save(model.state_dict(), folder / "a.pth")
    overlay = {"input_size": (3, *model.config.image)}
    options |= {"checkpoint_path": folder / "a.pth", "pretrained_cfg_overlay": overlay}
    return vertebra.create_model(PLAIN, depth=1, num_classes=3, **options)


WAYS: list[Callable[..., Any]] = [
    _as_file,
    _as_file_of_a_name,
    _as_checkpoint_path,
    _as_file_of_a_record,
    _as_folder,
    _as_state_with_its_size,
]


@pytest.mark.parametrize(("size", "grid"), [((192, 192), (12, 12)), (OBLONG, (8, 18)), ((64, 96), (4, 6))])
@pytest.mark.parametrize("way", WAYS)
def test_an_oblong_grid_is_the_records(
    way: Callable[..., Any], size: tuple[int, int], grid: tuple[int, int], tmp_path: Path
) -> None:
    model = oblong()
    loaded = way(model, tmp_path, img_size=size)
    assert torch.equal(loaded.pos_embed, expected(model, grid))
    assert loaded.load_report.resized == ([] if size == OBLONG else ["pos_embed"])


def test_an_oblong_grid_whose_count_is_no_square_is_the_records(tmp_path: Path) -> None:
    model = oblong((128, 256))
    for number, way in enumerate(WAYS):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert torch.equal(way(model, folder, img_size=224).pos_embed, expected(model, (14, 14)))


def test_a_grid_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    for size, message in ((OBLONG, "of 8x18 or of 12x12, and no record"), (224, "14x14")):
        img_size = size if isinstance(size, tuple) else (size, size)
        torch.save(oblong(img_size).state_dict(), tmp_path / "a.pth")
        wanted = OBLONG if img_size == OBLONG else (112, 448)
        with pytest.raises(WeightsError, match=message):
            vertebra.create_model(PLAIN, checkpoint_path=tmp_path / "a.pth", depth=1, num_classes=3, img_size=wanted)


def test_a_square_number_of_positions_is_a_square_as_in_the_reference(tmp_path: Path) -> None:
    model = oblong((192, 192))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = vertebra.create_model(PLAIN, checkpoint_path=tmp_path / "a.pth", depth=1, num_classes=3)
    assert torch.equal(loaded.pos_embed, expected(model, (14, 14)))


@pytest.mark.parametrize("count", [190, 129])
def test_a_position_embedding_of_no_known_grid_is_refused(count: int) -> None:
    state = random_state(vertebra.create_model(THREE, depth=1, device="meta").state_dict())
    state["pos_embed"] = torch.zeros(1, count, 384)
    with pytest.raises(WeightsError, match=rf"pos_embed is \(1, {count}, 384\), of no square grid, and no record"):
        vertebra.create_model(THREE, depth=1, pretrained=True, pretrained_cfg_overlay={"state_dict": state})


def test_another_architectures_checkpoint_is_told_by_its_keys(tmp_path: Path) -> None:
    torch.save(vertebra.create_model(DISTILLED, depth=1).state_dict(), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"unexpected \(3\): dist_token, head_dist\.weight"):
        vertebra.create_model(PLAIN, depth=1, checkpoint_path=tmp_path / "a.pth")


# --- patches of another size ------------------------------------------------------------------------------------------


PATCHES: list[dict[str, Any]] = [
    {"patch_size": 8},
    {"patch_size": 32},
    {"patch_size": 14},
    {"patch_size": 8, "img_size": 112},
    {"patch_size": 12, "img_size": (96, 192)},
    {"patch_size": 8, "in_chans": 1},
]


@pytest.mark.parametrize("asked", PATCHES, ids=str)
def test_another_size_of_patches_as_the_reference(asked: dict[str, Any], tmp_path: Path) -> None:
    state = random_state(vertebra.create_model(PLAIN, depth=1, device="meta").state_dict())
    save_file(state, tmp_path / "a.safetensors")
    options: dict[str, Any] = {"depth": 1, "pretrained": True, **asked}
    options["pretrained_cfg_overlay"] = {"file": str(tmp_path / "a.safetensors")}
    ours, theirs = vertebra.create_model(PLAIN, **options), timm.create_model(PLAIN, **options)
    wanted = theirs.state_dict()
    assert list(ours.state_dict()) == list(wanted)
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-5)
    assert "patch_embed.proj.weight" in ours.load_report.resized


def test_another_size_of_patches_is_not_taken_unasked(tmp_path: Path) -> None:
    state = random_state(vertebra.create_model(PLAIN, depth=1, patch_size=32, device="meta").state_dict())
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"patch_embed\.proj\.weight is \(192, 3, 32, 32\), needs"):
        vertebra.create_model(PLAIN, depth=1, checkpoint_path=tmp_path / "a.safetensors")


# --- not strict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_pretrained_strict_as_the_reference(strict: bool, tmp_path: Path) -> None:
    state = random_state(vertebra.create_model(PLAIN, depth=1, device="meta").state_dict())
    state["more.weight"] = state.pop("blocks.0.norm1.bias")
    save_file(state, tmp_path / "a.safetensors")
    options: dict[str, Any] = {"depth": 1, "pretrained": True, "pretrained_strict": strict}
    options["pretrained_cfg_overlay"] = {"file": str(tmp_path / "a.safetensors")}
    if strict:
        for library in (timm, vertebra):
            with pytest.raises(RuntimeError):
                library.create_model(PLAIN, **options)
        return
    ours, theirs = vertebra.create_model(PLAIN, **options), timm.create_model(PLAIN, **options).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.state_dict().items())
    assert ours.load_report.reinitialised == ["blocks.0.norm1.bias"]
    assert list(ours.load_report.dropped) == ["more.weight"]


def test_not_strict_still_refuses_other_shapes(tmp_path: Path) -> None:
    state = random_state(vertebra.create_model(PLAIN, depth=1, device="meta").state_dict())
    state["norm.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "a.safetensors")
    for library in (timm, vertebra):
        options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(tmp_path / "a.safetensors")}, "depth": 1}
        with pytest.raises(RuntimeError):
            library.create_model(PLAIN, pretrained=True, pretrained_strict=False, **options)


def test_not_strict_takes_files_too_but_none_of_another_model(tmp_path: Path) -> None:
    state = random_state(vertebra.create_model(PLAIN, depth=1, device="meta").state_dict())
    save_file({"more.weight": torch.zeros(2), **state}, tmp_path / "a.safetensors")
    options: dict[str, Any] = {"weights": tmp_path / "a.safetensors", "pretrained_strict": False}
    assert list(vertebra.load_model(PLAIN, depth=1, **options).load_report.dropped) == ["more.weight"]
    with pytest.raises(WeightsError, match="holds nothing of this model: blocks"):
        vertebra.load_model("dla46_c", **options)
