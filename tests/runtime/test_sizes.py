"""Image sizes other than the model's own: what answers there, and that nothing is compiled for nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vertebra
from tests.runtime.conftest import Fake
from vertebra.models.backbone import Backbone
from vertebra.runtime.backend import BackendError, Job
from vertebra.runtime.optimize import SIZES
from vertebra.runtime.verify import VerificationError


def test_many_sizes_cause_no_storm_of_compilations(cnn: Backbone, fake: Fake, tmp_path: Path) -> None:
    fake.any_size = False
    fast = vertebra.optimize(cnn, "fake", "f32", cache_dir=tmp_path)
    sizes = [(64 + 32 * i, 64) for i in range(1, 2 * SIZES)]
    for size in sizes:
        fast(torch.randn(1, 3, *size))
    assert fake.built == [(64, 64)]  # a size that comes once is not worth it
    for _ in range(3):
        for size in sizes:
            image = torch.randn(1, 3, *size)
            assert torch.allclose(fast(image), cnn(image), atol=1e-5)
    assert fake.built == [(64, 64), *sizes[:SIZES]]


def test_other_sizes_are_compared_when_they_first_come(cnn: Backbone, fake: Fake, tmp_path: Path) -> None:
    fast = vertebra.optimize(cnn, "fake", "f32", cache_dir=tmp_path)
    fast(torch.randn(1, 3, 96, 96))
    fast._program._alter = lambda y: -y
    with pytest.raises(VerificationError, match="at 96x128 pixels"):
        fast(torch.randn(1, 3, 96, 128))


def test_a_program_of_every_size_answers_at_more_than_it_is_compared_at(
    cnn: Backbone, fake: Fake, tmp_path: Path
) -> None:
    fast = vertebra.optimize(cnn, "fake", "f32", cache_dir=tmp_path)
    for number in range(1, 1 + SIZES):
        fast(torch.randn(1, 3, 64 + 32 * number, 64))
    image = torch.randn(1, 3, 64, 96)
    fast._program._alter = lambda y: y + 1
    assert torch.allclose(fast(image), cnn(image) + 1, atol=1e-5)

    def refuse(_: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this size")

    fast._program._alter = refuse
    assert torch.allclose(fast(image), cnn(image), atol=1e-5)


def test_a_size_whose_program_answers_otherwise_is_compiled_once(
    resizable: Backbone, fake: Fake, tmp_path: Path
) -> None:
    fake.any_size = False
    fast = vertebra.optimize(resizable, "fake", "f32", cache_dir=tmp_path)
    fake.alter = lambda y: -y
    image = torch.randn(1, 3, 48, 32)
    fast(image)
    for _ in range(3):
        with pytest.raises(VerificationError, match="fake f32 does not answer as eager f32"):
            fast(image)
    assert fake.built == [(32, 32), (48, 32)]


def test_eager_mode_runs_once_where_nothing_is_compiled(resizable: Backbone, fake: Fake, tmp_path: Path) -> None:
    fake.any_size = False
    fast = vertebra.optimize(resizable, "fake", "f32", cache_dir=tmp_path)
    sizes = [(32 + 16 * i, 32) for i in range(1, SIZES + 2)]
    for size in (*sizes, *sizes):
        fast(torch.randn(1, 3, *size))
    asked = list[int]()
    resizable.register_forward_hook(lambda *_: asked.append(1))
    fast(torch.randn(1, 3, *sizes[-1]))  # one too many
    fast(torch.randn(1, 3, 32, 32))
    assert len(asked) == 2


def test_a_size_that_is_being_compiled_keeps_nobody_waiting(
    resizable: Backbone, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.any_size = False
    fast = vertebra.optimize(resizable, "fake", "f32", cache_dir=tmp_path)
    known, new = torch.randn(1, 3, 48, 32), torch.randn(1, 3, 64, 32)
    for image in (known, known, new):
        fast(image)
    started, go, build = threading.Event(), threading.Event(), Fake.build

    def slow(self: Fake, job: Job, folder: Path) -> None:
        started.set()
        assert go.wait(30)
        build(self, job, folder)

    monkeypatch.setattr(Fake, "build", slow)
    with ThreadPoolExecutor(2) as pool:
        compiling = pool.submit(fast, new)
        assert started.wait(30)
        try:
            for image in (known, new, torch.randn(1, 3, 80, 32)):
                assert torch.allclose(pool.submit(fast, image).result(10), resizable(image), atol=1e-5)
        finally:
            go.set()
        assert torch.allclose(compiling.result(), resizable(new), atol=1e-5)
    assert fake.built == [(32, 32), (48, 32), (64, 32)]
    with fast._sizes, ThreadPoolExecutor(1) as pool:  # what is known asks nobody
        pool.submit(fast, known).result(10)


@pytest.mark.parametrize("error", [BackendError("cannot"), RuntimeError("out of memory")])
def test_a_size_that_cannot_be_compiled_is_told_and_runs_in_eager_mode(
    resizable: Backbone,
    fake: Fake,
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake.any_size = False
    fast = vertebra.optimize(resizable, "fake", "f32", cache_dir=tmp_path)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Fake, "build", fail)
    image = torch.randn(1, 3, 48, 32)
    for _ in range(3):
        assert torch.allclose(fast(image), resizable(image), atol=1e-5)
    assert [r.getMessage() for r in caplog.records] == [f"fake at 48x32 pixels: eager mode answers there: {error}"]


@pytest.mark.parametrize("any_size", [True, False])
def test_a_sample_of_another_size_is_resized(resizable: Backbone, fake: Fake, any_size: bool, tmp_path: Path) -> None:
    fake.any_size = any_size
    sample = torch.randn(9, 3, 48, 64)
    fast = vertebra.optimize(resizable, "fake", "f32", sample=sample, cache_dir=tmp_path)
    assert fast.report.figures.images == len(sample)
    for size in ((32, 32), (48, 64), (48, 64), (64, 64), (64, 64)):
        image = torch.randn(1, 3, *size)
        assert torch.allclose(fast(image), resizable(image), atol=1e-5)
