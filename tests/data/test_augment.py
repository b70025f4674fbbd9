"""Augmentation against timm's operations and statistics, and against a generator's state."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from timm.data import auto_augment as peer

from vertebra.data import create_transform
from vertebra.data.augment.ops import ARGUMENTS, DRAWS, Op, Surroundings, apply
from vertebra.data.augment.policies import AugMix, AutoAugment, RandAugment, auto_augment
from vertebra.spec.errors import VertebraError

FILL = (124, 116, 104)
CONFIG = "rand-m9-mstd0.5-inc1"
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
POLICY_STRINGS = (CONFIG, "rand-m9-n3-t3aw", "augmix-m5-w4-d2", "augmix", "original-mstd0.5", "v0", "3a", "trivial")


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(4)
    noise = Image.fromarray(rng.integers(0, 256, (120, 150, 3), np.uint8))
    smooth = Image.radial_gradient("L").resize((130, 110))
    colours = Image.merge("RGB", [smooth, ImageOps.invert(smooth), smooth.rotate(40)])
    small = colours.resize((64, 64))
    return [noise, colours, small, Image.new("RGB", (5, 3), (7, 7, 200)), Image.new("RGB", (120, 100), (9, 50, 50))]


def difference(ours: np.ndarray, theirs: Image.Image) -> tuple[int, float]:
    assert ours.shape == np.asarray(theirs).shape
    apart = np.abs(ours.astype(int) - np.asarray(theirs))
    return int(apart.max()), float((apart > 0).mean())


def peer_arguments(name: str, level: float) -> set[float]:
    """The arguments that timm may draw for a level: one, or one for each sign."""
    to_argument = peer.LEVEL_TO_ARG[name]
    return {round(to_argument(level, {"translate_pct": 0.45})[0], 9) for _ in range(40)}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_levels_mean_what_they_mean_to_timm(name: str) -> None:
    argument = ARGUMENTS[name]
    if argument is None:
        assert peer.LEVEL_TO_ARG[name] is None
        return
    scale = 0.45 if name.startswith("Translate") else 1
    for level in (0, 0.4, 1, 3, 4.5, 5, 7.2, 9, 9.7, 10):
        assert {round(argument(level, sign) * scale, 9) for sign in (-1.0, 1.0)} == peer_arguments(name, level), level


@pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"GaussianBlurRand"}))
def test_operations_are_timms_pixel_by_pixel(name: str, resampling: Any) -> None:
    """Equal; only where we slide in single precision, a few values are one level off."""
    around = Surroundings(FILL, (resampling,))
    options: dict[str, Any] = {}
    if name in GEOMETRIC:
        mode = Image.Resampling.BICUBIC if resampling == "bicubic" else Image.Resampling.BILINEAR
        options = {"fillcolor": FILL, "resample": mode}
    argument = ARGUMENTS[name]
    for picture in pictures():
        before = np.array(picture)
        for level in (0, 2.3, 5, 9, 10):
            for sign in (-1.0, 1.0) if argument else (1.0,):
                value = None if argument is None else argument(level, sign)
                if name.startswith("Posterize") and value == 0:
                    continue  # Pillow no longer posterises to 0 bits; ours is black
                given = () if value is None else (value * (0.45 if name.startswith("Translate") else 1),)
                theirs = peer.NAME_TO_OP[name](picture, *given, **options)
                most, share = difference(apply(name, pixels := before.copy(), value, around), theirs)
                assert np.array_equal(pixels, before)  # what it was given stays as it is
                if name in GEOMETRIC and name != "Rotate":
                    assert most <= 1, (picture.size, level, sign)
                    assert share < 0.1, (picture.size, level, sign)
                else:
                    assert most == 0, (picture.size, level, sign)


@pytest.mark.parametrize("name", [name for name in GEOMETRIC if name != "Rotate"])
def test_long_strips_slide_as_timms(name: str) -> None:
    """So long that places in them take more than 16 bits."""
    for size in ((40_000, 2), (2, 40_000)):
        strip = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8))
        value = 0.2 if name.startswith("Shear") else 0.4
        given = value * (0.45 if name.startswith("Translate") else 1)
        theirs = peer.NAME_TO_OP[name](strip, given, fillcolor=FILL, resample=Image.Resampling.BILINEAR)
        most, share = difference(apply(name, np.asarray(strip), value, Surroundings(FILL, ("bilinear",))), theirs)
        assert most <= 1
        assert share < 0.1


def test_posterising_to_no_bits_is_black() -> None:
    assert not apply("PosterizeIncreasing", np.asarray(pictures()[0]), 0, Surroundings()).any()


@given(st.sampled_from(sorted(ARGUMENTS)), st.floats(0, 10), st.integers(1, 120), st.integers(1, 120), st.data())
@settings(deadline=None, max_examples=80)
def test_no_image_is_too_odd(name: str, magnitude: float, width: int, height: int, data: Any) -> None:
    image = np.asarray(Image.new("RGB", (width, height), (10, 200, 30)))
    draws = data.draw(st.lists(st.floats(0, 0.999), min_size=DRAWS, max_size=DRAWS))
    result = Op(name, p=1.0, magnitude=magnitude, noise=0.5)(image, Surroundings(), draws)
    assert result.shape == image.shape
    assert result.dtype == np.uint8


@pytest.mark.parametrize(
    "config",
    ["rand", CONFIG, "rand-m7-n3-p0.7-mstd101-mmax12", "rand-m9-t3a", "rand-m9-n2-t3aw", "rand-m4-inc0"],
)
def test_randaugment_reads_its_string_as_timm_does(config: str) -> None:
    ours, theirs = auto_augment(config), peer.rand_augment_transform(config, {})
    assert isinstance(ours, RandAugment)
    assert ours.layers == theirs.num_layers
    assert [op.name for op in ours.ops] == [op.name for op in theirs.ops]
    for mine, other in zip(ours.ops, theirs.ops, strict=True):
        assert (mine.p, mine.magnitude, mine.noise) == (other.prob, other.magnitude, other.magnitude_std)
        assert mine.top == (other.magnitude_max or 10)
    if theirs.choice_weights is None:
        assert ours.weights is None
    else:
        assert ours.weights is not None
        assert (ours.weights / ours.weights.sum()).tolist() == pytest.approx(list(theirs.choice_weights))


@pytest.mark.parametrize("config", ["augmix", "augmix-m5-w4-d2", "augmix-m3-a2-mstd1"])
def test_augmix_reads_its_string_as_timm_does(config: str) -> None:
    ours, theirs = auto_augment(config), peer.augment_and_mix_transform(config, {})
    assert isinstance(ours, AugMix)
    assert (ours.alpha, ours.width, ours.depth) == (theirs.alpha, theirs.width, theirs.depth)
    for mine, other in zip(ours.ops, theirs.ops, strict=True):
        assert (mine.name, mine.p, mine.magnitude) == (other.name, other.prob, other.magnitude)
        assert mine.noise == other.magnitude_std


@pytest.mark.parametrize("name", ["original", "originalr", "v0", "v0r", "3a"])
def test_policies_are_timms(name: str) -> None:
    ours = auto_augment(f"{name}-mstd0.5")
    assert isinstance(ours, AutoAugment)
    theirs = peer.auto_augment_policy(name, {"magnitude_std": 0.5})
    assert [[(o.name, o.p, o.magnitude, o.noise) for o in line] for line in ours.policy] == [
        [(o.name, o.prob, o.magnitude, o.magnitude_std) for o in line] for line in theirs
    ]


@pytest.mark.parametrize(("magnitude", "noise"), [(9, 0.5), (5, 2.0), (8, float("inf")), (3, 0.0)])
def test_levels_are_distributed_as_timms(monkeypatch: pytest.MonkeyPatch, magnitude: float, noise: float) -> None:
    seen: list[float] = []
    theirs = peer.AugmentOp("Desaturate", 1.0, magnitude, {"magnitude_std": noise})
    monkeypatch.setattr(theirs, "level_fn", lambda level, _: seen.append(level) or (0.5,))
    picture = Image.new("RGB", (2, 2))
    for _ in range(2000):
        theirs(picture)
    op = Op("Desaturate", 1.0, magnitude, noise)
    ours = torch.tensor([op.level(chance) for chance in torch.rand(2000).tolist()])
    points = torch.linspace(0, 10, 41)
    distance = (
        (ours[:, None] <= points).float().mean(0) - (torch.tensor(seen)[:, None] <= points).float().mean(0)
    ).abs()
    assert distance.max() < 0.06


@pytest.mark.parametrize("config", [CONFIG, "augmix-m5-w4-d2", "original", "3a"])
def test_pictures_change_as_much_as_timms(config: str) -> None:
    picture = pictures()[1].resize((48, 48))
    original = np.asarray(picture).astype(float)
    make = {"r": peer.rand_augment_transform, "a": peer.augment_and_mix_transform}.get(
        config[0], peer.auto_augment_transform
    )
    theirs = make(config, {"img_mean": FILL})
    ours = auto_augment(config, Surroundings(FILL))

    def changes(transform: Any) -> np.ndarray:
        return np.array([np.abs(np.asarray(transform(picture)) - original).mean() for _ in range(400)])

    a, b = changes(ours), changes(theirs)
    assert abs((a == 0).mean() - (b == 0).mean()) < 0.1
    assert abs(a.mean() - b.mean()) < 4 * np.sqrt(a.var() / 400 + b.var() / 400)


def test_operations_are_drawn_as_often_as_they_should() -> None:
    ops = [Op("Invert", 1.0), Op("Solarize", 1.0, 10), Op("Color", 1.0, 10)]
    image = Image.new("RGB", (1, 1), (200, 0, 0))
    even = RandAugment(ops, 1, None)
    counts = Counter(even(image).getpixel((0, 0)) for _ in range(900))
    assert all(240 < count < 360 for count in counts.values())
    assert len(counts) == 3
    weighted = RandAugment(ops, 1, [8, 1, 1])
    assert 0.74 < sum(weighted(image).getpixel((0, 0)) == (55, 255, 255) for _ in range(600)) / 600 < 0.86
    assert RandAugment(ops[:1] * 2, 2, [1, 1])(image).getpixel((0, 0)) == (200, 0, 0)  # both, hence never one twice


@pytest.mark.parametrize("config", POLICY_STRINGS)
def test_the_generator_says_everything(config: str) -> None:
    """The state of torch's default generator, or of the one given, fixes what happens; Python's and numpy's do not."""
    picture = pictures()[1]
    own = None if config == "trivial" else torch.Generator().manual_seed(3)
    policy = auto_augment(config, generator=own)
    for _ in range(3):
        policy(picture)
    state = torch.get_rng_state() if own is None else own.get_state()
    first = [np.asarray(policy(picture)) for _ in range(8)]
    random.seed(99)
    np.random.seed(99)
    if own is None:
        torch.set_rng_state(state)
    else:
        torch.rand(3)
        own.set_state(state)
    for expected in first:
        assert np.array_equal(np.asarray(policy(picture)), expected)
    assert any(not np.array_equal(first[0], other) for other in first[1:])


