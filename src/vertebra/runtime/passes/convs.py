"""Convolution, batch normalisation, addition and activation: found in a graph, and made one step."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from vertebra.runtime.passes.trace import is_torchs

TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Activation:
    """`name`: '' for none, relu, leaky_relu, silu."""

    name: str = ""
    slope: float = 0.0
    """Of a leaky ReLU, below zero."""

    def over(self, x: Tensor) -> Tensor:
        """Written over `x`."""
        if self.name == "relu":
            return torch.relu_(x)
        if self.name == "leaky_relu":
            return F.leaky_relu_(x, self.slope)
        return F.silu(x, inplace=True) if self.name == "silu" else x


_FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu: "relu",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.silu: "silu",
}
_MODULES: dict[Any, str] = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.SiLU: "silu"}
_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")

Make = Callable[[nn.Conv2d, nn.BatchNorm2d, Activation], nn.Module]
"""What stands for a unit: called with an image and, where there is an addition, with what is added."""


def fuse_convs(traced: fx.GraphModule, make: Make) -> int:
    """Put one step in the place of each such unit; returns how many there were."""
    found = 0
    for node in list(traced.graph.nodes):
        unit = _Unit.at(traced, node)
        if unit is None:
            continue
        name = f"fused_{found}"
        traced.add_submodule(name, make(unit.conv, unit.bn, unit.act))
        with traced.graph.inserting_before(unit.nodes[-1]):
            step = traced.graph.call_module(name, (node.args[0], *unit.added))
        unit.nodes[-1].replace_all_uses_with(step)
        for done in reversed(unit.nodes):
            traced.graph.erase_node(done)
        found += 1
    return found


@dataclass(slots=True)
class _Unit:
    nodes: list[fx.Node]
    """In order, from the convolution on."""
    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    added: tuple[fx.Node, ...] = ()
    act: Activation = Activation()

    @classmethod
    def at(cls, traced: fx.GraphModule, node: fx.Node) -> "_Unit | None":
        """The longest that begins with this node."""
        conv, norm = _layer(traced, node), _only_user(node)
        bn = None if norm is None else _layer(traced, norm)
        if norm is None or type(conv) is not nn.Conv2d or type(bn) is not nn.BatchNorm2d or not foldable(conv, bn):
            return None
        if len(node.args) != 1 or len(norm.args) != 1:
            return None
        unit = cls([node, norm], conv, bn)
        adding = unit._next(traced)
        if adding is not None and (added := _added(adding, norm)) is not None:
            unit.nodes.append(adding)
            unit.added = (added,)
        last = unit._next(traced)
        if last is not None and (act := _activation(traced, last)) is not None:
            unit.nodes.append(last)
            unit.act = act
        return unit

    def _next(self, traced: fx.GraphModule) -> fx.Node | None:
        """The only node that reads the last one, if the unit may be computed there: nothing that it reads is written
        to before.
        """
        user, between = _only_user(self.nodes[-1]), self.nodes[0].next
        while user is not None and between is not user:
            if between not in self.nodes and _writes(traced, between):
                return None
            between = between.next
        return user


def foldable(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> bool:
    """Whether the normalisation, which does not change any more, may go into the convolution's weight."""
    weight = conv.weight
    return (
        is_torchs(conv)
        and is_torchs(bn)
        and not bn.training
        and bn.running_mean is not None
        and type(weight) is nn.Parameter
        and weight.dtype in TYPES
        and weight.device == bn.running_mean.device
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(scale, shift) that a normalisation comes to in evaluation, in double precision."""
    mean, var = bn.running_mean, bn.running_var
    assert mean is not None
    assert var is not None
    scale = (var.double() + bn.eps).rsqrt()
    scale = scale if not bn.affine else scale * bn.weight.double()
    return scale, -mean.double() * scale + (bn.bias.double() if bn.affine else 0.0)


def fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the convolution with its normalisation in it, in float32 or better."""
    scale, shift = affine(bn)
    shift = shift if conv.bias is None else shift + conv.bias.double() * scale
    wide = torch.promote_types(conv.weight.dtype, torch.float32)
    return conv.weight.to(wide) * scale.to(wide).view(-1, 1, 1, 1), shift


def layers(traced: fx.GraphModule) -> Iterator[tuple[fx.Node, nn.Module]]:
    """The modules that a graph calls."""
    for node in traced.graph.nodes:
        if node.op == "call_module":
            yield node, traced.get_submodule(node.target)


def _layer(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(node: fx.Node, norm: fx.Node) -> fx.Node | None:
    """What an addition adds to `norm`; None for anything else."""
    if node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
        return None
    other = node.args[1] if node.args[0] is norm else node.args[0]
    return other if isinstance(other, fx.Node) and other is not norm else None


def _activation(traced: fx.GraphModule, node: fx.Node) -> Activation | None:
    layer = _layer(traced, node)
    slope: Any
    if layer is not None:
        name = _MODULES.get(type(layer)) if is_torchs(layer) else None
        slope = getattr(layer, "negative_slope", 0.0)
    else:
        name = _FUNCTIONS.get(node.target) or {"relu": "relu", "relu_": "relu"}.get(str(node.target))
        slope = (*node.args, node.kwargs.get("negative_slope", 0.01))[1]
    if name is None:
        return None
    return Activation(name, slope) if name == "leaky_relu" else Activation(name)


def _writes(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a step may write over what it is given."""
    layer = _layer(traced, node)
    if layer is not None:
        return bool(getattr(layer, "inplace", False)) or not type(layer).__module__.startswith(("torch.", "vertebra."))
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    return name.endswith("_") or node.target in (operator.iadd, operator.imul, operator.isub, operator.setitem)
