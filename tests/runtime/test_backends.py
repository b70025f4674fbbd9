"""The real backends answer as the model does."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import vertebra
from vertebra.models.backbone import Backbone
from vertebra.runtime import machine
from vertebra.runtime.backend import BackendError
from vertebra.runtime.int8 import LEAST_SAMPLES
from vertebra.runtime.optimize import SIZES
from vertebra.spec import VertebraError

CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", ["eager", "openvino", "onnxruntime", "inductor"])
def test_every_backend_takes_every_batch_and_refuses_what_the_model_refuses(
    vit: Backbone, backend: str, kept: Path
) -> None:
    fast = vertebra.optimize(vit, backend, "f32", cache_dir=kept)
    assert fast.report.backend == backend
    for batch in (1, 2, 3, 7):
        image = torch.randn(batch, 3, 32, 32)
        for laid_out in (image, image.to(memory_format=torch.channels_last)):
            assert torch.allclose(fast(laid_out), vit(image), atol=1e-4)
    assert fast(torch.zeros(0, 3, 32, 32)).shape == (0, 10)
    with pytest.raises(VertebraError, match=r"\(b, 3, h, w\)"):
        fast(torch.zeros(1, 1, 32, 32))
    with pytest.raises(VertebraError, match="takes images of 32x32"):
        fast(torch.zeros(1, 3, 64, 32))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_one_compiled_cnn_takes_every_size(
    cnn: Backbone, backend: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = vertebra.optimize(cnn, backend, "f32", cache_dir=kept)
    eager, compared = fast._maker.eager, set[tuple[int, ...]]()

    def watched(x: torch.Tensor) -> torch.Tensor:
        compared.add(tuple(x.shape[2:]))
        return eager(x)

    monkeypatch.setattr(fast._maker, "eager", watched)
    sizes = [(64, 64), (96, 64), (65, 103), (64, 224), (128, 32), (40, 40), (72, 56)]
    for size in sizes:
        image = torch.randn(2, 3, *size)
        assert torch.allclose(fast(image), cnn(image), atol=1e-4), size
    assert compared == set(sizes[1 : 1 + SIZES])  # and no other was left to eager mode


def test_threads_share_one_model(vit: Backbone, kept: Path) -> None:
    for backend in ("eager", "inductor", "openvino", "onnxruntime"):
        fast = vertebra.optimize(vit, backend, "f32", cache_dir=kept)
        images = [torch.randn(1 + i % 3, 3, 32, 32) for i in range(24)]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(fast, images))
        assert all(torch.allclose(a, vit(x), atol=1e-4) for a, x in zip(answers, images, strict=True))


def test_bf16_answers_within_its_bounds_or_says_why_it_cannot(vit: Backbone, kept: Path) -> None:
    image = torch.randn(3, 3, 32, 32)
    fast = vertebra.optimize(vit, "eager", "bf16", cache_dir=kept)
    assert fast(image).dtype == torch.float32
    assert 0 < (fast(image) - vit(image)).abs().max() < 0.1
    if machine.native_bf16(CPU):
        assert (vertebra.optimize(vit, "openvino", "bf16", cache_dir=kept)(image) - vit(image)).abs().max() < 0.1
    else:
        with pytest.raises(BackendError, match="no bf16 arithmetic"):
            vertebra.optimize(vit, "openvino", "bf16", cache_dir=kept)


def test_int8_is_calibrated_with_the_images_given(vit: Backbone, kept: Path) -> None:
    sample = torch.randn(LEAST_SAMPLES, 3, 32, 32)
    fast = vertebra.optimize(vit, dtype="int8", sample=sample, cache_dir=kept)
    assert (fast.report.backend, fast.report.dtype) == ("openvino", "int8")
    assert fast.report.figures.images == LEAST_SAMPLES
    assert 1e-4 < (fast(sample) - vit(sample)).abs().max() < 1
    with pytest.raises(VertebraError, match="sample="):
        vertebra.optimize(vit, dtype="int8", cache_dir=kept)
    with pytest.raises(BackendError, match="at least 8"):
        vertebra.optimize(vit, dtype="int8", sample=sample[:2], cache_dir=kept)


@pytest.mark.parametrize(("dtype", "near"), [("f32", 1e-4), ("int8", 0.1)])  # int8 computes the rest in bf16
def test_the_batch_that_comes_most_has_a_program_of_its_own(vit: Backbone, kept: Path, dtype: str, near: float) -> None:
    sample = torch.randn(LEAST_SAMPLES, 3, 32, 32)
    plain = vertebra.optimize(vit, "openvino", dtype, sample=sample, cache_dir=kept)
    for cached in (False, True):
        fast = vertebra.optimize(vit, "openvino", dtype, sample=sample, batch=3, cache_dir=kept)
        assert fast.report.cached == cached
        program: Any = fast._program
        assert list(program._fixed) == [(3, 3, 32, 32)]
        for number in (1, 3, 5):
            torch.testing.assert_close(fast(sample[:number]), plain(sample[:number]), rtol=0, atol=near)
        program._any = None  # three images do without it
        assert fast(sample[:3]).shape == (3, 10)


SIGNALLED = """
import gc, os, signal, sys, torch, vertebra
answered = []
signal.signal(signal.SIGUSR1, lambda *_: answered.append(1))
model = vertebra.create_model("deit_tiny_patch16_224", img_size=32, depth=1).eval()
for size in (32, 48, 64):
    model.set_input_size(size)
    vertebra.optimize(model, "openvino", "f32", cache_dir=sys.argv[1])(torch.zeros(1, 3, size, size))
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(answered))
"""


def test_signals_are_survived_when_compiled_models_are_gone(tmp_path: Path) -> None:
    """A finished child process (SIGCHLD) or Ctrl-C: OpenVINO may leave a stack for signals that is no longer there."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3"]


@pytest.mark.parametrize(
    ("backend", "dtype", "message"),
    [
        ("onnxruntime", "bf16", "openvino has bf16"),
        ("eager", "int8", "needs openvino"),
        ("inductor", "int8", "use backend='openvino'"),
        ("openvine", "f32", "did you mean 'openvino'"),
        ("auto", "f16", "allowed: auto, f32, bf16, int8|did you mean"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_compiled(
    vit: Backbone, backend: str, dtype: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(VertebraError, match=message):
        vertebra.optimize(vit, backend, dtype, sample=torch.randn(8, 3, 32, 32), cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())
