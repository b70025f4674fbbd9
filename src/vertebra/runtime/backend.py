"""What every backend promises, and what it is handed.

b batch, c channels, h w height and width in pixels, k classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vertebra.spec import VertebraError

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


class BackendError(VertebraError):
    """A backend cannot do what was asked of it on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One model to be made fast. `model` is in evaluation mode, in float32, on `device`, and must not be changed."""

    model: nn.Module
    dtype: str
    """f32, bf16 or int8."""
    device: torch.device
    example: Tensor
    """(2, c, h, w), float32, on the CPU: the size to make ready."""
    any_size: bool
    """Whether other heights and widths shall be taken, too."""
    transformer: bool
    sample: Tensor | None
    """(b, c, h, w), float32: what int8 is calibrated with."""
    threads: int
    batch: int | None = None
    """The number of images that comes most; a backend may give it a program of its own beside the one for any."""


class Program(Protocol):
    """What came of it. Safe to call from several threads at once."""

    any_size: bool
    """False: only images of the example's size."""

    def __call__(self, x: Tensor) -> Tensor:
        """(b, c, h, w) float32 on the job's device -> the model's answer in float32, there; any b from 1 on."""
        ...


class Backend(Protocol):
    """A way to make a model fast. Its module imports nothing that may be missing until a method is called."""

    @property
    def name(self) -> str: ...

    @property
    def kept(self) -> bool:
        """Whether `build` writes files, which `load` reads again in another process."""
        ...

    def refusal(self, device: torch.device, dtype: str) -> str:
        """Why this cannot be done here (what is missing, what to do), or nothing."""
        ...

    def build(self, job: Job, folder: Path) -> None:
        """Compile, and write all that `load` needs into the empty `folder`."""
        ...

    def load(self, job: Job, folder: Path) -> Program:
        """What `build` wrote, ready to run. Raises RuntimeError where it is damaged."""
        ...
