"""When `Predictor` lets an optimised model answer: at once, later, or never."""

import itertools
import threading
from types import SimpleNamespace

import pytest
import torch

import vertebra
from tests.engine.conftest import jpeg, small
from vertebra.engine import predict as predict_module
from vertebra.engine import speed as speed_module
from vertebra.engine.predict import Prediction, Predictor
from vertebra.models.backbone import Backbone
from vertebra.spec import VertebraError


class Background:
    """Stands in for a compilation in another process."""

    started = 0
    finished = closed = False
    kept = True
    said = ""

    def __init__(self, *_: object) -> None:
        type(self).started += 1

    def done(self) -> bool:
        return type(self).finished

    def failure(self) -> str:
        return type(self).said

    def close(self) -> None:
        type(self).closed = True


@pytest.fixture
def background(monkeypatch: pytest.MonkeyPatch) -> type[Background]:
    fresh = type("Fresh", (Background,), {})
    monkeypatch.setattr(speed_module, "Build", fresh)
    monkeypatch.setattr(speed_module, "is_cached", lambda *_, **__: fresh.finished and fresh.kept and not fresh.said)
    monkeypatch.setattr(speed_module, "optimize", lambda *_, **__: lambda x: torch.eye(7)[4].expand(len(x), -1) * 9)
    return fresh


def firsts(predictor: Predictor, count: int) -> list[bool]:
    """For each of `count` photos, whether the fast stand-in, which always says class 4 and is sure, answered it."""
    red = jpeg("red")
    answers = [answer for _, answer in predictor.stream([red] * count)]
    return [isinstance(a, Prediction) and a.indices[0] == 4 and a.probabilities[0] > 0.99 for a in answers]


def test_few_photos_are_answered_by_the_model_itself(tiny: Backbone, background: type[Background]) -> None:
    assert not any(firsts(Predictor(tiny, transform=small), speed_module.FEW - 1))
    assert background.started == 0


class Steps:
    """Stands in for a model's steps made one: always says class 2."""

    made = 0

    def __init__(self, *_: object) -> None:
        type(self).made += 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.eye(7)[2].expand(len(x), -1) * 9


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> type[Steps]:
    fresh = type("Fresh", (Steps,), {})
    monkeypatch.setattr(speed_module, "fused", fresh)
    return fresh


def seconds(predictor: Predictor, count: int) -> list[bool]:
    """Of a stream of `count` photos, whether the stand-in for the model's steps answered it."""
    answers = [answer for _, answer in predictor.stream([jpeg("red")] * count)]
    return [isinstance(a, Prediction) and a.indices[0] == 2 and a.probabilities[0] > 0.99 for a in answers]


