"""Training's transforms against the reference's: the same steps, and pictures and draws of the same distribution."""

from __future__ import annotations

from typing import Any

import pytest
import timm.data
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from tests.data.test_transforms import noise
from vertebra.data import create_transform, transforms_factory
from vertebra.data.augment.erasing import RandomErasing
from vertebra.data.transforms import CenterCropOrPad, RandomCropOrPad
from vertebra.spec.errors import VertebraError

TRAIN_OPTIONS: list[dict[str, Any]] = [
    {},
    {"color_jitter": None, "hflip": 0.0},
    {"color_jitter": (0.1, 0.2, 0.3, 0.4), "vflip": 0.5, "interpolation": "random"},
    {"color_jitter_prob": 0.8, "grayscale_prob": 0.2, "gaussian_blur_prob": 0.1},
    {"re_prob": 0.3, "re_mode": "pixel", "re_count": 3, "input_size": (3, 96, 128), "scale": (0.5, 1.0)},
    {"normalize": False, "re_prob": 0.3},
    {"interpolation": "hamming", "re_prob": 1.0, "re_num_splits": 2},
    {"train_crop_mode": "rkrc"},
    {"train_crop_mode": "rkrr", "interpolation": "random", "scale": (0.5, 1.0), "input_size": (3, 48, 64)},
]


@pytest.mark.parametrize("options", TRAIN_OPTIONS, ids=str)
def test_training_takes_the_steps_of_the_reference(options: dict[str, Any]) -> None:
    names = {"RandomResizedCropAndInterpolation": "RandomResizedCrop", "MaybeToTensor": "ToTensor"}
    names |= {"MaybePILToTensor": "ToBytes", "ResizeKeepRatio": "RandomResizeKeepRatio"}
    ours = create_transform(is_training=True, **options)
    reference = timm.data.create_transform(is_training=True, **options)
    expected = [names.get(type(step).__name__, type(step).__name__) for step in reference.transforms]
    assert [type(step).__name__ for step in ours.transforms] == expected
    result = ours(noise(90, 70))
    assert result.shape == reference(noise(90, 70)).shape
    assert result.dtype == (torch.float32 if options.get("normalize", True) else torch.uint8)


@pytest.mark.parametrize("options", [*TRAIN_OPTIONS, {"auto_augment": "3a"}, {"auto_augment": "rand-m5"}], ids=str)
def test_separate_parts_follow_each_other_as_in_the_reference(options: dict[str, Any]) -> None:
    whole = create_transform(is_training=True, **options)
    parts = create_transform(is_training=True, separate=True, **options)
    reference = timm.data.create_transform(is_training=True, separate=True, **options)
    counts = [len([step for step in part.transforms if not isinstance(step, nn.Identity)]) for part in parts]
    assert counts == [len(part.transforms) for part in reference]
    torch.manual_seed(2)
    expected = whole(noise(90, 70))
    torch.manual_seed(2)
    image: Any = noise(90, 70)
    for part in parts:
        image = part(image)
    assert torch.equal(image, expected)


def test_jitter_may_be_forced_beside_a_policy() -> None:
    for library in (transforms_factory, timm.data.transforms_factory):
        options = {"auto_augment": "rand-m5", "color_jitter": 0.3}
        plain = library.transforms_imagenet_train(**options)
        forced = library.transforms_imagenet_train(**options, force_color_jitter=True)
        assert "ColorJitter" in repr(forced)
        assert "ColorJitter" not in repr(plain)


KEPT = {"is_training": True, "hflip": 0.0, "color_jitter": None, "normalize": False, "train_crop_mode": "rkrc"}


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "box"])
@pytest.mark.parametrize(("scale", "ratio"), [(1.0, 1.0), (0.6, 1.0), (1.0, 2.0), (0.45, 0.6)])
def test_resizing_that_keeps_the_ratio_gives_the_references_pictures(scale: float, ratio: float, mode: str) -> None:
    # Each factor is taken for half of the images; bounds that are equal leave four pictures, the same ones.
    options: dict[str, Any] = {**KEPT, "scale": (scale, scale), "ratio": (ratio, ratio), "interpolation": mode}
    image = noise(90, 70)
    for size in ((40, 40), (24, 56)):
        ours = create_transform(size, **options)
        reference = timm.data.create_transform((3, *size), **options)
        pictures, expected = ({tuple(make(image).flatten().tolist()) for _ in range(60)} for make in (ours, reference))
        assert pictures == expected
        assert len(expected) == 2 ** ((scale != 1) + (ratio != 1))


def test_factors_are_drawn_as_in_the_reference() -> None:
    def sides(factory: Any, **options: Any) -> Tensor:
        step = factory(500, **{**KEPT, **options}).transforms[0]
        sizes = [step(Image.new("L", (2, 2))).size for _ in range(800)]
        return torch.tensor([size for size in sizes if size != (500, 500)]).double().log()

    for options in ({"scale": (0.5, 1.0), "ratio": (1.0, 1.0)}, {"scale": (1.0, 1.0), "ratio": (0.5, 2.0)}):
        ours, reference = (sides(factory, **options) for factory in (create_transform, timm.data.create_transform))
        assert 300 < len(ours) < 500
        levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
        torch.testing.assert_close(ours.quantile(levels, 0), reference.quantile(levels, 0), atol=0.08, rtol=0)


