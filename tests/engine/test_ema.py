"""The average of weights against timm's, step for step."""

from __future__ import annotations

from typing import Any

import pytest
import timm.utils
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vertebra.engine.ema import Ema, ema_decay
from vertebra.spec import VertebraError


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))


OPTIONS: list[dict[str, Any]] = [
    {"decay": 0.9},
    {"decay": 0.95, "warmup": True},
    {"decay": 0.9, "warmup": True, "update_after_step": 3, "min_decay": 0.2, "warmup_gamma": 2.0, "warmup_power": 0.9},
    {"decay": 0.99, "update_after_step": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_average_is_timms(options: dict[str, Any]) -> None:
    student = model()
    student(torch.randn(2, 3, 6, 6))
    theirs = timm.utils.ModelEmaV3(
        student, **{("use_warmup" if name == "warmup" else name): value for name, value in options.items()}
    )
    ours = Ema(student, **options)
    sgd = torch.optim.SGD(student.parameters(), lr=0.1)
    for step in range(12):
        student(torch.randn(2, 3, 6, 6)).square().mean().backward()
        sgd.step()
        sgd.zero_grad()
        theirs.update(student, step=step)
        ours.update(student, step)
        assert ours.decay_at(step) == pytest.approx(theirs.get_decay(step), abs=1e-15)
        for name, value in theirs.module.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    assert not ours.module.training
    assert not any(parameter.requires_grad for parameter in ours.module.parameters())
    assert not torch.equal(ours.module[0].weight, student[0].weight)


def test_the_state_is_all_there_is() -> None:
    student, restored = nn.Linear(3, 2), nn.Linear(3, 2)
    first = Ema(student, 0.9)
    first.update(student, 0)
    second = Ema(restored, 0.9)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        student.weight.add_(1)
    for ema in (first, second):
        ema.update(student, 5)
    assert torch.equal(first.module.weight, second.module.weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict({})


def test_the_average_of_half_precision_does_not_stand_still() -> None:
    student = nn.Linear(2, 2).bfloat16()
    with torch.no_grad():
        student.weight.fill_(1.0)
    ema = Ema(student, 0.999, dtype=torch.float32)
    with torch.no_grad():
        student.weight.fill_(1.0078125)
    for step in range(1, 200):
        ema.update(student, step + 1)
    assert 1.0005 < ema.module.weight[0, 0].item() < 1.0078125


@given(st.integers(0, 10**7), st.floats(0, 1), st.booleans())
def test_decay_stays_a_share(step: int, decay: float, warmup: bool) -> None:
    assert 0 <= ema_decay(step, decay, warmup=warmup) <= decay
    assert ema_decay(step, decay, warmup=warmup) <= ema_decay(step + 1, decay, warmup=warmup)


def test_a_decay_above_one_is_refused() -> None:
    with pytest.raises(VertebraError, match=r"decay=1\.5"):
        Ema(nn.Linear(1, 1), 1.5)
