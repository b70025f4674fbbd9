"""uint8 images to what a model reads, a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vertebra.spec.errors import VertebraError

_CACHED = 2**17
"""Values at a time: half a megabyte of them."""


class NormalizeBatch(nn.Module):
    """uint8 (b, c, h, w) to (x / 255 - mean) / std in `dtype`, in one multiplication and one addition.

    Keeps the batch's memory layout. `mean` and `std` are on the 0..1 scale.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        centre, spread = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
        if not (spread > 0).all():
            raise VertebraError(f"std={tuple(std)}: every value must be above 0")
        self.register_buffer("factor", (1 / (255 * spread)).float(), persistent=False)
        self.register_buffer("offset", (-centre / spread).float(), persistent=False)

    def forward(self, batch: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if batch.dtype != torch.uint8:
            raise VertebraError(
                f"NormalizeBatch takes uint8 (0..255), not {batch.dtype}: leave out `Normalize` before it"
            )
        factor, offset = self.get_buffer("factor"), self.get_buffer("offset")
        if batch.device.type != "cpu":
            return torch.addcmul(offset, batch, factor).to(self.dtype)
        return _on_cpu(batch, factor, offset).to(self.dtype)


def _on_cpu(batch: UInt8[Tensor, "b c h w"], factor: Tensor, offset: Tensor) -> Float[Tensor, "b c h w"]:
    """The same, a few images at a time, which stay in the cache; and in long rows, as a processor's vectors want it."""
    result = torch.empty_like(batch, dtype=torch.float32)
    at_a_time = max(1, _CACHED // max(1, batch[:1].numel()))
    if batch.is_contiguous():
        for images, values in zip(batch.split(at_a_time), result.split(at_a_time), strict=True):
            values.copy_(images).mul_(factor).add_(offset)
        return result
    if not batch.is_contiguous(memory_format=torch.channels_last):
        return torch.addcmul(offset, batch, factor, out=result)
    width = batch.shape[3]
    factors, offsets = factor.flatten().repeat(width), offset.flatten().repeat(width)
    for images, values in zip(_rows(batch).split(at_a_time), _rows(result).split(at_a_time), strict=True):
        values.copy_(images)
        torch.addcmul(offsets, values, factors, out=values)
    return result


def _rows(batch: Tensor) -> Tensor:
    """(b, c, h, w), channels last -> (b, h, w c)"""
    return batch.permute(0, 2, 3, 1).flatten(2)