@pytest.mark.parametrize("shape", [(24, 24), (16, 24), (16, 16), (23, 25), (3, 60), (1, 1)])
def test_a_random_place_is_any_of_the_references(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    ours, reference = RandomCropOrPad((20, 20)), timm.data.RandomCropOrPad((20, 20), padding_mode="reflect")
    pictures, expected = ({make(image).tobytes() for _ in range(600)} for make in (ours, reference))
    places = (abs(shape[0] - 20) + 1) * (abs(shape[1] - 20) + 1)
    if places <= 100:
        assert pictures == expected or shape == (1, 1)
    assert len(pictures & expected) >= min(places, 100) / 2 or shape == (1, 1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_mirrored_border_is_the_references_of_tensors_too(mode: str) -> None:
    ours, reference = CenterCropOrPad((20, 30)), timm.data.CenterCropOrPad((20, 30), padding_mode="reflect")
    for shape in ((24, 24), (7, 24), (7, 3), (31, 40)):
        image = noise(*shape, mode=mode)
        assert ours(image).tobytes() == reference(image).tobytes()
        pixels = v2.functional.pil_to_tensor(image)
        assert torch.equal(ours(pixels), v2.functional.pil_to_tensor(reference(image)))


def test_a_strip_costs_no_memory_while_its_ratio_is_kept() -> None:
    for train_crop_mode in ("rkrc", "rkrr"):
        transform = create_transform(224, is_training=True, train_crop_mode=train_crop_mode)
        assert transform(Image.new("RGB", (100_000, 1))).shape == (3, 224, 224)


def test_filters_of_pillow_refuse_tensors() -> None:
    pixels = torch.zeros(3, 40, 40, dtype=torch.uint8)
    for options in ({}, {"is_training": True}, {"is_training": True, "train_crop_mode": "rkrr"}):
        with pytest.raises(VertebraError, match="a tensor cannot be resized with 'hamming'"):
            create_transform(32, interpolation="hamming", **options)(pixels)
    with pytest.raises(VertebraError, match="a tensor cannot be resized with 'box'"):
        transforms_factory.create_train_reader(32, interpolation="box")


def test_training_is_random_and_follows_the_seed() -> None:
    image = noise(90, 70)
    transform = create_transform(32, is_training=True, re_prob=0.5, interpolation="random")
    torch.manual_seed(1)
    first, second = transform(image), transform(image)
    torch.manual_seed(1)
    assert torch.equal(transform(image), first)
    assert not torch.equal(first, second)


def test_training_crops_within_scale_and_ratio() -> None:
    crop = create_transform(32, is_training=True, scale=(0.2, 0.5), ratio=(0.5, 2.0)).transforms[0]
    areas, ratios = [], []
    for _ in range(200):
        drawn = crop.make_params([noise(200, 150)])
        areas.append(drawn["height"] * drawn["width"] / 30_000)
        ratios.append(drawn["width"] / drawn["height"])
    assert 0.19 < min(areas) < 0.25
    assert 0.45 < max(areas) < 0.51
    assert 0.49 < min(ratios) < 0.7
    assert 1.5 < max(ratios) < 2.05


def test_random_interpolation_draws_both() -> None:
    crop = create_transform(32, is_training=True, interpolation="random").transforms[0]
    drawn = {crop.make_params([noise(20, 20)])["interpolation"] for _ in range(50)}
    assert drawn == {InterpolationMode.BILINEAR, InterpolationMode.BICUBIC}


def test_flips_flip() -> None:
    image = noise(32, 32)
    options = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "color_jitter": None, "is_training": True}
    plain = create_transform(32, hflip=0.0, **options)(image)
    assert torch.equal(create_transform(32, hflip=1.0, **options)(image), plain.flip(-1))
    assert torch.equal(create_transform(32, hflip=0.0, vflip=1.0, **options)(image), plain.flip(-2))


def erased_shares(erasing: Any, times: int = 300) -> torch.Tensor:
    return torch.tensor([(erasing(torch.full((3, 64, 64), 9.0)) != 9.0).float().mean() for _ in range(times)])


@pytest.mark.parametrize("count", [1, 4])
def test_erasing_covers_as_much_as_the_reference(count: int) -> None:
    shares = erased_shares(RandomErasing(1.0, "const", count))
    reference = timm.data.create_transform(is_training=True, re_prob=1.0, re_count=count).transforms[-1]
    assert shares.min() >= 0.01
    assert shares.max() <= 0.35
    assert abs(shares.mean() - erased_shares(reference).mean()) < 0.03


def test_erasing_modes_and_probability() -> None:
    image = torch.full((3, 64, 64), 9.0)
    const, rand, pixel = (RandomErasing(1.0, mode)(image) for mode in ("const", "rand", "pixel"))
    assert set(const.unique().tolist()) == {0.0, 9.0}
    assert len(rand.unique()) == 4  # what was there, and one colour a channel
    assert len(pixel.unique()) > 100
    assert (image == 9.0).all()
    assert 0.15 < (erased_shares(RandomErasing(0.25)) > 0).float().mean() < 0.35
    assert RandomErasing(0.0)(image) is image
