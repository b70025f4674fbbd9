"""What torch has under private names only, for the rooms above: one place to look at when a new torch comes."""

# pyright: reportPrivateUsage=false

from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["RESIZE_BICUBIC", "TorchDispatchMode", "aoti", "export_error", "foreach", "int_mm", "pt2_reader"]

RESIZE_BICUBIC: Any = torch.ops.aten._upsample_bicubic2d_aa.vec
"""The operator behind `interpolate(mode="bicubic", antialias=True)`."""
int_mm: Any = torch.ops.aten._int_mm
"""The product of two int8 matrices, in int32."""


class _Foreach:
    """`foreach.mul_(tensors, 2)`: one kernel for a list of tensors, which torch's own optimisers use."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, f"_foreach_{name}")


foreach = cast("Any", _Foreach())


def aoti() -> Any:
    """Torch's ahead-of-time compiler, which its documentation names so; two seconds to import."""
    import torch._inductor

    return torch._inductor


def export_error() -> type[Exception]:
    """What `torch.export` raises for code that it cannot follow."""
    from torch._dynamo.exc import UserError

    return UserError


def pt2_reader() -> Any:
    """The function that reads `torch.export`'s archive whole."""
    from torch.export.pt2_archive._package import load_pt2

    return load_pt2
