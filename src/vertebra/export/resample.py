"""Antialiased resizing as a product with a matrix, for graphs that must run anywhere.

Every runtime has a resize operator, and no two of them agree on borders, antialiasing and rounding. A matrix product is
the same everywhere, takes images whose size is known only at run time, and computes no more than the crop needs.

h w height and width in pixels, c channels, b batch, n source pixels, m target pixels along one side.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from vertebra.runtime.private import RESIZE_BICUBIC
from vertebra.spec import VertebraError


def triangle(x: Tensor) -> Tensor:
    """The linear filter; support 1."""
    return (1 - x.abs()).clamp_min(0)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -0.5, as Pillow and torch's antialiased resize use it; support 2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": triangle, "bicubic": cubic}


def positions(count: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """(count,) 0, 1, 2 ..., and `count` as a tensor: a number that a graph can reckon with.

    As a float32 from the start: sizes below 2^24 are exact, and integer arithmetic on shapes is where exporters differ.
    """
    index = torch.arange(count, dtype=torch.float32, device=device)
    return index, index.amax(0) + 1


def resize_matrix(source: Tensor, scale: Tensor, target: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """(m, n): row i holds what each of the n `source` positions gives to the `target` position i.

    `scale` is source pixels a target pixel. Each row sums to 1, so borders need no rule of their own.
    """
    centre = (target + 0.5) * scale
    distance = source.unsqueeze(0) + 0.5 - centre.unsqueeze(1)
    weights = kernel(distance / scale.clamp_min(1.0))
    return weights / weights.sum(1, keepdim=True)


def decomposed_bicubic(image: Tensor, output_size: Any, align_corners: bool, *scales: Any) -> Tensor:
    """`aten._upsample_bicubic2d_aa.vec`, which OpenVINO rounds otherwise: (b, c, h, w) -> (b, c, h', w')."""
    assert not align_corners
    del scales  # the ratio of the sizes, as `interpolate(size=)` leaves it
    matrices = list[Tensor]()
    for size, new in zip(image.shape[-2:], output_size, strict=True):
        (source, old), (target, count) = positions(size, image.device), positions(new, image.device)
        matrices.append(resize_matrix(source, old / count, target, cubic))
    return matrices[0] @ image @ matrices[1].transpose(0, 1)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {RESIZE_BICUBIC: decomposed_bicubic}


class Photo(nn.Module):
    """A uint8 photo -> the tensor that the model reads, as Pillow and `create_transform` make it: resize, crop, scale.

    The two passes round to whole levels in between, as Pillow does. Columns come first; Pillow 13 begins with the rows
    of some upright photos, which changes a level here and there (tests/export/test_resample.py).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        """`config`: what `resolve_model_data_config` gives. Raises `VertebraError` for what the graph cannot do."""
        super().__init__()
        channels, height, width = config["input_size"]
        name, mode, share = config["interpolation"], config["crop_mode"], config["crop_pct"]
        if channels != 3:
            raise VertebraError(f"photos are RGB, but this model takes {channels} channels; export without it")
        if name not in FILTERS:
            raise VertebraError(f"{name!r} cannot be put into a graph; allowed: {', '.join(FILTERS)}")
        if mode != "squash" and (mode != "center" or height != width):
            raise VertebraError(
                f"crop_mode {mode!r} at {height}x{width} cannot be put into a graph; allowed: 'squash', and 'center' at"
                " a square size"
            )
        if not 0 < share <= 1:
            raise VertebraError(f"crop_pct={share} cannot be put into a graph: a share of the image, at most 1")
        self.kernel = FILTERS[name]
        self.crop = (height, width)
        self.larger = (int(height / share), int(width / share))
        self.squash = mode == "squash"
        self.register_buffer("mean", 255 * torch.tensor(config["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(config["std"]).view(-1, 1, 1), persistent=False)

    def forward(self, photo: Tensor) -> Tensor:
        """(b, h, w, 3) uint8 -> (b, 3, height, width) float32."""
        rows, height = positions(photo.shape[1], photo.device)
        columns, width = positions(photo.shape[2], photo.device)
        shorter = torch.minimum(height, width)
        down = self._matrix(rows, height, 0, shorter)
        across = self._matrix(columns, width, 1, shorter)
        image = photo.to(torch.float32).permute(0, 3, 1, 2)
        image = _levels(image @ across.transpose(0, 1))
        image = _levels(down @ image)
        return (image - self.mean) / self.std

    def _matrix(self, source: Tensor, length: Tensor, axis: int, shorter: Tensor) -> Tensor:
        larger, crop = self.larger[axis], self.crop[axis]
        count = torch.full_like(length, larger) if self.squash else torch.floor(larger * length / shorter)
        # The crop begins at half the difference, rounded to even, as torchvision's does.
        first = torch.round((count - crop) / 2)
        target = first + torch.arange(crop, dtype=torch.float32, device=source.device)
        return resize_matrix(source, length / count, target, self.kernel)


def _levels(image: Tensor) -> Tensor:
    return torch.floor(image + 0.5).clamp(0, 255)


def photo_shape() -> dict[int, Any]:
    """What may vary of a (b, h, w, 3) photo: all but its channels."""
    return {0: Dim("batch", min=1), 1: Dim("height", min=2), 2: Dim("width", min=2)}
