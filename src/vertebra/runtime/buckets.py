"""Batches for programs that are compiled for fixed sizes: powers of two, so that any batch needs few of them."""

from collections.abc import Callable

import torch
from torch import Tensor

WASTE = 0.25
"""Greatest share of computed images that may be filling; beyond it a batch is cut in two."""


def parts(count: int, largest: int) -> list[tuple[int, int]]:
    """(images taken, size of the bucket they run in), largest first: 7 -> (7, 8); 5 -> (4, 4), (1, 1)."""
    cut = list[tuple[int, int]]()
    while count:
        bucket = min(largest, 1 << (count - 1).bit_length())
        if count < bucket and (bucket - count) / bucket > WASTE:
            bucket //= 2
        cut.append((min(count, bucket), bucket))
        count -= min(count, bucket)
    return cut


def run(call: Callable[[Tensor], Tensor], x: Tensor, largest: int) -> Tensor:
    """`call` on (b, ...) in buckets; filling repeats the last image, and its answers are dropped."""
    answers, start = list[Tensor](), 0
    for taken, bucket in parts(len(x), largest):
        part = x[start : start + taken]
        if taken < bucket:
            part = torch.cat((part, part[-1:].expand(bucket - taken, *part.shape[1:])))
        answers.append(call(part)[:taken])
        start += taken
    return answers[0] if len(answers) == 1 else torch.cat(answers)
