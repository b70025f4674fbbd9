"""A batch taken through a trunk's first steps a few images at a time.

A tensor above 32 MB is mapped anew by the C library at every allocation, and the kernel zeroes it page by page; one
that outgrows the cache is fetched from memory by the next layer. Both happen in the first steps of a CNN, whose maps
are large and whose weights are small: there, one image after the other is faster than all at once. Behind them it is
the other way round. Answers do not depend on the batch in evaluation, so nobody sees a difference.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from vertebra.runtime.passes.trace import is_torchs

LARGE = 2**24
"""Bytes of a batch's map from which on it is cut up. Inside a step there are tensors of twice its output's size."""
_WIDENING = 16
"""No stem puts out more than this many times the numbers of its image: what is small before it needs no closer look."""
_EACH_IMAGE = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.MaxPool2d, nn.AvgPool2d)
_FOR_EACH: tuple[Any, ...] = (
    torch.relu,
    torch.relu_,
    operator.add,
    operator.iadd,
    operator.mul,
    "add_",
    "sigmoid",
    "chunk",
)


def steps_of(traced: fx.GraphModule, own: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    """The graph as modules that follow each other: as many as treat each image by itself, and the rest as one.

    `own`: further layers of that kind.
    """
    ends = _ends(traced, own)
    number, numbers = 0, dict[fx.Node, int]()
    for node in traced.graph.nodes:
        numbers[node] = number
        number += node in ends
    parts = split_module(traced, traced, numbers.__getitem__)
    return [parts.get_submodule(f"submod_{i}") for i in range(number + 1)]


def _ends(traced: fx.GraphModule, own: tuple[type[nn.Module], ...]) -> set[fx.Node]:
    """The nodes whose value alone goes on to what follows, one image apart from another up to there."""
    ends, live = set[fx.Node](), dict[fx.Node, int]()
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            live[node] = len(node.users)
            continue
        if not _each_image(traced, node, own):
            break
        for source in node.all_input_nodes:
            live[source] -= 1
        live = {value: left for value, left in (live | {node: len(node.users)}).items() if left}
        if set(live) == {node} and node.op == "call_module" and node.next.op != "output":
            ends.add(node)
    return ends


def _each_image(traced: fx.GraphModule, node: fx.Node, own: tuple[type[nn.Module], ...]) -> bool:
    """Whether a step answers to each image by itself, whatever comes with it."""
    if node.op == "call_module":
        layer = traced.get_submodule(str(node.target))
        return type(layer) in own or (type(layer) in _EACH_IMAGE and is_torchs(layer))
    if node.target is torch.cat:
        return [*node.args[1:], *node.kwargs.values()] == [1]
    if node.target is operator.getitem:
        return _keeps_batch(node.args[1])
    if node.target == "mean":  # of a squeeze-and-excitation
        return node.args[1:] == ((2, 3),)
    return node.target in _FOR_EACH and not node.kwargs


def _keeps_batch(index: Any) -> bool:
    """Of a map, all images are taken (`x[:, 3:]`); of several maps, one."""
    return isinstance(index, int) or (isinstance(index, tuple) and index[:1] == (slice(None, None, None),))


def run_steps(steps: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The last step's answer."""
    done = 0
    if x.ndim == 4 and x.shape[0] > 1 and x.shape[0] * _bytes(x[:1]) * _WIDENING >= LARGE:
        x, done = _in_slices(steps, x)
    for step in steps[done:]:
        x = step(x)
    return x


def _in_slices(steps: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, int]:
    """(state, number of steps done): the first image shows how large the maps are, the others follow it."""
    batch, first, done = x.shape[0], steps[0](x[:1]), 1
    if batch * _bytes(first) <= LARGE:
        return x, 0
    while done < len(steps) - 1 and batch * _bytes(first) > LARGE:
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
