"""Every architecture exports: each operator that any of them uses is one that was converted and compared here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.zoo import ARCHS, random_state, small_model, small_options, small_size
from vertebra.export.formats import FORMATS, Job
from vertebra.export.graph import plan
from vertebra.export.artefact import open_file
from vertebra.export.bounds import BOUNDS, compare
from vertebra.export.write import BATCHES, _Options, _record
import vertebra

REPRESENTATIVES = ("dla46x_c", "deit_tiny_patch16_224")


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = set[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.seen.add(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators(arch: str) -> set[str]:
    """What a forward pass calls, found on `meta`."""
    size = small_size(arch)
    model = vertebra.create_model(arch, device="meta", **small_options(arch)).eval()
    with _Operators() as mode, torch.no_grad():
        model(torch.empty(2, 3, *size, device="meta"))
    return mode.seen
