"""torch's own compiler. CPU: an ahead-of-time package with frozen weights, loaded in a moment the next time. GPU: in
buckets of the batch, its kernels kept on disk, started together as a CUDA graph.
"""

# torch names its ahead-of-time compiler under `_inductor` in its own documentation.
# pyright: reportPrivateUsage=false

import copy
import importlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from vertebra.runtime.backend import DTYPES, BackendError, Job, Program
from vertebra.runtime.cudagraphs import GraphProgram
from vertebra.runtime.graph import capture, quiet
from vertebra.runtime.machine import compiler, missing


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


def _compiled(model: nn.Module, folder: Path) -> Callable[[Tensor], Tensor]:
    """`model` for any number of images, each of which is compiled for itself; kernels are kept in `folder`."""
    compiled: Any = torch.compile(model, dynamic=False)
    seen = set[torch.Size]()

    def forward(image: Tensor) -> Tensor:
        if image.shape in seen:
            return compiled(image)
        kernels = patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(folder / "kernels")})
        # Each bucket is a recompilation that is meant; at torch's limit of 8 it would go back to eager mode.
        more = torch._dynamo.config.patch(recompile_limit=64, accumulated_recompile_limit=4096)
        with quiet(), kernels, more:
            answer = compiled(image)
        seen.add(image.shape)
        return answer

    return forward


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
        model = copy.deepcopy(job.model).to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)
        if job.dtype == "int8":
            _quantise(model)
        return GraphProgram(_compiled(model, folder), dtype, job.device)


def _quantise(model: nn.Module) -> None:
    """Linear layers to int8, activations scaled as they come: nothing to calibrate. Raises `BackendError`."""
    check_quantisable(model)
    ao: Any = importlib.import_module("torchao.quantization")  # by name: it need not be installed
    ao.quantize_(model, ao.Int8DynamicActivationInt8WeightConfig())


def check_quantisable(model: nn.Module) -> None:
    """Raise `BackendError` where no linear layer does the model's work: what would be called int8 would be bf16."""
    own: Any = getattr(model, "get_classifier", tuple)()
    classifiers = own if isinstance(own, tuple) else (own,)
    last = {id(part) for classifier in classifiers for part in classifier.modules()}
    if not any(isinstance(m, nn.Linear) and id(m) not in last for m in model.modules()):
        raise BackendError(
            "inductor's int8 quantises linear layers, and this model has none besides its classifier; use dtype='bf16'"
        )
