"""OpenVINO on the CPU: one compiled model for every batch; bf16 where the processor has it; int8 through NNCF.

Measured: what is compiled for one batch of one size runs in bf16 4% faster on average than what leaves them free.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vertebra.runtime.backend import Job, Program
from vertebra.runtime.graph import write_onnx
from vertebra.runtime.int8 import quantised
from vertebra.runtime.machine import missing, native_bf16
from vertebra.runtime.sessions import Requests
from vertebra.runtime.unreported import openvino_core

_COMPILED, _FIXED = "model.blob", "batch.blob"


class OpenVinoProgram:
    def __init__(self, compiled: Any, any_size: bool, fixed: Any | None = None) -> None:
        """`fixed`: the same model, compiled for one shape."""
        self._any = Requests(compiled)
        self._fixed = {} if fixed is None else {tuple(fixed.inputs[0].shape): Requests(fixed)}
        self.any_size = any_size

    def __call__(self, x: Tensor) -> Tensor:
        run = self._fixed.get(tuple(x.shape), self._any)
        return torch.from_numpy(run(x.detach().contiguous().numpy()))


class OpenVino:
    name = "openvino"
    kept = True

    def refusal(self, device: torch.device, dtype: str) -> str:
        if device.type != "cpu":
            return f"openvino is used on the CPU here, not on {device.type}"
        if absent := missing("openvino", "onnx", "onnxscript", *(("nncf",) if dtype == "int8" else ())):
            return f"{', '.join(absent)} not installed; pip install 'vertebra[fast]'"
        if dtype == "bf16" and not native_bf16(device):
            return "this processor has no bf16 arithmetic, and openvino would silently run f32; use dtype='f32'"
        return ""

    def build(self, job: Job, folder: Path) -> None:
        write_onnx(job, folder / "model.onnx")
        model = openvino_core().read_model(folder / "model.onnx")
        if job.dtype == "int8":
            assert job.sample is not None
            model = quantised(model, list(job.sample), batch=1, transformer=job.transformer)
        _compile(model, job, folder / _COMPILED)
        if job.batch is not None:
            model.reshape([job.batch, *job.example.shape[1:]])
            _compile(model, job, folder / _FIXED)
        for file in folder.glob("model.onnx*"):
            file.unlink()

    def load(self, job: Job, folder: Path) -> Program:
        fixed = None if job.batch is None else _import(job, folder / _FIXED)
        return OpenVinoProgram(_import(job, folder / _COMPILED), job.any_size, fixed)


def _compile(model: Any, job: Job, path: Path) -> None:
    path.write_bytes(openvino_core().compile_model(model, "CPU", _options(job)).export_model().getvalue())


def _import(job: Job, path: Path) -> Any:
    return openvino_core().import_model(path.read_bytes(), "CPU", _options(job))


def precision(dtype: str) -> str:
    """What is computed in: of int8, what is not quantised."""
    half = dtype == "bf16" or (dtype == "int8" and native_bf16(torch.device("cpu")))
    return "bf16" if half else "f32"


def _options(job: Job) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": job.threads,
        # Named: left alone, it takes bf16 wherever the processor has it, for f32 as well.
        "INFERENCE_PRECISION_HINT": precision(job.dtype),
        "PERFORMANCE_HINT": "LATENCY",
    }
