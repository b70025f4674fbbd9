"""torch's own compiler. CPU: an ahead-of-time package with frozen weights, loaded in a moment the next time. GPU:
max-autotune with CUDA graphs, in buckets of the batch, its kernels kept on disk.
"""

# torch names its ahead-of-time compiler under `_inductor` in its own documentation.
# pyright: reportPrivateUsage=false

import copy
import importlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from vertebra.runtime import buckets
from vertebra.runtime.backend import DTYPES, Job, Program
from vertebra.runtime.graph import capture, quiet
from vertebra.runtime.machine import compiler, missing

LARGEST = 256
"""Images that one compiled GPU program takes; larger batches run as several."""


class PackageProgram:
    """Ahead-of-time code does not look at strides: the input must lie as the example did."""

    def __init__(self, package: Any, dtype: torch.dtype, any_size: bool) -> None:
        self._package = package
        self._dtype = dtype
        self._turn = threading.Lock()
        self.any_size = any_size

    def __call__(self, x: Tensor) -> Tensor:
        image = x.detach().to(self._dtype).contiguous()
        with self._turn, torch.no_grad():
            return self._package(image)


class GraphProgram:
    """One thread owns the CUDA graphs: torch keeps them by thread, and an answer lives until the next call."""

    any_size = False

    def __init__(self, model: nn.Module, dtype: torch.dtype, folder: Path) -> None:
        self._compiled: Any = torch.compile(model, mode="max-autotune", dynamic=False)
        self._dtype = dtype
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "vertebra-cuda-graphs")
        self._seen = set[int]()

    def __call__(self, x: Tensor) -> Tensor:
        return self._thread.submit(buckets.run, self._one, x.detach(), LARGEST).result()

    @torch.no_grad()
    def _one(self, x: Tensor) -> Tensor:
        image = x.to(self._dtype, memory_format=torch.channels_last)
        if len(x) in self._seen:
            return self._compiled(image).float().clone()
        kernels = patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(self._folder / "kernels")})
        # Each bucket is a recompilation that is meant; at torch's limit of 8 it would go back to eager mode.
        more = torch._dynamo.config.patch(recompile_limit=64, accumulated_recompile_limit=4096)
        with quiet(), kernels, more:
            answer = self._compiled(image).float().clone()
        self._seen.add(len(x))
        return answer


class Inductor:
    name = "inductor"
    kept = True

    def refusal(self, device: torch.device, dtype: str) -> str:
        if device.type not in ("cpu", "cuda"):
            return f"inductor is used on CPUs and CUDA GPUs here, not on {device.type}"
        if dtype == "int8" and device.type == "cpu":
            return "inductor's int8 is for GPUs here; on a CPU use backend='openvino'"
        if dtype == "int8" and missing("torchao"):
            return "torchao not installed; pip install torchao"
        if device.type == "cpu" and compiler() is None:
            return "no C++ compiler found; install g++ or clang (CXX names another)"
        return "triton not installed" if device.type == "cuda" and missing("triton") else ""

    def build(self, job: Job, folder: Path) -> None:
        if job.device.type == "cuda":
            (folder / "kernels").mkdir()  # filled when a batch of a new size comes
            return
        program = capture(job, DTYPES[job.dtype])
        with quiet(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / "model.pt2"), inductor_configs={"freezing": True}
            )

    def load(self, job: Job, folder: Path) -> Program:
        dtype = torch.bfloat16 if job.dtype == "int8" else DTYPES[job.dtype]
        if job.device.type == "cpu":
            package = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
            return PackageProgram(package, dtype, job.any_size)
        model = copy.deepcopy(job.model).to(dtype).to(memory_format=torch.channels_last)
        if job.dtype == "int8":
            _quantise(model)
        return GraphProgram(model, dtype, folder)


def _quantise(model: nn.Module) -> None:
    """Linear layers to int8, activations scaled as they come: nothing to calibrate."""
    ao: Any = importlib.import_module("torchao.quantization")  # by name: it need not be installed
    ao.quantize_(model, ao.Int8DynamicActivationInt8WeightConfig())
