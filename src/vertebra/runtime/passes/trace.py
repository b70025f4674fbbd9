"""A model as a graph of its layers."""

# torch shows hooks, modes and the tracing state under private names only.
# pyright: reportPrivateUsage=false

import copy
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn.modules import module as nn_module

from vertebra.runtime.graph import tracing

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def trace(model: nn.Module) -> fx.GraphModule | None:
    """The graph of a model's answer in evaluation, by reference to its layers; None for one that cannot be traced."""
    _, *others = inspect.signature(model.forward).parameters.values()
    if not _is_ours(model) or any(other.default is inspect.Parameter.empty for other in others):
        return None
    if any(module.training or module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None
    try:
        with tracing, torch.no_grad():  # it patches `nn.Module` meanwhile
            graph = _Tracer().trace(model)
    except (TraceError, TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError):
        return None  # its code asks for a tensor's values or for its type
    _fill_in(graph, {other.name: other.default for other in others})
    traced = fx.GraphModule(model, graph)
    for node in list(graph.nodes):
        if node.op == "call_module" and type(traced.get_submodule(node.target)) in (nn.Identity, nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return traced


def _fill_in(graph: fx.Graph, defaults: dict[str, Any]) -> None:
    """What nobody gives (an attention mask) is what it is by default."""
    for node in [n for n in graph.nodes if n.op == "placeholder" and n.target in defaults]:
        for user in list(node.users):
            user.replace_input_with(node, defaults[node.target])
        graph.erase_node(node)


def own_weights(traced: fx.GraphModule) -> fx.GraphModule:
    """The same graph, with copies of the layers of torch's that are still in it: nobody else can change them.

    What is neither torch's nor ours stays what it is: nobody knows what it needs to live.
    """
    traced.delete_all_unused_submodules()
    for node in traced.graph.nodes:
        if node.op == "call_module" and is_torchs(layer := traced.get_submodule(node.target)):
            traced.set_submodule(node.target, copy.deepcopy(layer).requires_grad_(False))
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            value = getattr(traced.get_submodule(owner), name)
            if isinstance(value, Tensor):
                setattr(traced.get_submodule(owner), name, copy.deepcopy(value.detach()))
    traced.recompile()
    return traced


def watched(x: Tensor, modules: Iterable[nn.Module]) -> bool:
    """Whether a tracer, a hook or a mode wants to see the model's own steps."""
    return bool(
        torch.compiler.is_compiling()
        or type(x) is not Tensor
        or torch._C._get_tracing_state()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    )


def is_torchs(layer: nn.Module) -> bool:
    """Whether a layer does what its class says, and that class is torch's own."""
    return type(layer).__module__.startswith("torch.nn.modules.") and not _patched(layer)


def _is_ours(module: nn.Module) -> bool:
    """Whether its code may be looked into: in evaluation ours asks nothing but its own options."""
    ours = type(module).__module__.startswith("vertebra.") or type(module) in _CONTAINERS
    return ours and not _patched(module)


def _patched(module: nn.Module) -> bool:
    """Whether somebody has put a method of this one's in the place of its class's."""
    return any(callable(getattr(type(module), name, None)) for name in vars(module))


class _Tracer(fx.Tracer):
    """Looks into our own modules and nobody else's. What it patches reaches all threads, whose calls pass through."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_ours(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
