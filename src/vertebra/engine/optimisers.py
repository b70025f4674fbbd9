"""The two optimisers that published recipes need and torch lacks: RMSprop as in TensorFlow 1, and LAMB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from vertebra.runtime.private import foreach
from vertebra.spec import VertebraError


def _check(**values: tuple[float, bool]) -> None:
    for name, (value, allowed) in values.items():
        if not allowed:
            raise VertebraError(f"{name}={value} is out of range: rates and eps are at least 0, averages below 1")


class _Foreach(Optimizer):
    """Steps over whole groups at a time; a subclass says what is kept for a parameter, and what a step does."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._prepare()
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if parameters:
                states: list[dict[str, Any]] = [self.state[p] for p in parameters]
                for parameter, state in zip(parameters, states, strict=True):
                    if not state:
                        self._begin(parameter, state, group)
                self._update(parameters, [cast("Tensor", p.grad) for p in parameters], states, group)
        return loss

    def _prepare(self) -> None: ...

    def _begin(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _update(
        self, parameters: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        raise NotImplementedError


class RMSpropTF(_Foreach):
    """RMSprop as TensorFlow 1 computes it, with which EfficientNet-like recipes were tuned.

    The mean of squares starts at 1, eps stands inside the root, and momentum accumulates steps that the learning rate
    has already scaled (`lr_in_momentum`).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        decoupled_decay: bool = False,
        lr_in_momentum: bool = True,
    ) -> None:
        _check(lr=(lr, lr >= 0), alpha=(alpha, 0 <= alpha < 1), eps=(eps, eps >= 0), momentum=(momentum, momentum >= 0))
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "decoupled_decay": decoupled_decay,
            "lr_in_momentum": lr_in_momentum,
        }
        super().__init__(params, defaults)

    def _begin(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["square_avg"] = torch.ones_like(parameter)
        if group["momentum"] > 0:
            state["momentum_buffer"] = torch.zeros_like(parameter)

    def _update(
        self, parameters: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        lr, decay = group["lr"], group["weight_decay"]
        if decay and group["decoupled_decay"]:
            foreach.mul_(parameters, 1 - lr * decay)
        elif decay:
            grads = foreach.add(grads, parameters, alpha=decay)
        squares = [state["square_avg"] for state in states]
        foreach.lerp_(squares, foreach.mul(grads, grads), 1 - group["alpha"])
        steps = foreach.add(squares, group["eps"])
        foreach.sqrt_(steps)
        steps = foreach.div(grads, steps)
        if group["momentum"] == 0:
            foreach.add_(parameters, steps, alpha=-lr)
            return
        buffers = [state["momentum_buffer"] for state in states]
        foreach.mul_(buffers, group["momentum"])
        foreach.add_(buffers, steps, alpha=lr if group["lr_in_momentum"] else 1.0)
        foreach.add_(parameters, buffers, alpha=-1.0 if group["lr_in_momentum"] else -lr)


class Lamb(_Foreach):
    """LAMB (You et al., arXiv:1904.00962): Adam whose step is scaled, tensor by tensor, to the weights' length.

    `max_grad_norm` bounds the length of all gradients together, None leaves them. `trust_clip` bounds the scale by 1;
    `always_adapt` scales parameters without weight decay, too.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
    ) -> None:
        _check(
            lr=(lr, lr >= 0),
            eps=(eps, eps >= 0),
            beta1=(betas[0], 0 <= betas[0] < 1),
            beta2=(betas[1], 0 <= betas[1] < 1),
        )
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "grad_averaging": grad_averaging,
            "max_grad_norm": max_grad_norm,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
        }
        super().__init__(params, defaults)
        self._norm: Tensor | None = None

    def _prepare(self) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(grads) if grads else None

    def _begin(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)

    def _update(
        self, parameters: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        if group["max_grad_norm"] is not None and self._norm is not None:
            grads = foreach.div(grads, (self._norm / group["max_grad_norm"]).clamp_min(1.0))
        beta1, beta2 = group["betas"]
        averages, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        foreach.mul_(averages, beta1)
        foreach.add_(averages, grads, alpha=1 - beta1 if group["grad_averaging"] else 1.0)
        foreach.mul_(squares, beta2)
        foreach.addcmul_(squares, grads, grads, 1 - beta2)
        first: list[float] = []
        second: list[float] = []
        for state in states:
            state["step"] += 1
            first.append(1 - beta1 ** state["step"] if group["bias_correction"] else 1.0)
            second.append((1 - beta2 ** state["step"]) ** 0.5 if group["bias_correction"] else 1.0)
        below = foreach.sqrt(squares)
        foreach.div_(below, second)
        foreach.add_(below, group["eps"])
        updates = foreach.div(averages, first)
        foreach.div_(updates, below)
        if group["weight_decay"]:
            foreach.add_(updates, parameters, alpha=group["weight_decay"])
        if group["weight_decay"] or group["always_adapt"]:
            foreach.mul_(updates, _trust(parameters, updates, group["trust_clip"]))
        foreach.add_(parameters, updates, alpha=-group["lr"])


def _trust(parameters: list[Tensor], updates: list[Tensor], clip: bool) -> list[Tensor]:
    """|weights| / |update| of each tensor; 1 where either is 0."""
    out: list[Tensor] = []
    for weights, update in zip(foreach.norm(parameters), foreach.norm(updates), strict=True):
        ratio = torch.where((weights > 0) & (update > 0), weights / update, torch.ones_like(weights))
        out.append(ratio.clamp_max(1.0) if clip else ratio)
    return out
