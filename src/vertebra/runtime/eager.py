"""torch itself, channels-last, in the wanted type; on a CPU, what the passes make of a model's graph."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vertebra.runtime.backend import DTYPES, Job, Program
from vertebra.runtime.passes import onednn
from vertebra.runtime.passes.convs import fuse_convs
from vertebra.runtime.passes.slices import run_steps, steps_of
from vertebra.runtime.passes.trace import own_weights, trace, watched
from vertebra.spec import VertebraError


class EagerProgram:
    """`model`, or `steps`, which answer alike, where nobody wants to see the model's own."""

    any_size = True

    def __init__(self, model: nn.Module, dtype: torch.dtype, steps: Sequence[nn.Module] | None = None) -> None:
        self.steps = steps
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
        x = x.to(self._dtype, memory_format=torch.channels_last)
        if self.steps is None or not x.numel() or watched(x, self._modules):
            return self._model(x).float()
        try:
            with torch.autocast("cpu", enabled=False):
                return run_steps(self.steps, x).float().contiguous()
        except RuntimeError:
            return self._model(x).float()  # says what is wrong with the images, if something is


def fused(model: nn.Module) -> EagerProgram | None:
    """A model in evaluation on a CPU, in its own type, with the weights of now; None where nothing would be gained.

    Its convolutions take their normalisation, addition and activation with them, and large batches go through the first
    of them image by image.
    """
    first = next(model.parameters(), None)
    if first is None or first.device.type != "cpu" or not onednn.available():
        return None
    with torch.inference_mode(False), torch.no_grad():
        traced = trace(model)
        if traced is None or not fuse_convs(traced, onednn.OneDnnConv):
            return None
        steps = steps_of(own_weights(traced), (onednn.OneDnnConv,))
    return EagerProgram(model, first.dtype, steps)


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
        dtype, model = DTYPES[job.dtype], job.model
        if dtype != torch.float32 or job.device.type != "cpu":
            model = copy.deepcopy(model).to(dtype).to(memory_format=torch.channels_last)
        return fused(model) or EagerProgram(model, dtype)
