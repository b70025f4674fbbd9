"""ONNX Runtime: the graph with its own optimiser; a session may be called by several threads."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vertebra.runtime.backend import Job, Program
from vertebra.runtime.graph import write_onnx
from vertebra.runtime.machine import missing
from vertebra.runtime.sessions import onnx_session


class OnnxProgram:
    def __init__(self, session: Any, any_size: bool) -> None:
        self._session = session
        self.any_size = any_size

    def __call__(self, x: Tensor) -> Tensor:
        answer: Any = self._session.run(None, {"image": x.detach().contiguous().numpy()})[0]
        return torch.from_numpy(np.asarray(answer))


class OnnxRuntime:
    name = "onnxruntime"
    kept = True

    def refusal(self, device: torch.device, dtype: str) -> str:
        if device.type != "cpu":
            return f"onnxruntime is used on the CPU here, not on {device.type}"
        if dtype != "f32":
            return f"onnxruntime runs f32 here, not {dtype}; openvino has bf16 and int8"
        absent = missing("onnxruntime", "onnx", "onnxscript")
        return f"{', '.join(absent)} not installed; pip install 'vertebra[fast]'" if absent else ""

    def build(self, job: Job, folder: Path) -> None:
        write_onnx(job, folder / "model.onnx")

    def load(self, job: Job, folder: Path) -> Program:
        return OnnxProgram(onnx_session(folder / "model.onnx", job.threads), job.any_size)
