"""Repeated augmentation: each image several times in an epoch, differently augmented (arXiv:1901.09335)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from vertebra.spec.errors import VertebraError


class RepeatedAugmentSampler(Sampler[int]):
    """Each image `repeats` times in a row, the copies on different processes; an epoch stays as long as the data is.

    `length`: images; `size` and `rank`: processes, and which one this is. The order is a pure function of `seed` and of
    `epoch`, which the caller sets. As in DeiT, an epoch is cut to whole rounds of 256 images where it has that many.
    """

    def __init__(self, length: int, repeats: int = 3, *, size: int = 1, rank: int = 0, seed: int = 0) -> None:
        if length < 1 or repeats < 1 or not 0 <= rank < size:
            raise VertebraError(
                f"length={length}, repeats={repeats}, size={size}, rank={rank}: give a length and repeats of at least "
                "1, and a rank below size"
            )
        self.length = length
        self.repeats = repeats
        self.size = size
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.chosen = length // 256 * 256 // size if length >= 256 else math.ceil(length / size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.chosen

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.length, generator=generator)
        repeated = order.repeat_interleave(self.repeats)
        rounds = math.ceil(len(repeated) / self.size) * self.size - len(repeated)  # whole rounds of all processes
        repeated = torch.cat([repeated, repeated[:rounds]])
        if len(repeated) < self.chosen * self.size:  # of few images on many processes, the first come again
            repeated = repeated.repeat(math.ceil(self.chosen * self.size / len(repeated)))
        yield from repeated[self.rank :: self.size][: self.chosen].tolist()
