"""torch itself, channels-last, in the wanted type. On a CPU, `layers.fused` folds normalisations at the first call."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from vertebra.runtime.backend import DTYPES, Job, Program
from vertebra.spec import VertebraError


class EagerProgram:
    any_size = True

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = dtype
        self._modules = tuple(model.modules())  # walking through them anew would cost each call more than the check

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        if any(module.training for module in self._modules):
            raise VertebraError(
                "the model that this one was made from is in training mode, and would answer with the batch's own"
                " statistics; call its eval(), and optimise anew if its weights have changed"
            )
        # Channels-last is what every convolution kernel wants; a batch of one image in it is still a plain view.
        return self._model(x.to(self._dtype, memory_format=torch.channels_last)).float()


class Eager:
    name = "eager"
    kept = False

    def refusal(self, device: torch.device, dtype: str) -> str:
        return (
            "eager mode runs f32 and bf16 only; int8 needs openvino (CPU) or inductor (GPU)" if dtype == "int8" else ""
        )

    def build(self, job: Job, folder: Path) -> None:
        """Nothing to compile."""

    def load(self, job: Job, folder: Path) -> Program:
        dtype = DTYPES[job.dtype]
        if dtype == torch.float32 and job.device.type == "cpu":
            return EagerProgram(job.model, dtype)  # no copy: the fused kernels keep weights in oneDNN's own layout
        model = copy.deepcopy(job.model).to(dtype)
        return EagerProgram(model.to(memory_format=torch.channels_last), dtype)
