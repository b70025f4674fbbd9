"""Preprocessing against the reference implementation, as a black box, and against itself where it takes a short cut."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode

import vertebra.data
from vertebra.data import create_transform, transforms_factory
from vertebra.data.transforms import ENORMOUS, Resize
from vertebra.spec.errors import UnknownNameError, VertebraError

EVAL_OPTIONS: list[dict[str, Any]] = [
    {},
    {"crop_pct": 0.9, "interpolation": "bicubic"},
    {"input_size": (3, 288, 288), "crop_pct": 0.95, "interpolation": "bicubic"},
    {"input_size": (3, 224, 256)},
    {"input_size": (300, 200), "crop_pct": 1.0, "interpolation": "lanczos"},
    {"crop_pct": 1.2, "interpolation": "nearest"},
    {"crop_mode": "squash", "crop_pct": 1.0},
    {"crop_mode": "squash", "input_size": (3, 200, 150)},
    {"crop_mode": "border", "mean": (0.5, 0.1, 0.3), "std": (0.5, 0.2, 0.3)},
    {"crop_mode": "border", "input_size": (3, 150, 200), "crop_pct": 1.0},
    {"is_training": True, "no_aug": True},
    {"is_training": True, "no_aug": True, "input_size": (3, 200, 224)},
    {"normalize": False},
    {"interpolation": "box"},
    {"interpolation": "hamming", "input_size": (3, 96, 128), "crop_pct": 0.95},
    {"crop_border_pixels": 17},
    {"crop_border_pixels": 4, "crop_mode": "squash", "interpolation": "bicubic"},
    {"crop_border_pixels": 9, "crop_mode": "border", "input_size": (3, 80, 60)},
    {"is_training": True, "no_aug": True, "interpolation": "box"},
    {"naflex": False, "patchify": False, "patch_size": 8, "max_seq_len": 9, "patchify_flatten": False},
]


@pytest.fixture(scope="session")
def photos(shared_data: Path) -> list[Image.Image]:
    """All photos; their aspect ratios lie between 0.5 and 2.5."""
    images = []
    for path in sorted((shared_data / "photos").glob("*.[jJ]*")):
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    assert len(images) == 126
    return images


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("options", EVAL_OPTIONS, ids=str)
def test_photos_become_the_same_tensors_as_in_the_reference(photos: list[Image.Image], options: dict[str, Any]) -> None:
    ours, reference = create_transform(**options), timm.data.create_transform(**options)
    for photo in photos if options.get("crop_pct") == 0.9 else photos[::12]:
        assert torch.equal(ours(photo), reference(photo))


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    crop_pct=st.floats(0.5, 1.2),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_any_shape_gives_the_same_tensor(width: int, height: int, size: tuple[int, int], **options: Any) -> None:
    if options["crop_mode"] == "border":  # of a thinner strip the reference makes an image of no height, and fails
        assume(8 * min(width, height) > max(width, height))
    image = noise(width, height)
    ours = create_transform(input_size=(3, *size), **options)(image)
    assert torch.equal(ours, timm.data.create_transform(input_size=(3, *size), **options)(image))


def test_list_of_steps_is_the_one_that_people_index() -> None:
    transform = create_transform(input_size=(3, 224, 224), crop_pct=0.9, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    reference = timm.data.create_transform(input_size=(3, 224, 224), crop_pct=0.9, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert len(transform.transforms) == len(reference.transforms)
    resize, crop, _, normalize = transform.transforms
    assert (resize.size, resize.interpolation, tuple(crop.size)) == (248, InterpolationMode.BILINEAR, (224, 224))
    assert torch.equal(normalize.mean, reference.transforms[-1].mean)
    assert torch.equal(normalize.std, reference.transforms[-1].std)
    for part in ("Resize(size=248, interpolation=bilinear)", "CenterCrop(size=(224, 224))", "Normalize(mean=tensor("):
        assert part in repr(transform)


@pytest.mark.parametrize("shape", [(60, 4100), (4100, 60), (3, 204), (241, 3), (50, 3977)])
@pytest.mark.parametrize("size", [(224, 224), (224, 240)])
def test_the_window_of_a_strip_is_what_resize_and_crop_would_give(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    """Not bit for bit (Pillow takes the box in single precision), but within a level or two."""
    smooth = Image.radial_gradient("L").resize((shape[1], shape[0])).convert("RGB")
    transform = create_transform(input_size=(3, *size), normalize=False, interpolation="bicubic")
    resize = transform.transforms[0]
    whole = Resize(resize.size, resize.interpolation, fit=resize.fit)
    assert whole(smooth).size[0] * whole(smooth).size[1] > ENORMOUS
    assert resize(smooth).size == (size[1], size[0])
    expected = _finish(transform, whole(smooth)).int()
    assert (transform(smooth).int() - expected).abs().max() <= 2
    tensor = torch.from_numpy(np.array(smooth)).permute(2, 0, 1)
    moved = (transform(tensor).int() - _finish(transform, whole(tensor)).int()).abs().float()
    assert moved.shape == (3, *size)
    assert moved.mean() < 4  # tensors are cut at whole source pixels


def _finish(transform: Any, image: Any) -> torch.Tensor:
    for step in transform.transforms[1:]:
        image = step(image)
    return image


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (1, 1)])
def test_extreme_images_cost_no_memory(shape: tuple[int, int]) -> None:
    """Resized as a whole, the strip would have 6.5 billion pixels."""
    image = Image.new("RGB", (shape[1], shape[0]), (255, 0, 0))
    for kind in (image, torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, *shape)):
        for options in ({}, {"input_size": (3, 96, 128)}, {"is_training": True, "no_aug": True}):
            result = create_transform(normalize=False, **options)(kind)
            assert (result == torch.tensor([255, 0, 0]).view(3, 1, 1)).all()
        squashed = create_transform(normalize=False, crop_mode="squash")(kind)
        assert squashed.shape == (3, 224, 224)
        assert create_transform(crop_mode="border")(kind).shape == (3, 224, 224)
        assert create_transform(is_training=True)(kind).shape == (3, 224, 224)


def test_tensors_agree_with_pil_images(photos: list[Image.Image]) -> None:
    for options in ({}, {"crop_mode": "squash"}, {"crop_mode": "border"}, {"input_size": (3, 96, 160)}):
        transform = create_transform(**options)
        tensor = torch.from_numpy(np.array(photos[0])).permute(2, 0, 1)
        result = transform(tensor)
        assert (result - transform(photos[0])).abs().max() < 0.05  # two resizing kernels round differently
        assert (result - transform(tensor.float() / 255)).abs().max() < 0.05
        assert torch.equal(transform(tensor.expand(2, -1, -1, -1))[1], result)
    assert create_transform(normalize=False)(tensor).dtype == torch.uint8
    with pytest.raises(VertebraError, match="lanczos"):
        create_transform(interpolation="lanczos")(tensor)
    with pytest.raises(VertebraError, match=r"torch\.int32"):
        create_transform(interpolation="nearest")(tensor.int())


def test_grey_images_for_models_of_one_channel() -> None:
    image = noise(40, 30, "L")
    assert create_transform(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))(image).shape == (1, 8, 8)
    with pytest.raises(VertebraError, match=r"1 channels, mean and std have 3.*convert\('RGB'\)"):
        create_transform()(image)


def test_what_is_no_image_is_refused() -> None:
    for thing in (np.zeros((8, 8, 3), np.uint8), "photo.jpg", torch.zeros(8, 8)):
        for training in (False, True):
            with pytest.raises(VertebraError, match=r"cannot transform (a|what is no image)"):
                create_transform(is_training=training)(thing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterpolation": "bicubic"}, "unknown option 'iterpolation' for create_transform; did you mean 'interpol"),
        ({"zzz": 1}, "unknown option 'zzz' for create_transform; allowed: auto_augment, color_jitter"),
        ({"interpolation": "bicubicc"}, "unknown interpolation 'bicubicc'; did you mean 'bicubic'"),
        ({"interpolation": "random"}, "unknown interpolation 'random'"),
        ({"crop_mode": "centre"}, "unknown crop_mode 'centre'; did you mean 'center'"),
        ({"crop_pct": 0.0}, "crop_pct=0.0"),
        ({"input_size": 0}, "input_size=0"),
        ({"input_size": (3, 224, 224, 1)}, "input_size="),
        ({"input_size": (3, 224, 0.5)}, "input_size="),
        ({"mean": (0.1, 0.2)}, "differ in their number of channels"),
        ({"std": (0.1, 0.0, 0.1)}, "every value must be above 0"),
        ({"is_training": True, "hflip": 1.5}, "hflip=1.5: a probability"),
        ({"is_training": True, "re_prob": 0.5, "re_mode": "pixels"}, "unknown re_mode 'pixels'; did you mean 'pixel'"),
        ({"is_training": True, "re_prob": 0.5, "re_count": 0}, "re_count=0"),
        ({"is_training": True, "color_jitter": (0.1, 0.2)}, "color_jitter="),
        ({"is_training": True, "scale": (0.9, 0.1)}, "scale="),
        ({"is_training": True, "train_crop_mode": "rkrx"}, "unknown train_crop_mode 'rkrx'; did you mean 'rkr"),
        ({"separate": True}, "separate=True splits augmentation"),
        ({"is_training": True, "no_aug": True, "separate": True}, "separate=True splits augmentation"),
        ({"crop_border_pixels": -1}, "crop_border_pixels=-1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VertebraError) as caught:
        create_transform(**options)
    assert message in str(caught.value)
    assert isinstance(caught.value, UnknownNameError) == message.startswith("unknown")


def test_names_and_defaults_are_those_of_the_reference() -> None:
    for name in ("create_transform", "transforms_imagenet_eval", "transforms_imagenet_train", "transforms_noaug_train"):
        ours = inspect.signature(getattr(transforms_factory, name)).parameters
        reference = inspect.signature(getattr(timm.data.transforms_factory, name)).parameters
        for parameter in (p for p in ours.values() if p.kind is not p.VAR_KEYWORD):
            assert parameter.default == reference[parameter.name].default, (name, parameter.name)
        named = [p.name for p in ours.values() if p.kind is not p.VAR_KEYWORD]
        assert list(reference)[: len(named)] == named, name  # who gives them by place means the same
    assert vertebra.data.transforms_factory.create_transform is vertebra.data.create_transform


def test_what_changes_nothing_may_be_said(photos: list[Image.Image]) -> None:
    nothing = {"separate": False, "re_num_splits": 0, "train_crop_mode": "rrc", "tf_preprocessing": False}
    train = {"is_training": True, "input_size": 64}
    assert repr(create_transform(**train, **nothing)) == repr(create_transform(**train))
    raw = create_transform(64, use_prefetcher=True)(photos[0])
    assert torch.equal(raw, create_transform(64, normalize=False)(photos[0]))
    assert torch.equal(raw, torch.as_tensor(timm.data.create_transform(64, use_prefetcher=True)(photos[0])))
    for name, value in {"naflex": True, "patchify": True, "tf_preprocessing": True}.items():
        with pytest.raises(VertebraError, match=f"{name}={value!r}: transforms here have no such thing; leave it out"):
            create_transform(**train, **{name: value})


def test_a_border_is_cut_off_tensors_too(photos: list[Image.Image]) -> None:
    pixels = torch.from_numpy(np.array(photos[0])).permute(2, 0, 1)
    options: dict[str, Any] = {"input_size": 64, "crop_border_pixels": 5, "normalize": False}
    inner = {**options, "crop_border_pixels": None}
    assert torch.equal(create_transform(**options)(pixels), create_transform(**inner)(pixels[:, 5:-5, 5:-5]))
    with pytest.raises(VertebraError, match="crop_border_pixels=5 leaves nothing of an image of 10x40"):
        create_transform(**options)(noise(40, 10))


def test_eval_under_its_own_name(photos: list[Image.Image]) -> None:
    options = {"img_size": 128, "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    ours = vertebra.data.transforms_imagenet_eval(**options)
    reference = timm.data.transforms_factory.transforms_imagenet_eval(**options)
    assert torch.equal(ours(photos[3]), reference(photos[3]))
