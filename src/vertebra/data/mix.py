"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) on whole batches, where the batch lies.

Image i is mixed with its mirror in the batch, i.e. image b - 1 - i. b batch, c channels, h w pixels, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vertebra.data.draws import dirichlet, uniforms
from vertebra.spec.errors import VertebraError, unknown_name

Mode = Literal["batch", "pair", "elem"]
Box = tuple[int, int, int, int]
_MODES = ("batch", "pair", "elem")


def soft_targets(target: Int[Tensor, "b"], num_classes: int, smoothing: float = 0.0) -> Float[Tensor, "b k"]:
    """One-hot rows in which `smoothing` of the weight is spread evenly over all k classes."""
    rows = torch.full((len(target), num_classes), smoothing / num_classes, device=target.device)
    return rows.scatter_(1, target.long().view(-1, 1), 1 - smoothing + smoothing / num_classes)


@dataclass(frozen=True, slots=True)
class Draw:
    """What is to happen to one image: the share it keeps, and the box (top, bottom, left, right) that it gives away."""

    share: float = 1.0
    box: Box | None = None


class Mixup:
    """A batch and its class numbers (b,), or rows of targets (b, k), to the mixed batch and its rows of targets.

    `mixup_alpha`, `cutmix_alpha`: the Beta distribution's parameter, 0 for never; with both, each draw is CutMix with
    probability `switch_prob`. `prob`: that anything happens. `mode`: "batch" draws once, "pair" for each pair of
    mirror images, "elem" for each image. `cutmix_minmax`: least and greatest side of the box as a share of the
    image's, in place of `cutmix_alpha`. Images are changed in place. Numbers are drawn on the processor, from
    `generator` or torch's default, so that every device mixes alike.
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: tuple[float, float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: Mode = "batch",
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if mode not in _MODES:
            raise unknown_name("mixup mode", mode, _MODES)
        if mixup_alpha < 0 or cutmix_alpha < 0 or not (mixup_alpha or cutmix_alpha or cutmix_minmax):
            raise VertebraError(
                f"mixup_alpha={mixup_alpha}, cutmix_alpha={cutmix_alpha}: one must be above 0; or leave mixing out"
            )
        for name, value in (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing)):
            if not 0 <= value <= 1:
                raise VertebraError(f"{name}={value}: give a share from 0 to 1")
        if cutmix_minmax is not None and not 0 <= cutmix_minmax[0] <= cutmix_minmax[1] <= 1:
            raise VertebraError(f"cutmix_minmax={cutmix_minmax}: give (least, greatest) share of a side, within 0..1")
        if num_classes < 1:
            raise VertebraError(f"num_classes={num_classes}: give the number of classes, at least 1")
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = 1.0 if cutmix_minmax is not None else cutmix_alpha
        self.cutmix_minmax = cutmix_minmax
        self.prob = prob
        self.switch_prob = switch_prob
        self.mode: Mode = mode
        self.label_smoothing = label_smoothing
        self.num_classes = num_classes
        self.generator = generator

    def __call__(
        self, images: Float[Tensor, "b c h w"], target: Tensor
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        height, width = images.shape[-2:]
        rows = target if target.ndim == 2 else soft_targets(target, self.num_classes, self.label_smoothing)
        if self.mode == "batch":
            draw = self._draw(height, width)
            return _mix_all(images, draw), rows * draw.share + rows.flip(0) * (1 - draw.share)
        draws = self._draws(len(images), height, width)
        shares = torch.tensor([draw.share for draw in draws], dtype=rows.dtype).to(rows.device)[:, None]
        return _mix_each(images, draws), rows * shares + rows.flip(0) * (1 - shares)

    def _draws(self, count: int, height: int, width: int) -> list[Draw]:
        if self.mode == "elem":
            return [self._draw(height, width) for _ in range(count)]
        half = [self._draw(height, width) for _ in range(count // 2)]
        middle = [Draw()] if count % 2 else []  # its own mirror
        return [*half, *middle, *reversed(half)]

    def _draw(self, height: int, width: int) -> Draw:
        happens, switch, top, left, tall, wide = uniforms(6, self.generator)
        if happens >= self.prob:
            return Draw()
        if not self.cutmix_alpha or (self.mixup_alpha and switch >= self.switch_prob):
            return Draw(float(dirichlet(self.mixup_alpha, 2, self.generator)[0]))
        share = float(dirichlet(self.cutmix_alpha, 2, self.generator)[0])
        if self.cutmix_minmax is None:
            box = _box_around(share, height, width, top, left)
        else:
            box = _box_within(self.cutmix_minmax, height, width, (top, left, tall, wide))
        return Draw(1 - (box[1] - box[0]) * (box[3] - box[2]) / (height * width), box)


def _box_around(share: float, height: int, width: int, top: float, left: float) -> Box:
    """A box of (1 - share) of the area around a random point, cut off at the borders."""
    side = (1 - share) ** 0.5
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    y, x = int(top * height), int(left * width)
    return max(0, y - half_h), min(height, y + half_h), max(0, x - half_w), min(width, x + half_w)


def _box_within(limits: tuple[float, float], height: int, width: int, draws: tuple[float, float, float, float]) -> Box:
    top, left, tall, wide = draws
    low, high = limits
    h = int(height * low + tall * (height * high - height * low))
    w = int(width * low + wide * (width * high - width * low))
    y, x = int(top * (height - h + 1)), int(left * (width - w + 1))
    return y, y + h, x, x + w


def _mix_all(images: Float[Tensor, "b c h w"], draw: Draw) -> Float[Tensor, "b c h w"]:
    if draw.box is not None:
        t, b, le, r = draw.box
        images[:, :, t:b, le:r] = images[:, :, t:b, le:r].flip(0)
        return images
    return images if draw.share == 1 else images.lerp_(images.flip(0), 1 - draw.share)


def _mix_each(images: Float[Tensor, "b c h w"], draws: list[Draw]) -> Float[Tensor, "b c h w"]:
    if all(draw.share == 1 for draw in draws):
        return images
    mirror = images.flip(0)
    weights = [1 - draw.share if draw.box is None else 0.0 for draw in draws]
    images.lerp_(mirror, torch.tensor(weights, dtype=images.dtype).to(images.device).view(-1, 1, 1, 1))
    for image, other, draw in zip(images, mirror, draws, strict=True):
        if draw.box is not None:
            t, b, le, r = draw.box
            image[:, t:b, le:r] = other[:, t:b, le:r]
    return images
