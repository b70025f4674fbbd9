"""int8 on the CPU: NNCF quantises a graph of OpenVINO's by what sample images do in it.

c channels, h w height and width in pixels.
"""

import contextlib
import math
from collections.abc import Generator, Sequence
from typing import Any

import rich
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vertebra.runtime.backend import BackendError
from vertebra.runtime.graph import quiet
from vertebra.runtime.unreported import unreported

LEAST_SAMPLES = 8
"""Fewer images say too little about the range of the activations."""

SMOOTHING = 0.5
"""How much of the activations' range goes over into weights, in a transformer's products: the value of SmoothQuant
(Xiao et al., ICML 2023, arXiv:2211.10438). NNCF's 0.95 kept 95% of DeiT-Tiny's first classes, this one 98%."""


def check_samples(count: int) -> None:
    """Raise `BackendError` for too few."""
    if count < LEAST_SAMPLES:
        raise BackendError(
            f"int8 needs photos to calibrate on, and {count or 'no'} samples were given; give at least"
            f" {LEAST_SAMPLES}, better 100 to 300 of the kind that will come"
        )


def quantised(model: Any, samples: Sequence[Float[Tensor, "c h w"]], *, batch: int, transformer: bool) -> Any:
    """The graph with weights and activations of 8 bits. It takes `batch` images at a time; `samples`: normalised ones.

    Raises `BackendError` for fewer than `LEAST_SAMPLES`.
    """
    check_samples(len(samples))

    def images(number: int) -> NDArray[Any]:
        """The last batch is filled up from the first."""
        return torch.stack([samples[(number * batch + i) % len(samples)] for i in range(batch)]).numpy()

    count = math.ceil(len(samples) / batch)
    with quiet(), _undrawn():
        nncf = unreported("nncf")
        return nncf.quantize(
            model,
            nncf.Dataset(range(count), images),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=count,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING)
            ),
        )


@contextlib.contextmanager
def _undrawn() -> Generator[None]:
    """NNCF draws bars on rich's own console, and takes no word. Not stdout is hushed: other threads print there."""
    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
