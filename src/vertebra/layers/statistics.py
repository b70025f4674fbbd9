"""Normalisations that keep statistics of the batches they saw."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


def keeps_statistics(module: nn.Module) -> bool:
    """Whether it is a BatchNorm, or somebody's own of that kind."""
    return getattr(module, "running_mean", None) is not None


@contextmanager
def unchanged_statistics(model: nn.Module) -> Generator[None]:
    """What runs within sees the statistics that are there, and leaves them as they are."""
    kept = [
        (module, name, buffer)
        for module in model.modules()
        if module.training and keeps_statistics(module)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.detach().clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


@contextmanager
def known_statistics(model: nn.Module) -> Generator[None]:
    """What runs within is normalised by the statistics that are there, and adds nothing to them.

    For a batch of one image: its own are poor ones, and where it leaves one value a channel, there are none.
    """
    learning = [module for module in model.modules() if module.training and keeps_statistics(module)]
    for module in learning:
        module.training = False
    try:
        yield
    finally:
        for module in learning:
            module.training = True
