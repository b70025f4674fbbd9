"""What is done to whole batches on the device, behind `NormalizeBatch`: erase."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.data.augment.erasing import EraseMode, RandomErasing
from vertebra.data.draws import uniforms
from vertebra.spec.errors import VertebraError


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
        filled = list[tuple[Tensor, Tensor]]()
        for i, image in enumerate(batch):
            if i >= self.spare and happens[2 * i] < self.p:
                count = 1 + int(happens[2 * i + 1] * self.count)
                for _ in range(count):
                    filled += self._erase(image, count)
        for (target, _), noise in zip(filled, _sent([noise for _, noise in filled], batch.device), strict=True):
            target.copy_(noise)
        return batch

    def _erase(self, image: Float[Tensor, "c h w"], count: int) -> list[tuple[Tensor, Tensor]]:
        """(place in the image, what comes there), where that is not nothing, which is put there at once."""
        channels, height, width = image.shape
        draws = uniforms(4 * RandomErasing.ATTEMPTS, self.generator)
        low, high = RandomErasing.AREA
        limit = -math.log(RandomErasing.RATIO)
        for first in range(0, len(draws), 4):  # a rectangle that would not fit is drawn anew
            a, b, c, d = draws[first : first + 4]
            area = height * width / count * (low + a * (high - low))
            h, w = RandomErasing.sides(area, math.exp(limit * (2 * b - 1)))
            if 0 < h < height and 0 < w < width:
                top, left = int(c * (height - h + 1)), int(d * (width - w + 1))
                target = image[:, top : top + h, left : left + w]
                if self.mode == "const":
                    target.zero_()
                    return []
                shape = (channels, h, w) if self.mode == "pixel" else (channels, 1, 1)
                return [(target, torch.randn(shape, generator=self.generator))]
        return []


def _sent(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """To the device, together: each by itself would wait until that has done all it was told before."""
    if device.type != "cuda" or not tensors:
        return tensors
    sizes = [tensor.numel() for tensor in tensors]
    there = torch.cat([tensor.flatten() for tensor in tensors]).pin_memory().to(device, non_blocking=True)
    return [part.view(tensor.shape) for part, tensor in zip(there.split(sizes), tensors, strict=True)]
