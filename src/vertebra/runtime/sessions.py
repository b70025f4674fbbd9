"""ONNX Runtime's and OpenVINO's ways to run, for compiled models and exported files alike. No torch: a file is checked
without it.
"""

import queue
from importlib import import_module
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def onnx_session(path: Path, threads: int) -> Any:
    """An `InferenceSession` on the CPU; `threads` 0: one a core. Several threads may call it.

    Raises RuntimeError for a file that cannot be read, ModuleNotFoundError where the package is missing.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads spin while they wait; beside decoding threads, on the same cores, that is time taken from them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads == 1 else "0")
    damage: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (damage.Fail, damage.InvalidProtobuf, damage.InvalidGraph, damage.NoSuchFile) as error:
        raise RuntimeError(f"onnxruntime cannot read its graph: {error}") from error


class Requests:
    """A model that OpenVINO compiled, which several threads may call: as many requests as ever ran at once."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """The first answer, in memory of its own."""
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            return request.infer([x], share_inputs=True, share_outputs=False)[0]
        finally:
            self._idle.put(request)
