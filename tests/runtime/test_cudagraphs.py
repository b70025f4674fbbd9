"""Programs for NVIDIA GPUs. What runs kernels is skipped where there is no such card."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

import vertebra
from vertebra.models.backbone import Backbone
from vertebra.runtime import choose
from vertebra.runtime.backend import Backend
from vertebra.runtime.cudagraphs import with_cudnn
from vertebra.runtime.passes.convs import Activation
from vertebra.runtime.passes.cudnn import CudnnConv

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CUDA = torch.device("cuda")


def test_a_gpu_compiles_only_what_is_not_fused_already(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in choose.BACKENDS.values():
        monkeypatch.setattr(type(backend), "refusal", lambda *_: "", raising=True)

    def chosen(arch: str, **more: Any) -> Backend:
        fused = isinstance(vertebra.create_model(arch, device="meta"), choose.FUSED)
        return choose.pick_backend("auto", "bf16", CUDA, more.get("remembered"), fused=fused)

    assert chosen("dla34").name == "cudagraphs"
    assert chosen("deit_tiny_patch16_224").name == "inductor"
    assert chosen("dla34", remembered="inductor").name == "inductor"


def test_a_processor_knows_nothing_of_it() -> None:
    refused = choose.BACKENDS["cudagraphs"].refusal(torch.device("cpu"), "f32")
    assert refused == "CUDA graphs need an NVIDIA GPU, and the model is on cpu"
    assert "int8 needs inductor" in choose.BACKENDS["cudagraphs"].refusal(CUDA, "int8")


@torch.no_grad()
def test_what_is_recorded_answers_as_the_model_does(cnn: Backbone, vit: Backbone) -> None:
    """On a processor, where the same convolutions run by other kernels."""
    for size in (64, 45):
        x = torch.randn(2, 3, size, size).to(memory_format=torch.channels_last)
        torch.testing.assert_close(with_cudnn(cnn)(x), cnn(x), rtol=1e-4, atol=1e-5)
    kinds = [type(module) for module in with_cudnn(cnn).modules()]
    assert CudnnConv in kinds
    assert torch.nn.BatchNorm2d not in kinds
    assert with_cudnn(vit) is vit, "nothing in it is cuDNN's"


@on_gpu
@pytest.mark.parametrize("act", [Activation("relu"), Activation("leaky_relu", 0.2), Activation("silu"), Activation()])
@pytest.mark.parametrize(("cin", "groups"), [(3, 1), (16, 1), (32, 8)])
def test_fused_kernels_answer_as_the_steps_do(act: Activation, cin: int, groups: int) -> None:
    conv = torch.nn.Conv2d(cin, 32, 3, 2, 1, groups=groups, bias=False).cuda().eval()
    bn = torch.nn.BatchNorm2d(32).cuda().eval()
    for value in (bn.running_mean, bn.running_var, bn.weight, bn.bias):
        assert isinstance(value, torch.Tensor)
        value.data.uniform_(0.5, 1.5)
    x = torch.randn(2, cin, 17, 19).cuda().to(memory_format=torch.channels_last)
    add = torch.randn(2, 32, 9, 10).cuda().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for more in (None, add):
            plain = act.over(bn(conv(x)) if more is None else bn(conv(x)) + more)
            fused = CudnnConv(conv, bn, act)(x, more)
            torch.testing.assert_close(fused, plain, rtol=1e-2, atol=1e-2)  # TF32 rounds both


@on_gpu
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch 2.11's compiler imports its own past
@pytest.mark.parametrize("backend", ["cudagraphs", "inductor"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("arch", ["dla46_c", "deit_tiny_patch16_224"])
def test_every_batch_from_every_thread_and_stream_is_answered_as_the_model_does(
    arch: str, backend: str, dtype: str, tmp_path: Path
) -> None:
    model = vertebra.create_model(arch, num_classes=10).eval().cuda()
    fast = vertebra.optimize(model, backend, dtype, cache_dir=tmp_path)
    assert fast.report.backend == backend
    images = [torch.randn(count, 3, 224, 224, device="cuda") for count in (1, 2, 3, 4, 7, 4, 1)]
    with torch.no_grad():
        expected = [model(x) for x in images]
    torch.cuda.synchronize()

    def near(number: int) -> float:
        with torch.cuda.stream(torch.cuda.Stream()):
            x = images[number] + 0
            answer = fast(x)
            del x
            torch.cuda.current_stream().synchronize()
        return cosine_similarity(answer, expected[number]).min().item()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(near, list(range(len(images))) * 4))
    assert min(found) > 0.98
    first, second = fast(images[0]), fast(images[6])
    assert not torch.equal(first, second), "an answer belongs to its caller"
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(fast(images[0]), first)
    assert fast(torch.zeros(0, 3, 224, 224, device="cuda")).shape == (0, 10)
