"""Loss and gradients of a batch: computed as they are or, on a GPU, recorded as a CUDA graph and played again.

A small network's step is some thousand kernels of a few microseconds each, which Python starts more slowly than a GPU
runs them. A graph is started as one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vertebra.runtime.cudagraphs import recording

SETTLED = 3
"""Batches of the same kind in a row, from which on they are recorded: the libraries choose their kernels in the first,
and an odd one (an image could not be read) is not worth a recording."""

_Kind = tuple[object, ...]
_log = logging.getLogger(__name__)


class Gradients:
    """`compute(*inputs)`, which answers with the detached loss and leaves gradients in `model`'s parameters.

    `record`: play it from a graph where batches of one kind follow each other. Then `compute` must do everything on the
    GPU and without a look at what it computed; random numbers of the GPU's default generator are drawn anew each time.
    Gradients must be gone (None) before each call. A single batch of another kind is computed as it is; a second one
    in a row ends the recording. Where recording fails, everything is computed as it is.
    """

    def __init__(self, compute: Callable[..., Tensor], model: nn.Module, *, record: bool) -> None:
        self._compute = compute
        self._parameters = list(model.parameters())
        self._record_it = record
        self._kind: _Kind = ()
        self._in_a_row = 0
        self._recorded: _Recorded | None = None

    def __call__(self, *inputs: Tensor, **part: Tensor) -> Tensor:
        """The loss; the graph's is overwritten by the next call. `part`: of an update of several batches, which are
        not recorded.
        """
        if not self._record_it:
            return self._compute(*inputs, **part)
        kind = self._kind_of(inputs)
        if self._recorded is not None and self._recorded.kind == kind:
            self._in_a_row = 0
            return self._recorded.play(inputs)
        self._in_a_row = self._in_a_row + 1 if kind == self._kind else 1
        self._kind = kind
        if self._in_a_row > 1:  # what was recorded is over, and its memory wanted
            self._recorded = None
        if self._in_a_row < SETTLED:
            return self._compute(*inputs)
        try:
            self._recorded = _Recorded(kind, self._compute, self._parameters, inputs)
        except RuntimeError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            _log.warning("no CUDA graph could be recorded, training goes on without: %s", reason)
        if self._recorded is not None:
            return self._recorded.play(inputs)
        # Only now is all free that the failed attempt, and its error, held.
        self._record_it = False
        for parameter in self._parameters:
            parameter.grad = None
        return self._compute(*inputs)

    def _kind_of(self, inputs: tuple[Tensor, ...]) -> _Kind:
        """A graph holds for these shapes, and for what learns now."""
        shapes = tuple((x.shape, x.dtype, x.stride()) for x in inputs)
        return (*shapes, tuple(p.requires_grad for p in self._parameters))


class _Recorded:
    """A graph, with the memory that it reads from and writes to."""

    def __init__(
        self, kind: _Kind, compute: Callable[..., Tensor], parameters: list[nn.Parameter], inputs: tuple[Tensor, ...]
    ) -> None:
        self.kind = kind
        self._inputs = tuple(x.clone() for x in inputs)
        self._graph = torch.cuda.CUDAGraph()
        self._device = inputs[0].device
        with recording(self._graph, self._device):
            self._loss = compute(*self._inputs)
        self._gradients = [(p, p.grad) for p in parameters if p.grad is not None]

    def play(self, inputs: tuple[Tensor, ...]) -> Tensor:
        with torch.cuda.device(self._device):  # which need not be the current one
            for own, x in zip(self._inputs, inputs, strict=True):
                own.copy_(x, non_blocking=True)
            self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._loss
