"""Losses against timm's and torch's, and against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm.loss
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vertebra.data.mix import soft_targets
from vertebra.engine.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Distillation,
    Focal,
    class_weights,
    create_loss,
    weights_of,
)
from vertebra.spec import VertebraError


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 5) * 3


@pytest.fixture
def target() -> torch.Tensor:
    return torch.randint(5, (6,))


def test_cross_entropy_is_timms(logits: torch.Tensor, target: torch.Tensor) -> None:
    for smoothing in (0.0, 0.1):
        reference = timm.loss.LabelSmoothingCrossEntropy(smoothing)(logits, target)
        torch.testing.assert_close(CrossEntropy(smoothing)(logits, target), reference)
    rows = torch.rand(6, 5).softmax(-1)
    torch.testing.assert_close(CrossEntropy()(logits, rows), timm.loss.SoftTargetCrossEntropy()(logits, rows))
    torch.testing.assert_close(CrossEntropy(0.3)(logits, rows), CrossEntropy()(logits, rows))


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_is_timms(
    logits: torch.Tensor, target: torch.Tensor, smoothing: float, threshold: float | None, sum_classes: bool
) -> None:
    weight, positive = torch.rand(5) + 0.5, torch.rand(5) + 0.5
    for options in ({}, {"weight": weight}, {"pos_weight": positive}):
        theirs = timm.loss.BinaryCrossEntropy(smoothing, threshold, sum_classes=sum_classes, **options)
        ours = BinaryCrossEntropy(smoothing, threshold, sum_classes=sum_classes, **options)
        for answer in (target, torch.rand(6, 5)):
            torch.testing.assert_close(ours(logits, answer), theirs(logits, answer))


def test_several_labels_an_image(logits: torch.Tensor) -> None:
    rows = (torch.rand(6, 5) > 0.5).long()
    expected = F.binary_cross_entropy_with_logits(logits, rows.float())
    torch.testing.assert_close(create_loss("bce")(logits, rows), expected)


@given(st.floats(0, 5), st.booleans(), st.integers(0, 4))
@settings(deadline=None, max_examples=40)
def test_focal_is_its_definition(gamma: float, binary: bool, label: int) -> None:
    logits = torch.linspace(-2, 3, 5)[None]
    rows = soft_targets(torch.tensor([label]), 5)
    p = logits.sigmoid() if binary else logits.softmax(-1)
    right = torch.where(rows == 1, p, 1 - p)
    terms = -((1 - right) ** gamma) * right.log()
    expected = terms.mean() if binary else terms[0, label]
    torch.testing.assert_close(Focal(gamma, binary=binary)(logits, torch.tensor([label])), expected)


def test_focal_with_gamma_0_is_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> None:
    torch.testing.assert_close(Focal(0.0)(logits, target), CrossEntropy()(logits, target))
    torch.testing.assert_close(Focal(0.0, 0.1)(logits, target), CrossEntropy(0.1)(logits, target))
    torch.testing.assert_close(Focal(0.0, binary=True)(logits, target), BinaryCrossEntropy()(logits, target))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_with_gamma_0_is_cross_entropy_of_weighted_classes_too(
    logits: torch.Tensor, target: torch.Tensor, smoothing: float
) -> None:
    weight, rows = torch.rand(5) * 3 + 0.2, torch.rand(6, 5).softmax(-1)
    expected = F.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(Focal(0.0, smoothing, weight)(logits, target), expected)
    torch.testing.assert_close(Focal(0.0, 0.0, weight)(logits, rows), F.cross_entropy(logits, rows, weight=weight))
    both = F.binary_cross_entropy_with_logits(logits, soft_targets(target, 5, smoothing), weight=weight)
    torch.testing.assert_close(Focal(0.0, smoothing, weight, binary=True)(logits, target), both)


def test_weighted_focal_is_its_definition(logits: torch.Tensor, target: torch.Tensor) -> None:
    """As the weighted average of the images' own losses, by numpy."""
    weight = torch.rand(5) * 3 + 0.2
    p = logits.double().softmax(-1).numpy()[range(6), target.numpy()]
    own = weight.double().numpy()[target.numpy()]
    expected = (own * (1 - p) ** 2 * -np.log(p)).sum() / own.sum()
    torch.testing.assert_close(Focal(2.0, 0.0, weight)(logits, target).item(), float(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "bce", "focal_bce"])
