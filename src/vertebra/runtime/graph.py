"""A model -> an ONNX graph, which OpenVINO and ONNX Runtime both read.

The batch is free; height and width are where `Job.any_size` says so.
"""

import contextlib
import copy
import logging
import threading
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from vertebra.runtime.backend import BackendError, Job
from vertebra.runtime.simplify import simplify

OPSET = 20
"""Of ONNX: 20 brought Gelu as one operator."""
ONE_FILE = 1_900_000_000
"""Bytes of weights that one ONNX file holds; protobuf ends at 2^31."""
tracing = threading.RLock()
"""torch.export, dynamo and inductor keep global state: one thread at a time."""


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Exporters warn of their own internals; that is not for our user, whom the check protects.

    One thread at a time: of two that set warnings aside at once, one would put the other's silence back for good.
    """
    names = (
        "torch.onnx",
        "torch.onnx._internal",
        "onnxscript",
        "onnx_ir",
        "nncf",
        "torch._inductor",
        "torch.utils.cpp_extension",
    )
    loggers = [logging.getLogger(name) for name in names]
    with tracing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def capture(job: Job, dtype: torch.dtype = torch.float32, *, channels_last: bool = False) -> ExportedProgram:
    """The traced graph of a copy of the model. Raises `BackendError` where torch.export cannot follow it."""
    from torch._dynamo.exc import UserError  # dynamo: two seconds that a kept artefact must not wait for

    model, example = job.model, job.example
    if dtype != torch.float32 or job.device.type != "cpu":
        model = copy.deepcopy(model).to("cpu", dtype)
    example = example.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    free: dict[int, object] = {0: Dim("batch", min=1)}
    if job.any_size:
        free |= {2: Dim.AUTO, 3: Dim.AUTO}
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(_Plain(model), (example,), dynamic_shapes=(free,), strict=False)
    except UserError as error:
        reason = " ".join(str(error).partition("Suggested fixes")[0].split())[:300]
        raise BackendError(f"torch.export cannot trace this model ({reason}); use backend='eager'") from error


class _Plain(nn.Module):
    """One argument, called `image`, whatever the model calls it; the answer in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model(image).to(torch.float32)


def write_onnx(job: Job, path: Path) -> None:
    """The float32 graph as ONNX."""
    save_onnx(capture(job), path)


def save_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
    """ONNX of opset `OPSET` by the dynamo exporter; beyond 2 GB, ONNX's limit, with the weights in `path`.data.

    The program is used up: its graph is changed on the way.
    """
    with quiet():
        simplify(program)
        made = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=["image"], output_names=["answer"], verbose=False
        )
    assert made is not None
    made.model.metadata_props.update(metadata)
    large = sum(p.numel() * p.element_size() for p in program.state_dict.values()) > ONE_FILE
    made.save(str(path), external_data=large)
