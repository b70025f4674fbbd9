"""An exponential moving average of a model's parameters and buffers, updated in few fused operations."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vertebra.spec import VertebraError


def ema_decay(
    step: int,
    decay: float = 0.9999,
    *,
    min_decay: float = 0.0,
    update_after_step: int = 0,
    warmup: bool = False,
    warmup_gamma: float = 1.0,
    warmup_power: float = 2 / 3,
) -> float:
    """The share of the old average kept at `step` (from 0); with `warmup`, 1 - (1 + n / gamma)^-power up to `decay`."""
    after = step - update_after_step - 1
    if after <= 0:
        return 0.0
    if not warmup:
        return decay
    return max(min(1 - (1 + after / warmup_gamma) ** -warmup_power, decay), min_decay)


def _own(tensor: Any) -> Tensor:
    """Of a tensor that is spread over processes, this one's part."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Ema:
    """The average as `module`, a model of its own in evaluation mode; its state is that of an ordinary checkpoint.

    Until `update_after_step` the average is a copy. Averages of half-precision tensors are kept in `dtype` where one is
    given: at decay 0.9999 bfloat16 would round every update away. What is no floating-point number is copied.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        *,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 <= min_decay <= decay <= 1:
            raise VertebraError(f"decay={decay}, min_decay={min_decay}: need 0 <= min_decay <= decay <= 1, as 0.9999")
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.module.to(device=device, dtype=dtype)
        self._options: dict[str, Any] = {
            "decay": decay,
            "min_decay": min_decay,
            "update_after_step": update_after_step,
            "warmup": warmup,
            "warmup_gamma": warmup_gamma,
            "warmup_power": warmup_power,
        }

    def decay_at(self, step: int) -> float:
        return ema_decay(step, **self._options)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in `model` as it is after optimiser step number `step`, counted from 0: a pure function of both."""
        weight = 1 - self.decay_at(step)
        floats: list[tuple[Tensor, Tensor]] = []
        theirs = model.state_dict()
        for name, average in ((key, _own(kept)) for key, kept in self.module.state_dict().items()):
            value = _own(theirs[name])
            if average.is_floating_point() and weight < 1:
                floats.append((average, value.to(average)))
            else:
                average.copy_(value)
        if floats:
            averages, values = zip(*floats, strict=True)
            get_ema_multi_avg_fn(1 - weight)(list(averages), list(values), 0)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state, strict=True)
