"""A traced graph in which channels that would be sliced are made apart: the same sums, fewer copies.

A DPN's block ends in one convolution for two paths, a CSP stage begins with one for two halves; what the paths join is
cut again a block later. OpenVINO copies what it slices: without these slices dpn92 takes 6% less time in bf16, 12% in
f32, 22% in int8.
"""

import itertools
import operator
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.nn import Parameter

aten = torch.ops.aten

ACTIVATIONS = (aten.relu.default, aten.leaky_relu.default, aten.silu.default, aten.gelu.default, aten.mish.default)
"""What treats every channel alike, so that a slice may as well come before it."""


def make_apart(program: ExportedProgram) -> None:
    """Change the graph and the program's own `state_dict`. Nothing in the graph may write in place."""
    nodes = program.graph.nodes
    for node in list(nodes):
        _as_slice(program, node)
    for node in list(nodes):
        if node.target is aten.cat.default:
            _flatten(node)
            for cut in _cuts(node):
                _pick(program, node, cut)
        elif node.target in ACTIVATIONS and _only_sliced(node) and _single(_args(node)[0]):
            for cut in _cuts(node):
                _swap(program, node, cut)
            program.graph.erase_node(node)
    for node in list(nodes):
        if node.target is aten.conv2d.default and _only_sliced(node):
            _divide(program, node)
    for node in reversed(nodes):
        if node.target in (aten.cat.default, aten.conv2d.default) and not node.users:
            program.graph.erase_node(node)


def _args(node: Node) -> Any:
    """What an operator is given: by its schema, which no type says."""
    return node.args


def _bounds(cut: Node) -> Any:
    """Of a slice: dimension, start, end and step, the defaults too."""
    return (*cut.args[1:], *(0, None, None, 1)[len(cut.args) - 1 :])


def _cuts(node: Node) -> list[Node]:
    """The slices of its channels, each between two numbers."""
    slices = [user for user in node.users if user.target is aten.slice.Tensor]
    return [s for s in slices if _bounds(s)[::3] == (1, 1) and _fixed(_bounds(s)[1:3])]


def _fixed(sizes: Sequence[object]) -> bool:
    """Whether they are numbers, not what an image's size decides."""
    return all(isinstance(size, int) for size in sizes)


def _only_sliced(node: Node) -> bool:
    return len(node.users) > 1 and len(_cuts(node)) == len(node.users)


def _single(node: Any) -> bool:
    """A convolution that one node reads."""
    return isinstance(node, Node) and node.target is aten.conv2d.default and len(node.users) == 1


def _replace(program: ExportedProgram, node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    program.graph.erase_node(node)


def _insert(program: ExportedProgram, place: Node, target: Any, args: tuple[Any, ...]) -> Node:
    """A node before `place`, whose values it gives."""
    with program.graph.inserting_before(place):
        made = program.graph.call_function(target, args)
    made.meta = dict(place.meta)
    return made


def _as_slice(program: ExportedProgram, node: Node) -> None:
    """A chunk of channels becomes a slice, and a slice that leaves nothing out becomes what it was cut from."""
    if node.target is aten.slice.Tensor and _bounds(node)[1:] == (0, sys.maxsize, 1):
        _replace(program, node, _args(node)[0])
    elif node.target is operator.getitem:
        chunk, number = _args(node)
        if chunk.target is aten.chunk.default and chunk.args[2:] == (1,) and _ends(chunk.meta["val"]):
            ends = _ends(chunk.meta["val"])
            args = (chunk.args[0], 1, *ends[number : number + 2])
            _replace(program, node, _insert(program, node, aten.slice.Tensor, args))
            if not chunk.users:
                program.graph.erase_node(chunk)


def _ends(parts: Sequence[Tensor]) -> list[int]:
    """Where each part's channels begin, and where the last's end; nothing where an image's size decides."""
    widths = [part.shape[1] for part in parts]
    return list(itertools.accumulate(widths, initial=0)) if _fixed(widths) else []


def _flatten(join: Node) -> None:
    """What was joined before is joined with the rest, at once."""
    parts, *dim = _args(join)
    nested = [p.args[0] if p.target is join.target and [*p.args[1:]] == dim else [p] for p in parts]
    join.args = ([part for some in nested for part in some], *dim)


def _pick(program: ExportedProgram, join: Node, cut: Node) -> None:
    """A slice of joined channels becomes the parts that it consists of."""
    parts, *dim = _args(join)
    ends = _ends([part.meta["val"] for part in parts]) if dim == [1] else []
    start, end = (min([bound, *ends[-1:]]) for bound in _bounds(cut)[1:3])
    if start in ends and end in ends:
        picked = parts[ends.index(start) : ends.index(end)]
        whole = picked[0] if len(picked) == 1 else _insert(program, cut, aten.cat.default, (picked, 1))
        _replace(program, cut, whole)


def _swap(program: ExportedProgram, activation: Node, cut: Node) -> None:
    """A slice of an activation becomes the activation of a slice."""
    image, *options = activation.args
    early = _insert(program, cut, aten.slice.Tensor, (image, *cut.args[1:]))
    cut.target, cut.args, cut.kwargs = activation.target, (early, *options), activation.kwargs


def _divide(program: ExportedProgram, conv: Node) -> None:
    """A convolution whose channels are sliced becomes one for each slice, if nobody else reads its weights."""
    image, weight, bias, *place = (*_args(conv), None)[: max(3, len(conv.args))]
    held = [node for node in (weight, bias) if isinstance(node, Node)]
    names = program.graph_signature.inputs_to_parameters
    if [*place, *(1, 0, 1, 1)[len(place) :]][3] != 1:
        return
    if any(node.name not in names or len(node.users) > 1 for node in held):
        return
    for cut in list(conv.users):
        parts = [_part(program, node, cut) for node in held]
        cut.target, cut.args = conv.target, (image, *parts, *[None] * (2 - len(parts)), *place)


def _part(program: ExportedProgram, node: Node, cut: Node) -> Node:
    """A parameter of its own for the output channels that a slice takes of another's."""
    specs, channels = program.graph_signature.input_specs, slice(*_bounds(cut)[1:3])
    place = next(i for i, spec in enumerate(specs) if spec.arg.name == node.name)
    key = str(specs[place].target)
    made = f"{key}_{cut.name}"
    value = program.state_dict[key].detach()[channels].clone()
    program.state_dict[made] = Parameter(value, requires_grad=False)
    with program.graph.inserting_before(node):
        placed = program.graph.placeholder(f"{node.name}_{cut.name}")
    placed.meta = {**node.meta, "val": node.meta["val"][channels]}
    specs.insert(place, InputSpec(InputKind.PARAMETER, TensorArgument(placed.name), made))
    return placed
