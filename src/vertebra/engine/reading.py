"""Photos read ahead by threads, while the model answers for the ones before.

c channels, h w height and width in pixels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vertebra.data.decode import DEFAULT_MAX_PIXELS, decode, decode_reduced
from vertebra.data.eval_reader import OVERSIZE, Source
from vertebra.runtime.machine import cores
from vertebra.spec import VertebraError

AHEAD = 2
"""Batches that are read, or being read, before anybody asked for them."""
Transform = Callable[[Image.Image], Tensor]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Levels:
    """(c, h, w) uint8 of what `geometry` makes. Worker processes get it by pickle, which takes no local function."""

    geometry: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> Tensor:
        # Not by torch, which would start a pool of threads in each reading thread.
        return torch.from_numpy(np.array(self.geometry(image))).permute(2, 0, 1)


@dataclass(frozen=True, slots=True)
class Steps:
    """A transform in two parts: what is done to one photo, and what is cheaper for a whole batch."""

    one: Callable[[Image.Image], Tensor]
    """RGB image -> (c, h, w), uint8 where `batch` follows."""
    batch: Callable[[Tensor], Tensor] | None
    """(b, c, h, w) uint8 -> the model's input, with the same numbers as photo by photo."""
    at_least: int | None
    """The shorter side, in pixels, that `one` needs to see; None: all pixels."""
    max_pixels: int | None

    def __call__(self, source: Source) -> Tensor:
        """One photo, up to `batch`. Raises `DecodeError`."""
        if isinstance(source, Image.Image):
            return self.one(source)
        if self.at_least is None:
            return self.one(decode(source, max_pixels=self.max_pixels))
        # `one` begins with a `Resize`, which takes such an image, too.
        reduced = decode_reduced(source, max_pixels=self.max_pixels, at_least=self.at_least)
        return self.one(cast("Image.Image", reduced))


def split(transform: Transform, *, exact: bool, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Steps:
    """Only our own evaluation transform is known well enough to be split; any other runs whole, on full-size images."""
    from torchvision.transforms import v2

    from vertebra.data import transforms as ours

    if not isinstance(transform, v2.Compose):
        return Steps(transform, None, None, max_pixels)
    steps = cast("list[nn.Module]", transform.transforms)
    kinds = [type(step) for step in steps]
    first = steps[0] if steps else None
    side = None
    if isinstance(first, ours.Resize) and first.fit != "contain" and not exact:
        side = OVERSIZE * (first.size if isinstance(first.size, int) else max(first.size))
    if kinds[-2:] != [ours.ToTensor, ours.Normalize] or len(steps) < 3:
        return Steps(transform, None, side, max_pixels)
    return Steps(Levels(v2.Compose(steps[:-2])), v2.Compose(steps[-2:]), side, max_pixels)


def default_workers() -> int:
    """One a core, as far as decoding gains from more."""
    return min(8, cores())


def batches(
    sources: Iterable[Item], read: Callable[[Item], Tensor], *, size: int, workers: int
) -> Iterator[list[tuple[Item, Tensor | VertebraError]]]:
    """`size` sources at a time, in order, each with what `read` made of it or the error that it raised.

    Whatever else `read` raises ends it. No more than `AHEAD` batches are held beside the one handed out.
    """
    waiting, ahead = iter(sources), deque[list[tuple[Item, Future[Tensor]]]]()
    pool = ThreadPoolExecutor(workers, "vertebra-read")

    def more() -> None:
        while len(ahead) < AHEAD and (chunk := list(islice(waiting, size))):
            ahead.append([(source, pool.submit(read, source)) for source in chunk])

    try:
        more()
        while ahead:
            ready = [(source, _result(future)) for source, future in ahead.popleft()]
            more()
            yield ready
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[Tensor]) -> Tensor | VertebraError:
    try:
        return future.result()
    except VertebraError as error:
        return error
