"""A batch taken through a trunk's first steps a few images at a time.

A tensor above 32 MB is mapped anew by the C library at every allocation, and the kernel zeroes it page by page; one
that outgrows the cache is fetched from memory by the next layer. Both happen in the first steps of a CNN, whose maps
are large and whose weights are small: there, one image after the other is faster than all at once. Behind them it is
the other way round. Answers do not depend on the batch in evaluation, so nobody sees a difference.
"""

# torch shows hooks, modes and the tracing state under private names only.
# pyright: reportPrivateUsage=false

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from vertebra.layers.fused import followed

LARGE = 2**24
"""Bytes of a batch's map from which on it is cut up. Inside a step there are tensors of twice its output's size."""
_WIDENING = 16
"""No stem puts out more than this many times the numbers of its image: what is small before it needs no closer look."""


def run_steps(steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor, modules: Iterable[nn.Module]) -> Tensor:
    """The last step's answer. `modules`: everything that the steps run; a hook on one of them sees the whole batch."""
    done = 0
    if _may_cut(x, modules):
        x, done = _in_slices(steps, x)
    for step in steps[done:]:
        x = step(x)
    return x


def _in_slices(steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> tuple[Tensor, int]:
    """(state, number of steps done): the first image shows how large the maps are, the others follow it."""
    batch, first, done = x.shape[0], steps[0](x[:1]), 1
    if batch * _bytes(first) <= LARGE:
        return x, 0
    while done < len(steps) and batch * _bytes(first) > LARGE:
        first, done = steps[done](first), done + 1
    states = [first]
    for image in x[1:].split(1):
        state = image
        for step in steps[:done]:
            state = step(state)
        states.append(state)
    return torch.cat(states), done


def _bytes(x: Tensor) -> int:
    return 4 * x.numel()  # bfloat16 is widened inside a step where the processor has no arithmetic for it


def _may_cut(x: Tensor, modules: Iterable[nn.Module]) -> bool:
    """True where no gradient, tracer, mode, hook or batch statistics would notice."""
    if followed(x) or x.device.type != "cpu":
        return False
    return not (
        x.shape[0] < 2
        or x.shape[0] * _bytes(x[:1]) * _WIDENING < LARGE
        or x.dtype not in (torch.float32, torch.bfloat16)
        or nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or any(m._forward_hooks or m._forward_pre_hooks or m.training for m in modules)
    )
