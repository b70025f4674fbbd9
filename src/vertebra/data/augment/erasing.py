"""Rectangles erased from a normalised image (Zhong et al., arXiv:1708.04896)."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.data.draws import uniform
from vertebra.spec.errors import VertebraError, unknown_name

EraseMode = Literal["const", "rand", "pixel"]


class RandomErasing(nn.Module):
    """With probability `p`, erase 1 to `count` rectangles of a normalised image (Zhong et al., arXiv:1708.04896).

    They cover 2% to a third of the image together (before overlap), with sides 0.3 to 3.3 in ratio. `mode`: "const"
    fills with 0, the mean; "rand" with one normal colour a rectangle; "pixel" with normal noise.
    """

    AREA = (0.02, 1 / 3)
    RATIO = 0.3
    ATTEMPTS = 10

    def __init__(self, p: float = 0.5, mode: EraseMode = "const", count: int = 1) -> None:
        super().__init__()
        if mode not in ("const", "rand", "pixel"):
            raise unknown_name("re_mode", mode, ("const", "rand", "pixel"))
        if count < 1:
            raise VertebraError(f"re_count={count}: give at least 1")
        self.p = p
        self.mode: EraseMode = mode
        self.count = count

    def forward(self, image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        if torch.rand(()).item() >= self.p:
            return image
        image = image.clone()
        count = int(torch.randint(1, self.count + 1, ()).item())
        for _ in range(count):
            self._erase_one(image, count)
        return image

    def _erase_one(self, image: Float[Tensor, "c h w"], count: int) -> None:
        channels, height, width = image.shape
        limit = -math.log(self.RATIO)
        for _ in range(self.ATTEMPTS):  # a rectangle that would not fit is drawn anew
            h, w = self.sides(height * width / count * uniform(*self.AREA), math.exp(uniform(-limit, limit)))
            if h < height and w < width:
                top = int(torch.randint(height - h + 1, ()).item())
                left = int(torch.randint(width - w + 1, ()).item())
                shape = {"const": (0, 1, 1), "rand": (channels, 1, 1), "pixel": (channels, h, w)}[self.mode]
                colour = torch.randn(shape, dtype=image.dtype, device=image.device) if shape[0] else 0.0
                image[:, top : top + h, left : left + w] = colour
                return

    @staticmethod
    def sides(area: float, ratio: float) -> tuple[int, int]:
        """(height, width) in pixels of a rectangle, `ratio` times as high as wide."""
        return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode}, count=(1, {self.count})"