@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("numbers", [False, True])
def test_parts_of_a_batch_make_up_the_whole(kind: str, *, taught: bool, numbers: bool) -> None:
    logits, weight, teacher = torch.randn(9, 5), torch.rand(5) * 3 + 0.2, torch.randn(9, 5)
    target = torch.randint(5, (9,)) if numbers else torch.rand(9, 5).softmax(-1)
    loss: Any = create_loss(kind, weight=weight, smoothing=0.1)
    loss = Distillation(loss, alpha=0.3) if taught else loss
    teachers = (teacher,) if taught else ()
    own = weights_of(loss, target)
    assert (own is not None) == (numbers and kind in ("cross_entropy", "focal"))
    more = {} if own is None else {"mean_weight": own.mean()}
    whole = loss(logits, target, *teachers)
    parts = [slice(0, 2), slice(2, 3), slice(3, 9)]
    losses = [loss(logits[p], target[p], *(t[p] for t in teachers), **more) * len(target[p]) / 9 for p in parts]
    torch.testing.assert_close(torch.stack(losses).sum(), whole)


def test_class_weights_balance(logits: torch.Tensor, target: torch.Tensor) -> None:
    weights = class_weights(torch.tensor([10, 20, 40, 40, 40]))
    assert weights.mean() == pytest.approx(1)
    assert (weights * torch.tensor([10, 20, 40, 40, 40])).std() < 1e-4
    assert (class_weights(torch.tensor([3, 9]), beta=0.0) == 1).all()
    expected = F.cross_entropy(logits, target, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(create_loss(smoothing=0.1, weight=weights)(logits, target), expected)
    with pytest.raises(VertebraError, match="class 1 has no images"):
        class_weights(torch.tensor([3, 0]))


def test_hard_distillation_of_two_heads(logits: torch.Tensor, target: torch.Tensor) -> None:
    second, teacher = torch.randn(6, 5), torch.randn(6, 5, requires_grad=True)
    loss = Distillation(CrossEntropy(0.1), "hard", alpha=0.3)((logits, second), target, teacher)
    expected = 0.7 * CrossEntropy(0.1)(logits, target) + 0.3 * F.cross_entropy(second, teacher.argmax(-1))
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad


def test_soft_distillation_of_one_head(logits: torch.Tensor, target: torch.Tensor) -> None:
    teacher = torch.randn(6, 5)
    loss = Distillation(CrossEntropy(), "soft", alpha=0.6, tau=3.0)(logits, target, teacher)
    p, q = (teacher / 3).softmax(-1), (logits / 3).softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean() * 9
    torch.testing.assert_close(loss, 0.4 * CrossEntropy()(logits, target) + 0.6 * divergence)
    same = Distillation(CrossEntropy(), "soft", alpha=1.0)(logits, target, logits)
    assert abs(same.item()) < 1e-6


def test_half_precision_is_summed_in_full(logits: torch.Tensor, target: torch.Tensor) -> None:
    for name in ("cross_entropy", "bce", "focal", "focal_bce"):
        loss = create_loss(name)(logits.bfloat16(), target)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, create_loss(name)(logits.bfloat16().float(), target))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_loss("cross_entropi"), "unknown loss 'cross_entropi'; did you mean 'cross_entropy'"),
        (lambda: create_loss("focal", target_threshold=0.2), "has no target_threshold"),
        (lambda: create_loss("bce", gamma=1.0), "has no gamma"),
        (lambda: CrossEntropy(1.0), "label_smoothing=1.0"),
        (lambda: Focal(-1.0), "gamma=-1.0"),
        (lambda: Distillation(CrossEntropy(), "sofd"), "unknown distillation 'sofd'; did you mean 'soft'"),
        (lambda: Distillation(CrossEntropy(), tau=0.0), "tau is above 0"),
        (lambda: CrossEntropy()(torch.zeros(2, 3), torch.zeros(2, 4)), "do not fit logits"),
        (
            lambda: Distillation(CrossEntropy())(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 4)),
            "both need the same classes",
        ),
    ],
)
def test_errors_teach(make: Any, message: str) -> None:
    with pytest.raises(VertebraError) as caught:
        make()
    assert message in str(caught.value)