@pytest.mark.parametrize("config", POLICY_STRINGS)
def test_tensors_are_taken_as_pictures_are(config: str) -> None:
    picture = pictures()[2]
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    policy = auto_augment(config)
    for seed in range(6):
        torch.manual_seed(seed)
        expected = torch.from_numpy(np.array(policy(picture))).permute(2, 0, 1)
        torch.manual_seed(seed)
        result = policy(tensor)
        assert isinstance(result, torch.Tensor)
        if config == "trivial":  # torchvision's own kernels for tensors differ from Pillow's
            assert result.shape == expected.shape
        else:
            assert torch.equal(result, expected)
    assert torch.equal(tensor, torch.from_numpy(np.array(picture)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("rnd-m9", "unknown augmentation 'rnd-m9'; did you mean 'rand'"),
        ("rand-m9-w0", "unknown section 'w0'; allowed: m, mstd, mmax, n, p, inc, t"),
        ("rand-m9-t4", "unknown set of operations 't4'; allowed: t3a, t3aw"),
        ("rand-m", "'m' needs a number behind 'm', as m5"),
        ("rand-m9-m5", "'m' is given twice"),
        ("rand-p1.5", "p lies in 0..1"),
        ("rand-n15-t3aw", "n is at most 14"),
        ("augmix-w0", "w is at least 1"),
        ("3a-m5", "unknown section 'm5'; allowed: mstd"),
        ("trivial-m5", "unknown augmentation 'trivial-m5'"),
    ],
)
def test_wrong_strings_are_refused(config: str, message: str) -> None:
    with pytest.raises(VertebraError) as caught:
        auto_augment(config)
    assert message in str(caught.value)


