"""A traced graph with less in it: normalisations folded into convolutions, activations not written in place, no slices.

The exporter to ONNX traces a graph anew, each operator taken apart, and joins the parts again afterwards. Measured over
our CNNs with sizes left free, a third to two thirds of an export went there, for nothing that is left in the file.
"""

# An operator's schema can be read under private names only.
# pyright: reportPrivateUsage=false

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from vertebra.runtime.apart import make_apart

aten = torch.ops.aten


def simplify(program: ExportedProgram) -> None:
    """Change the graph, and in the program's own `state_dict` the weights that take up a normalisation."""
    for node in list(program.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.batch_norm.default:
            _fold(program, node)
        else:
            _write_elsewhere(node)
    if not any(map(_writes, program.graph.nodes)):  # what is written through a view must stay in one piece
        make_apart(program)
    program.graph.lint()
    program.graph_module.recompile()


def _fold(program: ExportedProgram, norm: Node) -> None:
    """`conv -> norm` becomes `conv` with a bias, if nobody else reads what lies between or the weights concerned."""
    conv, scale, shift, mean, var, training, _, eps = norm.args[:8]
    if not isinstance(conv, Node) or conv.target is not aten.conv2d.default or len(conv.users) > 1 or training:
        return
    image, weight, bias, *place = (*conv.args, None)[: max(3, len(conv.args))]
    if bias is not None:
        return
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = (weight, scale, shift, mean, var)
    if any(not isinstance(n, Node) or n.name not in names or len(n.users) > 1 for n in nodes):
        return
    keys = [names[n.name] for n in nodes if isinstance(n, Node)]
    w, s, b, m, v = (program.state_dict[key].detach() for key in keys)
    assert isinstance(eps, float)
    factor: Tensor = s.double() / (v.double() + eps).sqrt()
    program.state_dict[keys[0]] = _like(w, w.double() * factor.view(-1, *[1] * (w.ndim - 1)))
    program.state_dict[keys[2]] = _like(b, b.double() - m.double() * factor)
    norm.target = aten.conv2d.default  # where the normalisation stood, because its shift may come after the convolution
    norm.args = (image, weight, shift, *place)
    program.graph.erase_node(conv)


def _like(old: Tensor, new: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(new.to(old.dtype), requires_grad=False)


def _writes(node: Node) -> bool:
    """Whether it changes its operand."""
    return isinstance(node.target, OpOverload) and node.target._schema.name.endswith("_")


def _write_elsewhere(node: Node) -> None:
    """`relu_` becomes `relu`, where its operand is a value of its own that nobody else reads."""
    target: Any = node.target
    operand = node.args[0] if node.args else None
    if not _writes(node):
        return
    if not isinstance(operand, Node) or operand.op != "call_function" or len(operand.users) > 1:
        return
    maker: Any = operand.target
    if any(r.alias_info for r in maker._schema.returns):
        return
    plain = getattr(aten, target._schema.name.removeprefix("aten::")[:-1], None)
    if plain is not None and target._overloadname in plain.overloads():
        node.target = getattr(plain, target._overloadname)
