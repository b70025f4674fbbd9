"""How fast is a model here, beside its peers and beside what the machine can do? All in one run, in turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vertebra.engine.contest import PEERS, Contestant, build, input_size, on_meta, peak_memory
from vertebra.engine.limits import Limits, Work, measure_limits, synchronize, work
from vertebra.engine.measure import measure
from vertebra.hub.registry import REGISTRY
from vertebra.hub.resolve import find, is_name
from vertebra.runtime import machine
from vertebra.runtime.backend import DTYPES as TYPES
from vertebra.runtime.choose import BACKENDS, known, pick_dtype
from vertebra.spec import EXPORTED_SUFFIXES, VertebraError, unknown_name

LEAST = 0.02
"""Seconds that one timing takes at least: faster calls are repeated within it."""
_FAILURES = (VertebraError, RuntimeError, MemoryError)
"""What makes a row of errors: out of memory is one of the last two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure: every backend with every type at every batch, and each peer in f32 and in those types."""

    models: tuple[str, ...]
    backends: tuple[str, ...] = ("auto",)
    dtypes: tuple[str, ...] = ("auto",)
    batches: tuple[int, ...] = (1, 8)
    against: tuple[str, ...] = ()
    train: bool = False
    rounds: int = 9
    device: str = "cpu"
    img_size: int | None = None
    """Pixels a side, for all models; None: each its own."""
    memory: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant at one batch size. `error` says why figures are missing."""

    model: str
    library: str
    backend: str
    dtype: str
    batch: int
    train: bool
    seconds: float | None = None
    """Of one call, the median."""
    spread: float | None = None
    """Middle half of the timings (the quartiles' distance), as a share of the median."""
    images_per_second: float | None = None
    ratio: float | None = None
    """The baseline's time (first peer in f32; without peers, vertebra eager in f32) over this one's."""
    limit_share: float | None = None
    """The least time that the machine allows (`limits.Work.floor`) over this one."""
    peak_share: float | None = None
    """Operations a second, as a share of the matrix-product peak of this type."""
    intensity: float | None = None
    """Operations a byte."""
    flops: float | None = None
    """Operations a second reached."""
    peak_memory: int | None = None
    """Bytes; None where the process that measures it had too little itself."""
    top1: float | None = None
    """ImageNet-1k top-1 in per cent of the published checkpoint, where there is one; None at another size."""
    error: str = ""


@dataclass(slots=True)
class Result:
    """Rows as they came, and the machine's limits (the best of before and after), which the rows' shares are of."""

    limits: Limits
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list[Row])
    interrupted: bool = False
    """By Ctrl-C: the rows are those of the contests that had ended."""


def benchmark(plan: Plan, heard: Callable[[Row], None] = lambda _: None) -> Result:
    """Run `plan`; `heard` is told each row when it is known, its shares those of the limits as measured before.

    Ctrl-C ends it with what was measured until then, if anything was. Raises `VertebraError` for what does not exist.
    """
    _check(plan)
    device = torch.device(plan.device)
    types = tuple({pick_dtype(dtype, device) for dtype in plan.dtypes} | {"f32"})
    limits = measure_limits(device, types)
    after, found = limits, Result(limits, describe(device))
    try:
        for model, batch in product(plan.models, plan.batches):
            for row in _contest(plan, model, batch, limits):
                found.rows.append(row)
                heard(row)
        after = measure_limits(device, types)
    except KeyboardInterrupt:
        if not found.rows:
            raise
        found.interrupted = True
    flops = {key: max(value, after.flops[key]) for key, value in limits.flops.items()}
    found.limits = Limits(flops, max(limits.bandwidth, after.bandwidth))
    found.rows = [_with_shares(row, found.limits) for row in found.rows]
    return found


