"""Mixup and CutMix against timm's statistics and against their definition."""

from __future__ import annotations

from typing import Any

import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vertebra.data.mix import Mixup, soft_targets
from vertebra.spec.errors import VertebraError


def batch(count: int = 6, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is filled with i, and shows class i: what became of it can be read off."""
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, size, size).clone()
    return images, torch.arange(count)


def test_soft_targets_are_timms() -> None:
    target = torch.tensor([2, 0, 1])
    for smoothing in (0.0, 0.1, 0.5):
        theirs = timm.data.mixup.mixup_target(target, 4, lam=1.0, smoothing=smoothing)
        torch.testing.assert_close(soft_targets(target, 4, smoothing), theirs)


@given(
    count=st.integers(1, 7),
    mode=st.sampled_from(["batch", "pair", "elem"]),
    mixup=st.sampled_from([0.0, 0.2, 1.0]),
    cutmix=st.sampled_from([0.0, 1.0]),
    minmax=st.sampled_from([None, (0.2, 0.8)]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_targets_say_what_the_images_show(
    count: int, mode: Any, mixup: float, cutmix: float, minmax: Any, seed: int
) -> None:
    if not (mixup or cutmix or minmax):
        return
    mix = Mixup(
        mixup, cutmix, minmax, mode=mode, label_smoothing=0.0, num_classes=count,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    images, target = batch(count)
    mixed, rows = mix(images, target)
    assert mixed is images
    assert rows.shape == (count, count)
    torch.testing.assert_close(rows.sum(1), torch.ones(count))
    # The mean of an image is the mean of the classes in its target: for boxes, too.
    torch.testing.assert_close(mixed.mean((1, 2, 3)), rows @ torch.arange(count).float(), rtol=1e-4, atol=1e-4)
    if mode != "elem":
        torch.testing.assert_close(mixed + mixed.flip(0), torch.full_like(mixed, count - 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(
    "options",
    [
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
        {"mixup_alpha": 0.2, "prob": 0.5},
        {"mixup_alpha": 0.0, "cutmix_alpha": 0.4},
        {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "switch_prob": 0.1, "prob": 0.8},
        {"mixup_alpha": 0.0, "cutmix_minmax": (0.3, 0.6)},
    ],
    ids=str,
)
def test_shares_are_distributed_as_timms(mode: Any, options: dict[str, Any]) -> None:
    common = {"mode": mode, "label_smoothing": 0.1, "num_classes": 4, **options}

    def shares(mix: Any) -> torch.Tensor:
        rows = [mix(*batch(4, 32))[1] for _ in range(500)]
        return torch.stack(rows)[:, 0, 0]

    ours, theirs = shares(Mixup(**common)), shares(timm.data.Mixup(**common))
    points = torch.linspace(0, 1, 21)
    distance = ((ours[:, None] <= points).float().mean(0) - (theirs[:, None] <= points).float().mean(0)).abs().max()
    assert distance < 0.12  # Kolmogorov and Smirnov: 0.1% of equal pairs of 500 lie further apart
    assert abs(ours.mean() - theirs.mean()) < 0.06


def test_the_generator_says_everything() -> None:
    generator = torch.Generator().manual_seed(5)
    mix = Mixup(0.8, 1.0, mode="elem", num_classes=6, generator=generator)
    mix(*batch())
    state = generator.get_state()
    first = [mix(*batch()) for _ in range(3)]
    torch.rand(7)  # another's draws change nothing
    generator.set_state(state)
    for images, rows in first:
        again = mix(*batch())
        assert torch.equal(again[0], images)
        assert torch.equal(again[1], rows)


def test_targets_may_be_rows_already() -> None:
    images, target = batch()
    rows = torch.eye(6)[target]
    generator = torch.Generator()
    mix = Mixup(1.0, label_smoothing=0.0, num_classes=6, generator=generator.manual_seed(1))
    expected = mix(images.clone(), target)[1]
    generator.manual_seed(1)
    torch.testing.assert_close(mix(images, rows)[1], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "elems"}, "unknown mixup mode 'elems'; did you mean 'elem'"),
        ({"mixup_alpha": 0.0}, "one must be above 0"),
        ({"prob": 1.5}, "prob=1.5"),
        ({"cutmix_minmax": (0.9, 0.1)}, "cutmix_minmax=(0.9, 0.1)"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_errors_teach(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VertebraError) as caught:
        Mixup(**options)
    assert message in str(caught.value)
