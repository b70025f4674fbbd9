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
from vertebra.runtime.backend import DTYPES, BackendError, Job, Program
from vertebra.runtime.graph import capture, quiet
from vertebra.runtime.machine import compiler, missing

Event = torch.cuda.Event | torch.Event
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
    """One thread owns the CUDA graphs: torch keeps them by thread, and an answer lives until the next call.

    Nor has it the caller's stream: its own waits until the images are there, and the caller's for the answer.
    """

    any_size = False

    def __init__(self, model: nn.Module, dtype: torch.dtype, folder: Path) -> None:
        self._compiled: Any = torch.compile(model, mode="max-autotune", dynamic=False)
        self._dtype = dtype
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "vertebra-cuda-graphs")
        self._seen = set[int]()

    def __call__(self, x: Tensor) -> Tensor:
        caller = torch.cuda.current_stream(x.device)
        answer, done = self._thread.submit(self._behind, x.detach(), caller.record_event()).result()
        caller.wait_event(done)
        answer.record_stream(caller)  # freed there, its memory is not given away before the caller's work on it is done
        return answer

    def _behind(self, x: Tensor, ready: Event) -> tuple[Tensor, Event]:
        """The answer, and what tells when it is there; `ready`: when the images are."""
        own = torch.cuda.current_stream(x.device)
        own.wait_event(ready)
        x.record_stream(own)
        return buckets.run(self._one, x, LARGEST), own.record_event()

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