def describe(device: torch.device) -> dict[str, Any]:
    """The device and what else decides about speed."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "device": gpu or str(machine.processor().get("cpu_name", device.type)),
        "processor": {k: v for k, v in machine.processor().items() if isinstance(v, str)},
        "flags": machine.flags(),
        "threads": torch.get_num_threads(),
        "versions": machine.versions(),
    }


def _check(plan: Plan) -> None:
    for model in plan.models:
        if Path(model).suffix in EXPORTED_SUFFIXES:
            raise VertebraError(f"{model}: an exported file is run as it is; measure the model that it was made from")
        find(model) if Path(model).exists() else REGISTRY.split(model)  # nothing is downloaded
    for backend in plan.backends:
        known(backend, BACKENDS, "backend")
    for dtype in plan.dtypes:
        known(dtype, TYPES, "dtype")
    for peer in plan.against:
        if peer not in PEERS:
            raise unknown_name("peer", peer, PEERS)
    for name, given in (("models", plan.models), ("backends", plan.backends), ("dtypes", plan.dtypes)):
        if not given:
            raise VertebraError(f"no {name} to measure; name at least one")
    for name, values in (("batch", plan.batches), ("rounds", (plan.rounds,))):
        if not values or min(values) < 1:
            raise VertebraError(f"{name}={values}: give whole numbers from 1 on")


def _contestants(plan: Plan, model: str) -> list[Contestant]:
    types = [pick_dtype(dtype, torch.device(plan.device)) for dtype in plan.dtypes]
    ours = [
        Contestant("vertebra", model, "eager" if plan.train else backend, dtype, plan.train, plan.device, plan.img_size)
        for backend in plan.backends
        for dtype in types
    ]
    peers = [
        Contestant(peer, model, "eager", dtype, plan.train, plan.device, plan.img_size)
        for peer in plan.against
        for dtype in ("f32", *types)
        if dtype != "int8"
    ]
    return list(dict.fromkeys([*ours, *peers]))


def _contest(plan: Plan, model: str, batch: int, limits: Limits) -> list[Row]:
    """A row each, in their order. What ends the contest for all of them, say images for which there is no memory, is
    every row's error: other contests may still be measured.
    """
    top1 = None if plan.img_size else _top1(model)
    rows = {
        who: Row(model, who.library, who.backend, who.dtype, batch, plan.train, top1=top1)
        for who in _contestants(plan, model)
    }
    try:
        _run(plan, model, batch, rows, limits)
    except _FAILURES as error:
        rows = {who: replace(row, error=row.error or _reason(error)) for who, row in rows.items()}
    return _with_ratios(list(rows.values()))


def _run(plan: Plan, model: str, batch: int, rows: dict[Contestant, Row], limits: Limits) -> None:
    """Fill `rows`, one figure after the other: what was found before something fails stays."""
    ours = Contestant("vertebra", model, "eager", "f32", False, plan.device, plan.img_size)
    size = input_size(ours)
    device = torch.device(plan.device)
    images = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0)).to(device)
    calls = dict[Contestant, Callable[[Tensor], object]]()
    for who, row in list(rows.items()):
        try:
            calls[who], backend, dtype = build(who)
            rows[who] = replace(row, backend=backend, dtype=dtype)
            calls[who](images)
        except _FAILURES as error:  # one who cannot run does not end the contest
            calls.pop(who, None)
            rows[who] = replace(rows[who], error=_reason(error))
    times = _interleave({who: lambda call=call: call(images) for who, call in calls.items()}, plan.rounds, device)
    cost = measure(on_meta(ours), size)
    for who, taken in times.items():
        rows[who] = _figures(rows[who], taken, work(cost, rows[who].dtype, batch, train=plan.train), limits)
    calls.clear()
    if plan.memory:
        for who in times:
            rows[who] = replace(rows[who], peak_memory=peak_memory(who, batch))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _interleave(
    calls: Mapping[Contestant, Callable[[], object]], rounds: int, device: torch.device
) -> dict[Contestant, list[float]]:
    """Seconds of each call, the contestants in turn, so that a drift of the machine's speed meets all alike."""
    repeats = dict[Contestant, int]()
    for who, call in calls.items():
        once = _timed(call, 1, device)
        repeats[who] = max(1, round(LEAST / max(once, 1e-9)))
    times: dict[Contestant, list[float]] = {who: [] for who in calls}
    for number in range(rounds + 1):
        for who, call in calls.items():
            taken = _timed(call, repeats[who], device)
            if number:  # the first round warms caches and clocks
                times[who].append(taken)
    return times


def _timed(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def _figures(row: Row, taken: Sequence[float], todo: Work, limits: Limits) -> Row:
    middle = statistics.median(taken)
    quarters = statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else [middle, middle, middle]
    timed = replace(
        row,
        seconds=middle,
        spread=(quarters[2] - quarters[0]) / middle,
        images_per_second=row.batch / middle,
        intensity=todo.intensity,
        flops=todo.flops / middle,
    )
    return _with_shares(timed, limits)


def _with_shares(row: Row, limits: Limits) -> Row:
    if row.seconds is None or row.flops is None or row.intensity is None:
        return row
    done = row.flops * row.seconds
    floor = Work(done, done / row.intensity).floor(limits, row.dtype)
    return replace(row, limit_share=floor / row.seconds, peak_share=row.flops / limits.peak(row.dtype))


def _with_ratios(rows: list[Row]) -> list[Row]:
    peers = [r for r in rows if r.library != "vertebra"]
    base = next((r for r in peers or rows if r.backend == "eager" and r.dtype == "f32" and r.seconds), None)
    if base is None or base.seconds is None:
        return rows
    return [row if row.seconds is None else replace(row, ratio=base.seconds / row.seconds) for row in rows]


def _top1(model: str) -> float | None:
    found = REGISTRY.default_weights(model) if is_name(model) else None
    return found[1].top1 if found else None