def test_steps_are_made_one_where_that_pays(
    tiny: Backbone, background: type[Background], steps: type[Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first photo where their number is known; then for all that follow, until an artefact is ready."""
    some = speed_module.SOME
    assert not any(seconds(Predictor(tiny, transform=small), some - 1))
    assert not any(seconds(Predictor(tiny, transform=small, optimize=False), some))
    assert steps.made == 0
    predictor = Predictor(tiny, transform=small, batch_size=4)
    assert all(seconds(predictor, some))
    assert all(seconds(predictor, 1))
    assert steps.made == 1
    monkeypatch.setattr(speed_module, "is_cached", lambda *_, **__: True)
    assert all(firsts(predictor, speed_module.FEW))
    predictor.run = mine = lambda x: torch.eye(7)[2].expand(len(x), -1) * 9
    assert all(seconds(predictor, speed_module.FEW))
    assert predictor.run is mine, "what somebody has set stays"


def test_photo_after_photo_counts_as_many(tiny: Backbone, steps: type[Steps]) -> None:
    predictor, red = Predictor(tiny, transform=small), jpeg("red")
    by_steps = [predictor(red).indices[0] == 2 for _ in range(speed_module.SOME + 1)]
    assert by_steps == [False] * (speed_module.SOME - 1) + [True, True]
    lists = Predictor(tiny, transform=small, batch_size=8)
    found = [answer.indices[0] == 2 for answer in lists([red] * 20)]
    assert found == [False] * 8 + [True] * 12


def test_what_has_no_steps_to_make_one_is_not_asked_again(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()
    monkeypatch.setattr(speed_module, "fused", asked.append)
    predictor = Predictor(tiny, transform=small)
    for _ in range(2):
        assert not any(seconds(predictor, speed_module.SOME))
    assert asked == [tiny]
    assert predictor.run is tiny


def test_many_photos_take_an_artefact_that_lies_ready(
    tiny: Backbone, background: type[Background], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_module, "is_cached", lambda *_, **__: True)
    assert all(firsts(Predictor(tiny, transform=small), speed_module.FEW))
    assert not any(firsts(Predictor(tiny, transform=small, optimize=False), speed_module.FEW))
    assert background.started == 0


def test_a_long_stream_starts_at_once_and_changes_when_the_compilation_ends(
    tiny: Backbone, background: type[Background], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_module, "LONG", 0.0)
    predictor = Predictor(tiny, transform=small, batch_size=4)
    by_fast = list[bool]()
    for number, (_, answer) in enumerate(predictor.stream([jpeg("red")] * 48)):
        assert isinstance(answer, Prediction)
        by_fast.append(answer.indices[0] == 4 and answer.probabilities[0] > 0.99)
        background.finished = number >= 20
    assert background.started == 1
    assert background.closed
    assert not any(by_fast[:20])
    assert all(by_fast[28:])
    assert all(firsts(predictor, 3))  # it stays


def test_a_compilation_that_fails_is_told_and_costs_no_answer(
    tiny: Backbone, background: type[Background], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(speed_module, "LONG", 0.0)
    background.finished, background.said = True, "no space left"
    assert not any(firsts(Predictor(tiny, transform=small, batch_size=4), 40))
    assert background.started == 1
    assert "goes on in eager mode: no space left" in caplog.text


def test_a_compilation_that_is_not_kept_is_not_repeated_here(
    tiny: Backbone, background: type[Background], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(speed_module, "LONG", 0.0)
    background.finished, background.kept = True, False
    assert not any(firsts(Predictor(tiny, transform=small, batch_size=4), 40))
    assert background.started == 1
    assert "what was compiled is not kept" in caplog.text


def test_a_compilation_that_nobody_waits_for_is_ended(
    tiny: Backbone, background: type[Background], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_module, "LONG", 0.0)
    stream = Predictor(tiny, transform=small, batch_size=4).stream([jpeg("red")] * 40)
    next(stream)
    assert background.started == 1
    stream.close()
    assert background.closed


def test_closing_waits_for_a_stream_that_is_just_changing(
    tiny: Backbone, background: type[Background], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_module, "LONG", 0.0)
    speed = speed_module.Speed(tiny, "f32")
    assert speed.faster(speed_module.FEW, 1.0) is None
    closing = threading.Thread(target=speed.close)
    with speed._turn:
        closing.start()
        closing.join(0.1)
        assert not background.closed
    closing.join(10)
    assert background.closed


def test_short_work_is_not_worth_a_compilation(
    tiny: Backbone, background: type[Background], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight photos a second: 40 of them are done in five."""
    seconds = itertools.count()
    monkeypatch.setattr(predict_module, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    firsts(Predictor(tiny, transform=small, batch_size=8), 40)
    assert background.started == 0


def test_what_the_first_batch_took_to_read_is_not_taken_for_a_photos_time(
    tiny: Backbone, background: type[Background], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five seconds of reading come before the first answer: they are not five a photo."""
    times = iter([0.0, 5.0])
    monkeypatch.setattr(predict_module, "time", SimpleNamespace(monotonic=lambda: next(times, 10.0)))
    firsts(Predictor(tiny, transform=small, batch_size=16), 40)
    assert background.started == 0


def test_optimised_from_the_first_answer(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def fast(model: Backbone, dtype: str) -> object:
        asked.append(dtype)
        return model

    monkeypatch.setattr(predict_module, "make_fast", fast)
    Predictor(tiny, transform=small, optimize=True)
    Predictor(tiny, transform=small, optimize=True, exact=True)
    assert asked == ["auto", "f32"]


def test_what_cannot_be_optimised_is_refused(tiny: Backbone) -> None:
    with pytest.raises(VertebraError, match=r"optimize=True takes a model of vertebra's own, not Optimized"):
        Predictor(vertebra.optimize(tiny, "eager", "f32"), transform=small, optimize=True)


def test_an_optimised_model_predicts_like_its_own(tiny: Backbone) -> None:
    fast = vertebra.optimize(tiny, "eager", "f32")
    ours, own = Predictor(fast, transform=small)(jpeg("red")), Predictor(tiny, transform=small)(jpeg("red"))
    assert ours.indices == own.indices
    assert ours.probabilities == pytest.approx(own.probabilities, rel=1e-4)
