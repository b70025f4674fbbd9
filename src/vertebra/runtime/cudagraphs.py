"""An NVIDIA GPU without a compiler: cuDNN's fused kernels, each tried once, and started together as a CUDA graph."""

import copy
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vertebra.runtime import buckets
from vertebra.runtime.backend import DTYPES, Job, Program
from vertebra.runtime.graph import tracing
from vertebra.runtime.passes.convs import fuse_convs
from vertebra.runtime.passes.cudnn import CudnnConv
from vertebra.runtime.passes.trace import trace
from vertebra.spec import VertebraError

LARGEST = 256
"""Images that one graph takes; larger batches run as several."""
_WARM = 3
"""Runs before the recording: libraries choose their kernels, and allocate what they keep."""


_streams = dict[torch.device, torch.cuda.Stream]()
_log = logging.getLogger(__name__)


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any = None) -> Generator[None]:
    """What runs within is recorded, on a stream of its own; other threads may go on meanwhile, if they do not wait for
    the whole GPU. Raises RuntimeError where that or something within forbids it, and all is then as before.
    """
    # Whatever happens, the caller's stream is the current one afterwards.
    with tracing, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        _forget_workspaces()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream_for(device), capture_error_mode="thread_local"):
                yield
        except RuntimeError:
            graph.reset()
            random = torch.cuda.default_generators[torch.cuda.current_device()]
            random.graphsafe_set_state(random.clone_state())  # it may still wait for the recording's end
            raise
        finally:
            _forget_workspaces()


def stream_for(device: torch.device) -> torch.cuda.Stream:
    """The one on which everything is recorded. Of high priority, of which nobody else makes many: torch hands out the
    same few again and again, and a recording would take in what another thread does there.
    """
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device, priority=-1)
    return _streams[device]


def _forget_workspaces() -> None:
    """CuBLAS keeps one for a stream; two graphs that run at once must not share it."""
    torch._C._cuda_clearCublasWorkspaces()  # pyright: ignore[reportPrivateUsage] - as torch's own graphs do


class GraphProgram:
    """`forward`, channels-last in `dtype`, recorded once for each bucket of the batch.

    Graphs share their memory, so that one runs at a time, and each is played on its caller's stream. What cannot be
    recorded runs as it is.
    """

    any_size = False

    def __init__(self, forward: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self._forward = forward
        self._dtype = dtype
        self._device = device
        self._graphs = dict[torch.Size, _Graph | None]()
        self._turn = threading.Lock()
        self._pool = torch.cuda.graph_pool_handle()
        self._done: Any = None
        """Of the last one: it no longer needs the memory."""

    def __call__(self, x: Tensor) -> Tensor:
        if x.device != self._device:
            raise VertebraError(f"images on {x.device}: this model was optimised for {self._device}; move them there")
        with self._turn, torch.cuda.device(x.device), torch.no_grad(), torch.autocast("cuda", enabled=False):
            return buckets.run(self._one, x.detach(), LARGEST)

    def _one(self, x: Tensor) -> Tensor:
        caller = torch.cuda.current_stream()
        if self._done is not None:
            caller.wait_event(self._done)
        if x.shape not in self._graphs:
            self._graphs[x.shape] = self._recorded(x)
        graph = self._graphs[x.shape]
        if graph is None:
            return self._forward(x.to(self._dtype, memory_format=torch.channels_last)).float()
        answer = graph.play(x)
        self._done = caller.record_event()
        return answer

    def _recorded(self, x: Tensor) -> "_Graph | None":
        try:
            with torch.inference_mode(False), torch.no_grad():
                return _Graph(self._forward, x, self._dtype, self._pool)
        except RuntimeError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
        _log.warning("no CUDA graph could be recorded for %d images, which run without: %s", len(x), reason)
        return None


class _Graph:
    """A recording for one shape, and the memory that it reads from and writes to."""

    def __init__(self, forward: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype, pool: Any) -> None:
        self._image = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
        self._image.copy_(x)
        self._graph = torch.cuda.CUDAGraph()
        own, caller = stream_for(x.device), torch.cuda.current_stream()
        own.wait_stream(caller)
        with tracing, _tried():
            with torch.cuda.stream(own):
                for _ in range(_WARM):
                    forward(self._image)
            with recording(self._graph, x.device, pool):
                self._answer = forward(self._image).float()
        caller.wait_stream(own)

    def play(self, x: Tensor) -> Tensor:
        self._image.record_stream(torch.cuda.current_stream())
        self._image.copy_(x, non_blocking=True)
        self._graph.replay()
        return self._answer.clone()


@contextmanager
def _tried() -> Generator[None]:
    """CuDNN times its kernels for each convolution, and takes the fastest; so it does for other threads meanwhile."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class CudaGraphs:
    name = "cudagraphs"
    kept = False

    def refusal(self, device: torch.device, dtype: str) -> str:
        if device.type != "cuda":
            return f"CUDA graphs need an NVIDIA GPU, and the model is on {device.type}"
        if torch.version.hip or not (torch.backends.cudnn.is_available() and torch.backends.cudnn.enabled):
            return "cudagraphs runs cuDNN's kernels, and torch has none here, or was told not to use them"
        return "cudagraphs runs f32 and bf16 only; int8 needs inductor" if dtype == "int8" else ""

    def build(self, job: Job, folder: Path) -> None:
        """Nothing to compile."""

    def load(self, job: Job, folder: Path) -> Program:
        dtype = DTYPES[job.dtype]
        model: nn.Module = copy.deepcopy(job.model).to(dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode(False), torch.no_grad():
            return GraphProgram(with_cudnn(model.requires_grad_(False)), dtype, job.device)


def with_cudnn(model: nn.Module) -> nn.Module:
    """What answers as the model does, by cuDNN's kernels where they do more than torch's; the weights are its own."""
    traced = trace(model)
    if traced is None or not fuse_convs(traced, CudnnConv):
        return model
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
