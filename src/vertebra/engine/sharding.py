"""FSDP2: each process keeps a part of every parameter, of its average, and of what the optimiser keeps of it.

By torch's own `fully_shard`, on every device alike. accelerate 1.15 takes up its FSDP plugin on accelerators alone: on
a CPU (gloo) it leaves the plugin aside and wraps in DDP without a word, so that tests would prove another path than
GPUs take. Devices, processes, mixed precision and gradient norms stay accelerate's.

What is saved is whole: the same file as of a run that was not sharded, which goes on either way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor, nn

from vertebra.data.loader import Batch
from vertebra.models.backbone import Backbone
from vertebra.models.groups import layer_groups
from vertebra.spec import State

_LAYER = 3
"""Parameters that a convolution and its norm have; what has no more is no block."""


def units(model: Backbone) -> list[str]:
    """The modules whose parameters are gathered together, the innermost first: the model's own blocks and stages.

    They are the groups of `layer_groups` that are just one module: ViT's and DPN's blocks, DLA's trees, CSP's blocks
    and stages. What lies in none (stem, head) is gathered with the whole model.
    """
    found: set[str] = set()
    for coarse in (False, True):
        for names in layer_groups(model, coarse):
            levels = zip(*(name.split(".") for name in names), strict=False)
            module = ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, levels))
            if len(names) > _LAYER and module:
                own = {f"{module}.{name}" for name, _ in model.get_submodule(module).named_parameters()}
                found |= {module} if own == set(names) else set()
    return sorted(found, key=lambda name: (-name.count("."), name))


def shard(model: Backbone, device: torch.device) -> None:
    """Spread the model over all processes, in place: parameters become DTensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for name in units(model):
        fully_shard(model.get_submodule(name), mesh=mesh)
    # Freed after each forward pass, too: a pass for validation is followed by no backward one that would do so.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    # Said of a CNN whose logits are a flattened map; no loss here writes into them. Of inner modules it still warns.
    said = rf"FSDP2-wrapped module \({type(model).__name__}\) returned a view"
    warnings.filterwarnings("ignore", said, UserWarning)


def whole(model: nn.Module) -> State:
    """The full state on the first process' CPU, nothing on the others. All processes must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def put(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `whole`; every process gives the full state. Raises `RuntimeError` for other names."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True, strict=True))


def whole_optimizer(optimizer: Any) -> dict[str, Any]:
    """As `optimizer.state_dict()`, with full tensors on the first process' CPU. All processes must call it."""
    from torch.distributed.tensor import DTensor

    first = torch.distributed.get_rank() == 0

    def full(value: Any) -> Any:
        if isinstance(value, DTensor):
            value = value.full_tensor()
        return value.cpu() if first and isinstance(value, Tensor) else value if first else None

    saved = optimizer.state_dict()
    state = {index: {key: full(value) for key, value in own.items()} for index, own in saved["state"].items()}
    return {**saved, "state": state}


def put_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """The inverse of `whole_optimizer`: what is shaped as its parameter is spread as that is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(value: Any, like: Any) -> Any:
        if not (isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape and like.ndim):
            return value
        value = value.to(like.device)
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)

    state = {
        index: {key: part(value, parameters[index]) for key, value in own.items()}
        for index, own in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """The first process' running statistics for all, as DDP does: parameters are shared anyhow, buffers are not."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten().float() for buffer in buffers])
    torch.distributed.broadcast(flat, 0)
    for buffer, values in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def in_step(batches: Iterable[Batch], forward: Callable[[Tensor], Tensor], image: Tensor) -> Generator[Batch]:
    """The same batches; where a process has none of one's images, it still takes part in gathering, with `image`."""
    for batch in batches:
        if len(batch.labels) == 0:
            forward(image)
        yield batch


@contextmanager
def validating() -> Generator[None]:
    """Without gradients, but not in inference mode: what is gathered there could not be trained on."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def accumulate(net: nn.Module, last: bool) -> None:
    """Gradients are exchanged with the last batch of an update."""
    cast("Any", net).set_requires_gradient_sync(last)