def test_wrong_images_and_options_are_refused() -> None:
    policy = auto_augment(CONFIG)
    for thing, message in [
        (Image.new("L", (4, 4)), r"mode L.*convert\('RGB'\)"),
        (torch.zeros(3, 4, 4), "float32"),
        (np.zeros((4, 4, 3), np.uint8), "ndarray"),
    ]:
        with pytest.raises(VertebraError, match=message):
            policy(thing)
    with pytest.raises(VertebraError, match="unknown augmentation 'Colour'; did you mean 'Color'"):
        Op("Colour")
    with pytest.raises(VertebraError, match="cannot rotate or shear"):
        create_transform(is_training=True, auto_augment=CONFIG, interpolation="lanczos")
    with pytest.raises(VertebraError, match="a mean of 3 values"):
        create_transform(is_training=True, auto_augment=CONFIG, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    "options",
    [
        {"auto_augment": CONFIG},
        {"auto_augment": "augmix-m5", "color_jitter": 0.3, "color_jitter_prob": 0.8},
        {"auto_augment": "original", "grayscale_prob": 0.1, "re_prob": 0.2},
        {"auto_augment": "3a", "color_jitter": 0.3, "interpolation": "bicubic"},
        {"auto_augment": "rand-m6-t3a", "interpolation": "random"},
    ],
    ids=str,
)
def test_create_transform_takes_the_steps_of_timm(options: dict[str, Any]) -> None:
    names = {"RandomResizedCropAndInterpolation": "RandomResizedCrop", "MaybeToTensor": "ToTensor"}
    names["AugMixAugment"] = "AugMix"
    ours = create_transform(64, is_training=True, **options)
    theirs = timm.data.create_transform(64, is_training=True, **options)
    expected = [names.get(type(step).__name__, type(step).__name__) for step in theirs.transforms]
    assert [type(step).__name__ for step in ours.transforms] == expected
    policy = ours.transforms[2]
    op = theirs.transforms[2].ops[0] if hasattr(theirs.transforms[2], "ops") else theirs.transforms[2].policy[0][0]
    assert policy.around.fill == op.hparams["img_mean"]
    assert ours(pictures()[0]).shape == (3, 64, 64)


# Reading.
