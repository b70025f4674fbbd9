"""What is done to whole batches on the device: normalise, then erase."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vertebra.data.draws import uniforms
from vertebra.data.transforms import EraseMode, RandomErasing
from vertebra.spec.errors import VertebraError

_ATTEMPTS = 10
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


class RandomErasingBatch(nn.Module):
    """`RandomErasing` on a normalised batch, in place; each image draws for itself (arXiv:1708.04896).

    Where, and how much, is drawn on the processor from `generator` (or torch's default), so that a run on any device
    erases the same rectangles; the noise of "pixel" and "rand" is drawn there, too. `spare` images at the batch's start
    are left alone.
    """

    def __init__(
        self,
        p: float = 0.25,
        mode: EraseMode = "const",
        count: int = 1,
        *,
        spare: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        RandomErasing(p, mode, count)  # refuses what is not allowed
        if not 0 <= p <= 1:
            raise VertebraError(f"re_prob={p}: a probability lies between 0 and 1")
        self.p = p
        self.mode: EraseMode = mode
        self.count = count
        self.spare = spare
        self.generator = generator

    def forward(self, batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        happens = uniforms(2 * len(batch), self.generator)
        for i, image in enumerate(batch):
            if i >= self.spare and happens[2 * i] < self.p:
                count = 1 + int(happens[2 * i + 1] * self.count)
                for _ in range(count):
                    self._erase(image, count)
        return batch

    def _erase(self, image: Float[Tensor, "c h w"], count: int) -> None:
        channels, height, width = image.shape
        draws = uniforms(4 * _ATTEMPTS, self.generator)
        low, high = RandomErasing.AREA
        limit = -math.log(RandomErasing.RATIO)
        for first in range(0, len(draws), 4):  # a rectangle that would not fit is drawn anew
            a, b, c, d = draws[first : first + 4]
            area = height * width / count * (low + a * (high - low))
            aspect = math.exp(limit * (2 * b - 1))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                top, left = int(c * (height - h + 1)), int(d * (width - w + 1))
                target = image[:, top : top + h, left : left + w]
                if self.mode == "const":
                    target.zero_()
                else:
                    shape = (channels, h, w) if self.mode == "pixel" else (channels, 1, 1)
                    target.copy_(torch.randn(shape, generator=self.generator).to(image))
                return
