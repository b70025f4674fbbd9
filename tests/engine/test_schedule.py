"""Schedules against timm's and torch's, step for step."""

from __future__ import annotations

from typing import Any

import pytest
import timm.scheduler
import torch
from hypothesis import given
from hypothesis import strategies as st

from vertebra.engine.schedule import Schedule, set_lr
from vertebra.spec import VertebraError

BASE = 0.7
WARM: dict[str, Any] = {"warmup": 3, "warmup_lr": 0.01}


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)


def reference(name: str, steps: int, **options: Any) -> list[float]:
    sgd = optimizer()
    scheduler = getattr(timm.scheduler, name)(sgd, **options)
    rates = []
    for step in range(steps):
        scheduler.step(step)
        rates.append(sgd.param_groups[0]["lr"])
    return rates


def same(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.at(step) for step in range(len(expected))] == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("kind", ["cosine", "poly"])
@pytest.mark.parametrize(
    "cycle",
    [
        {},
        {"cycle_limit": 3, "cycle_decay": 0.5},
        {"cycle_mul": 2.0, "cycle_limit": 2, "cycle_decay": 0.3},
        {"k_decay": 0.7},
    ],
)
def test_cosine_and_poly(kind: str, cycle: dict[str, Any], prefix: bool) -> None:
    options = {"lr_min": 0.003, "warmup_prefix": prefix, **cycle, **({"power": 1.7} if kind == "poly" else {})}
    name = {"cosine": "CosineLRScheduler", "poly": "PolyLRScheduler"}[kind]
    expected = reference(name, 40, t_initial=11, warmup_t=3, warmup_lr_init=0.01, **options)
    same(Schedule(kind=kind, lr=BASE, total=11, **WARM, **options), expected)


@pytest.mark.parametrize("prefix", [False, True])
def test_stairs_and_milestones(prefix: bool) -> None:
    warm = {"warmup_t": 3, "warmup_lr_init": 0.01, "warmup_prefix": prefix}
    expected = reference("StepLRScheduler", 40, decay_t=2.4, decay_rate=0.97, **warm)
    same(Schedule(kind="step", lr=BASE, decay_steps=2.4, decay=0.97, warmup_prefix=prefix, **WARM), expected)
    expected = reference("MultiStepLRScheduler", 40, decay_t=[5, 12], decay_rate=0.1, **warm)
    same(Schedule(kind="multistep", lr=BASE, milestones=(5, 12), warmup_prefix=prefix, **WARM), expected)


@pytest.mark.parametrize("cooldown", [0, 3])
@pytest.mark.parametrize("higher", [True, False])
def test_plateau_replays_the_history(higher: bool, cooldown: int) -> None:
    options = {"decay_rate": 0.5, "patience_t": 2, "cooldown_t": cooldown, "lr_min": 0.1, "warmup_t": 3}
    generator = torch.Generator().manual_seed(3)
    metrics = (torch.rand(60, generator=generator) * 5).round().tolist()
    sgd = optimizer()
    with pytest.warns(FutureWarning):
        theirs = timm.scheduler.PlateauLRScheduler(sgd, mode="max" if higher else "min", warmup_lr_init=0.01, **options)
    schedule = Schedule(
        kind="plateau", lr=BASE, decay=0.5, patience=2, cooldown=cooldown, lr_min=0.1, higher_is_better=higher, **WARM
    )
    for step, metric in enumerate(metrics):
        theirs.step(step, metric)
        assert schedule.at(step, metrics) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12), step
    assert schedule.at(59, metrics) < BASE
    with pytest.raises(VertebraError, match="needs the 60 metrics so far, not 3"):
        schedule.at(59, metrics[:3])


@pytest.mark.parametrize("total", [2, 17, 100])
def test_one_cycle_is_torchs(total: int) -> None:
    sgd = optimizer()
    theirs = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=BASE, total_steps=total, pct_start=0.3)
    schedule = Schedule(kind="one_cycle", lr=BASE, total=total)
    for step in range(total):
        assert schedule.at(step) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9), step
        sgd.step()
        if step + 1 < total:
            theirs.step()


@given(
    kind=st.sampled_from(["cosine", "poly", "step", "multistep", "constant", "one_cycle"]),
    lr=st.floats(1e-5, 10),
    total=st.integers(1, 500),
    step=st.integers(0, 1000),
    mul=st.sampled_from([1.0, 1.5, 2.0]),
)
def test_rates_stay_between_their_bounds(kind: Any, lr: float, total: int, step: int, mul: float) -> None:
    rate = Schedule(kind=kind, lr=lr, total=total, cycle_mul=mul, cycle_limit=3, milestones=(3,)).at(step)
    assert 0 <= rate <= lr * (1 + 1e-9)


def test_groups_learn_at_their_own_scale() -> None:
    sgd = torch.optim.SGD([{"params": [torch.zeros(1)], "lr_scale": 0.5}, {"params": [torch.zeros(1)]}], lr=1.0)
    set_lr(sgd, 0.2)
    assert [group["lr"] for group in sgd.param_groups] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"lr": 0.0}, "lr=0.0; give a number above 0"),
        ({"warmup": -1}, "warmup=-1; give 0 or more"),
        ({"kind": "one_cycle", "warmup": 2}, "warms up by itself"),
        ({"kind": "one_cycle", "rise": 1.0}, "rise=1.0"),
        ({"milestones": (5, 3)}, "rising order"),
    ],
)
def test_errors_teach(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VertebraError) as caught:
        Schedule(**{"lr": 0.1, **options})
    assert message in str(caught.value)
