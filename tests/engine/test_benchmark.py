"""Speed measured in turn: the figures follow from the timings, and who cannot run does not end the contest."""

import importlib
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vertebra.engine import benchmark as module
from vertebra.engine import contest
from vertebra.engine import limits as limits_module
from vertebra.engine.benchmark import Plan, Result, Row, benchmark
from vertebra.engine.contest import Contestant, build, input_size, peak_memory
from vertebra.engine.limits import Limits, Work, measure_limits, work
from vertebra.engine.measure import measure
from vertebra.engine.plot import plot
from vertebra.runtime import machine
from vertebra.runtime.backend import DTYPES
from vertebra.spec import UnknownNameError, VertebraError

CPU = torch.device("cpu")
LIMITS = Limits({"f32": 1e11, "bf16": 1e10, "int8": 1e9}, 1e10)
ARCH = "dla46_c"
PLAN = Plan(models=(ARCH,), backends=("eager",), dtypes=("f32",), batches=(1,), rounds=1, img_size=64, memory=False)


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose limits are known and cost no time."""
    monkeypatch.setattr(module, "measure_limits", lambda *_: LIMITS)
    monkeypatch.setattr(module, "LEAST", 0.0)


def test_all_figures_follow_from_the_median_time() -> None:
    heard = list[Row]()
    result = benchmark(replace(PLAN, batches=(1, 2), against=("timm",), rounds=3), heard.append)
    assert heard == result.rows
    assert [(r.library, r.batch) for r in result.rows] == [("vertebra", 1), ("timm", 1), ("vertebra", 2), ("timm", 2)]
    cost = measure(ARCH, (3, 64, 64))
    for row in result.rows:
        assert row.seconds is not None
        assert row.error == ""
        assert row.images_per_second == pytest.approx(row.batch / row.seconds)
        assert row.flops == pytest.approx(2 * cost.products * row.batch / row.seconds)
        assert row.peak_share == pytest.approx(row.flops / 1e11)
        assert row.limit_share == pytest.approx(
            work(cost, "f32", row.batch, train=False).floor(LIMITS, "f32") / row.seconds
        )
        assert row.spread is not None
        assert row.spread >= 0
        assert row.peak_memory is None
    for ours, peer in (result.rows[:2], result.rows[2:]):
        assert peer.ratio == 1
        assert ours.ratio == pytest.approx(peer.seconds / ours.seconds)


def test_without_a_peer_the_own_eager_f32_is_the_measure() -> None:
    rows = benchmark(replace(PLAN, dtypes=("bf16", "f32"))).rows
    assert [row.dtype for row in rows] == ["bf16", "f32"]
    assert rows[1].ratio == 1
    assert rows[0].ratio == pytest.approx(rows[1].seconds / rows[0].seconds)


def test_published_accuracy_belongs_to_the_published_size() -> None:
    assert benchmark(PLAN).rows[0].top1 is None
    assert module._top1(ARCH) == pytest.approx(64.9, abs=0.1)
    assert module._top1("dla46_c.in1k") == module._top1(ARCH)
    assert module._top1("cs3darknet_l") == pytest.approx(80.35, abs=0.01)  # at 256 pixels; 80.88 at 288


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        (replace(PLAN, dtypes=("int8", "f32")), "no int8 in eager mode"),
        (replace(PLAN, backends=("onnxruntime", "eager"), dtypes=("bf16",)), "onnxruntime runs f32 here"),
        (replace(PLAN, against=("torchvision",)), "torchvision has no dla46_c"),
    ],
)
def test_who_cannot_run_does_not_end_the_contest(plan: Plan, named: str) -> None:
    rows = benchmark(plan).rows
    failed = [row for row in rows if row.error]
    assert failed
    assert all(named in row.error and row.seconds is None and row.ratio is None for row in failed)
    assert any(row.seconds for row in rows)


def test_a_model_that_does_not_take_the_size_leaves_the_others_theirs() -> None:
    vit, cnn = benchmark(replace(PLAN, models=("deit_tiny_patch16_224", ARCH), img_size=40)).rows
    assert "40" in vit.error
    assert vit.seconds is None
    assert (cnn.error, cnn.ratio) == ("", 1)


def test_images_for_which_there_is_no_memory_are_an_error_of_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    randn = torch.randn

    def limited(count: int, *size: int, **options: Any) -> torch.Tensor:
        if count == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return randn(count, *size, **options)

    monkeypatch.setattr(torch, "randn", limited)
    plan = replace(PLAN, batches=(1, 2), dtypes=("f32", "int8"))
    one, no_int8, *two = benchmark(plan).rows
    assert one.seconds
    assert "no int8 in eager mode" in no_int8.error
    assert [row.error for row in two] == ["DefaultCPUAllocator: can't allocate memory"] * 2


def test_what_fails_at_last_leaves_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(module, "peak_memory", fail)
    (row,) = benchmark(replace(PLAN, memory=True)).rows
    assert (row.ratio, row.peak_memory, row.error) == (1, None, "MemoryError")


def test_ctrl_c_ends_it_with_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(row: Row) -> None:
        if row.batch == 2:
            raise KeyboardInterrupt

    result = benchmark(replace(PLAN, batches=(1, 2, 3)), stop)
    assert result.interrupted
    assert [row.batch for row in result.rows] == [1, 2]
    assert all(row.seconds for row in result.rows)
    monkeypatch.setattr(module, "_contest", lambda *_: stop(result.rows[1]))
    with pytest.raises(KeyboardInterrupt):
        benchmark(PLAN)


def test_a_peer_that_is_not_installed_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(contest, "importlib", type("Absent", (), {"import_module": staticmethod(absent)}))
    assert "pip install timm" in benchmark(replace(PLAN, against=("timm",))).rows[1].error


@pytest.mark.parametrize(
    ("plan", "error", "message"),
    [
        (replace(PLAN, models=("dla35",)), UnknownNameError, "unknown model 'dla35'; did you mean 'dla34'"),
        (
            replace(PLAN, backends=("openvine",)),
            UnknownNameError,
            "unknown backend 'openvine'; did you mean 'openvino'",
        ),
        (replace(PLAN, dtypes=("f16",)), UnknownNameError, "unknown dtype 'f16'"),
        (replace(PLAN, against=("tim",)), UnknownNameError, "unknown peer 'tim'; did you mean 'timm'"),
        (replace(PLAN, against=("keras",)), UnknownNameError, "unknown peer 'keras'; allowed: timm, torchvision"),
        (replace(PLAN, batches=(1, 0)), VertebraError, r"batch=\(1, 0\): give whole numbers from 1 on"),
        (replace(PLAN, rounds=0), VertebraError, "rounds="),
        (replace(PLAN, backends=()), VertebraError, "no backends to measure"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_before_anything_is_measured(
    plan: Plan, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_limits", lambda *_: pytest.fail("measured"))
    with pytest.raises(error, match=message):
        benchmark(plan)


@pytest.mark.parametrize("arch", [ARCH, "deit_tiny_distilled_patch16_224"])
def test_a_training_step_trains(arch: str) -> None:
    plan = replace(PLAN, models=(arch,), backends=("auto",), train=True, against=("timm",), batches=(2,))
    ours, peer = benchmark(plan).rows
    assert (ours.error, peer.error) == ("", "")
    assert ours.train
    assert ours.backend == "eager"
    assert ours.flops is not None
    assert ours.seconds is not None
    who = Contestant("vertebra", arch, "eager", "f32", True, "cpu", 64)
    assert ours.flops * ours.seconds == pytest.approx(3 * 2 * 2 * measure(contest.on_meta(who), (3, 64, 64)).products)
    step = build(who)[0]
    first, second = (step(torch.ones(2, 3, 64, 64)).item() for _ in range(2))
    assert first != second


@pytest.mark.parametrize(("native", "dtype"), [(True, "bf16"), (False, "f32")])
@pytest.mark.parametrize("train", [True, False])
def test_auto_is_one_type_for_all_who_run(
    native: bool, dtype: str, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "native_bf16", lambda _: native)
    rows = benchmark(replace(PLAN, dtypes=("auto", dtype), train=train)).rows
    assert [(row.backend, row.dtype, row.error) for row in rows] == [("eager", dtype, "")]
    plan = replace(PLAN, backends=("auto",), dtypes=("auto",), train=train, against=("timm",))
    types = {who.library: who.dtype for who in module._contestants(plan, ARCH)}
    assert types == {"vertebra": dtype, "timm": dtype}


def test_optimised_models_are_handed_images_as_they_lie_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[bool]()

    class Fast(torch.nn.Module):
        report = type("Report", (), {"backend": "fast", "dtype": "f32"})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.is_contiguous())
            return x

    monkeypatch.setattr(contest, "optimize", lambda *_, **__: Fast())
    build(Contestant("vertebra", ARCH, "fast", "f32", False, "cpu", 64))[0](torch.ones(2, 3, 64, 64))
    assert seen == [True]


def test_shares_are_of_the_limits_that_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    better = Limits({key: 2 * value for key, value in LIMITS.flops.items()}, 2 * LIMITS.bandwidth)
    measured = iter((LIMITS, better))
    monkeypatch.setattr(module, "measure_limits", lambda *_: next(measured))
    heard = list[Row]()
    result = benchmark(PLAN, heard.append)
    assert result.limits == better
    for share in ("limit_share", "peak_share"):
        assert getattr(result.rows[0], share) == pytest.approx(getattr(heard[0], share) / 2)


def test_a_process_that_is_killed_while_memory_is_measured_costs_only_that_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contest, "ProcessPoolExecutor", lambda *_, **__: Killed())
    (row,) = benchmark(replace(PLAN, memory=True)).rows
    assert row.seconds
    assert row.peak_memory is None


class Killed:
    """A pool whose only process the system has killed."""

    def __enter__(self) -> "Killed":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, *_: object) -> Any:
        future: Future[int] = Future()
        future.set_exception(BrokenProcessPool("abruptly"))
        return future


def test_contestants_take_turns() -> None:
    order = list[str]()
    calls: dict[Any, Callable[[], object]] = {name: lambda name=name: order.append(name) for name in "abc"}
    times = module._interleave(calls, 2, CPU)
    assert "".join(order) == "abc" * 4  # once to see how long it takes, once to warm up, twice that count
    assert [len(taken) for taken in times.values()] == [2, 2, 2]


def test_every_one_gets_images_of_one_size() -> None:
    def size(model: str, side: int | None) -> tuple[int, int, int]:
        return input_size(Contestant("timm", model, "eager", "f32", False, "cpu", side))

    assert size(ARCH, None) == (3, 224, 224)
    assert size(ARCH, 96) == (3, 96, 96)
    assert size("deit_base_patch16_384", None) == (3, 384, 384)
    assert size("deit_base_patch16_384", 64) == (3, 64, 64)


def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    who = Contestant("vertebra", ARCH, "eager", "f32", False, "cpu", 224)
    small, large = peak_memory(who, 1), peak_memory(who, 48)
    assert 1e8 < small < 5e9
    assert large - small > 48 * 3 * 224 * 224 * 4  # the images, at least: the first maps are made one by one


def test_the_floor_is_the_higher_of_arithmetic_and_traffic() -> None:
    assert Work(flops=2e11, bytes=1).floor(LIMITS, "f32") == pytest.approx(2)
    assert Work(flops=1, bytes=3e10).floor(LIMITS, "f32") == pytest.approx(3)
    assert Work(flops=6, bytes=3).intensity == 2
    assert LIMITS.peak("bf16") == LIMITS.peak("int8") == 1e11  # slower than f32 here, so nobody has to use it
    cost = measure(ARCH, (3, 64, 64))
    once, step = work(cost, "bf16", 4, train=False), work(cost, "bf16", 4, train=True)
    assert once.flops == 8 * cost.products
    assert once.bytes == 2 * (cost.params + 4 * (2 * cost.activations + 3 * 64 * 64))
    assert (step.flops, step.bytes) == (3 * once.flops, 3 * once.bytes)


def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_limits(CPU, ("f32",), seconds=0.01)
    assert set(found.flops) == {"f32"}
    assert found.flops["f32"] > 1e7
    assert found.bandwidth > 1e7
    monkeypatch.setattr(limits_module, "_best", lambda *_: 1.0)
    assert set(measure_limits(CPU, ("bf16",)).flops) == {"f32", "bf16"}  # also in what it may be computed instead


@pytest.mark.parametrize("side", [64, 1024])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_every_way_to_multiply_has_as_much_to_do(dtype: str, side: int) -> None:
    products = limits_module._products(dtype, side, CPU)
    assert len(products) == 2
    for product in products:
        with FlopCounterMode(display=False) as counter:
            found = product()
        assert counter.get_total_flops() == 2 * side**3
        assert isinstance(found, torch.Tensor)
        assert found.dtype == DTYPES[dtype]


def test_int8_products_are_products() -> None:
    (product,) = limits_module._products("int8", 32, CPU)
    found = product()
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.int32


def row(**figures: Any) -> Row:
    return Row("dla34", "vertebra", "openvino", "f32", 8, False, **figures)


def test_a_picture_shows_names_limits_and_what_ran(tmp_path: Path) -> None:
    ran = row(seconds=0.1, images_per_second=80.0, intensity=20.0, flops=5e10, top1=74.6)
    failed = replace(row(error="no"), backend="inductor")
    result = Result(LIMITS, {"device": "some processor", "threads": 2}, [ran, failed])
    plot(result, tmp_path / "new" / "a.svg")
    drawn = (tmp_path / "new" / "a.svg").read_text()
    for text in ("dla34", "vertebra openvino f32", "limit f32", "some processor, 2 threads", "Roofline"):
        assert f"<!-- {text} -->" in drawn
    for text in ("inductor", "limit bf16"):  # what did not run; a roof below a wider type's
        assert text not in drawn
    plot(replace(result, rows=[replace(ran, top1=None)]), tmp_path / "a.PNG")
    assert (tmp_path / "a.PNG").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result(LIMITS, {"device": "x", "threads": 1}, [])
    with pytest.raises(VertebraError, match=r"a\.gif: a picture's name ends in \.png, \.svg, \.pdf"):
        plot(result, tmp_path / "a.gif")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(VertebraError, match="pip install matplotlib"):
        plot(result, tmp_path / "a.png")
