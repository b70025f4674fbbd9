"""ONNX Runtime: the graph with its own optimiser; a session may be called by several threads."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vertebra.runtime.backend import Job, Program
from vertebra.runtime.graph import write_onnx
from vertebra.runtime.machine import missing


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
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.log_severity_level = 3
        # Its threads spin while they wait; beside decoding threads, on the same cores, that is time taken from them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if job.threads > 1 else "1")
        damage: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        try:
            session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        except (damage.Fail, damage.InvalidProtobuf, damage.InvalidGraph, damage.NoSuchFile) as error:
            raise RuntimeError(f"onnxruntime cannot read its graph: {error}") from error
        return OnnxProgram(session, job.any_size)
