"""Batches from worker processes, such that a run can stop anywhere and go on with the same numbers.

What an epoch's step k holds, and how each of its images is augmented, are pure functions of (seed, epoch, image): they
depend neither on the number of workers nor on what was read before.

b batch, c channels, h w height and width in pixels.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from vertebra.data.augment.reader import TrainReader
from vertebra.data.augment.sampler import RepeatedAugmentSampler
from vertebra.data.datasets import Part
from vertebra.data.memory import keep_freed_memory
from vertebra.spec.errors import VertebraError

_KILLED = 5.0
"""Seconds that a killed worker gets: one in a read of a drive that is gone dies only once that ends."""
_TOGETHER, _HELD = 32, 2**22
"""Images, and bytes of their files, that go through reading, cropping and augmenting together."""

_Given = TypeVar("_Given")

Read = Callable[[bytes], Tensor]
"""An encoded image -> uint8 (c, h, w). Random numbers come from torch's, Python's or numpy's default generators."""


class Place(NamedTuple):
    """An image in an epoch."""

    epoch: int
    image: int
    repeat: int
    """Which of its repetitions, with repeated augmentation."""


class Batch(NamedTuple):
    """Images that could be read, and those that could not."""

    images: Tensor
    """uint8 (b, c, h, w); (0,) where none could be read."""
    labels: Tensor
    """(b,) class indices, or rows (b, k) of 0 and 1 where an image may have any number of classes."""
    indices: Tensor
    """(b,): positions in the split."""
    skipped: list[tuple[int, str]]
    """(position in the split, why) of the images that could not be read."""


class StuckReadError(BaseException):
    """Somebody wants the run to end, and a batch does not come. As Ctrl-C, it is no fault of the image being read."""


class _Wait:
    """Of the main thread, for a batch."""

    since: float | None = None


def waited() -> float:
    """Seconds for which the main thread has been waiting for a batch; 0: it is not."""
    return 0.0 if _Wait.since is None else time.monotonic() - _Wait.since


def seed_of(*parts: int) -> int:
    """A 32-bit seed from several numbers, each of which changes it thoroughly."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Which images a process sees in which step of an epoch: a pure function of `seed` and epoch."""

    images: int
    batch_size: int
    """Images a step, all processes together."""
    seed: int = 0
    repeats: int = 1
    """Copies of each image in a row (repeated augmentation); an epoch stays as long as without."""
    shuffle: bool = True
    """False: in order, and the last, smaller batch too."""
    size: int = 1
    """Processes."""
    rank: int = 0

    def __post_init__(self) -> None:
        uneven = self.batch_size % self.size != 0 or self.images < self.size
        if self.images < 1 or self.batch_size < 1 or (uneven and self.shuffle):
            raise VertebraError(
                f"a batch of {self.batch_size} of {self.images} images cannot be divided among {self.size} processes: "
                "give a batch size that is a multiple of the processes, and more images than processes"
            )

    @property
    def steps(self) -> int:
        """Batches an epoch. In training an incomplete last one is left out (other images every epoch)."""
        if not self.shuffle:
            return -(-self.images // self.batch_size)
        return max(1, len(self._repeated()) // self.batch_size)

    @property
    def share(self) -> int:
        """Images a step of one process in training; fewer than a batch are one."""
        return min(self.batch_size, self.images) // self.size

    def _repeated(self) -> RepeatedAugmentSampler | range:
        if self.repeats == 1:
            return range(self.images)
        return RepeatedAugmentSampler(self.images, self.repeats, seed=seed_of(self.seed))

    def places(self, epoch: int) -> list[Place]:
        """The whole epoch, all processes."""
        if not self.shuffle:
            return [Place(epoch, index, 0) for index in range(self.images)]
        if self.repeats == 1:
            generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
            drawn = cast("list[int]", torch.randperm(self.images, generator=generator).tolist())
        else:
            sampler = RepeatedAugmentSampler(self.images, self.repeats, seed=seed_of(self.seed))
            sampler.set_epoch(epoch)
            drawn = list(sampler)
        seen = Counter[int]()
        places: list[Place] = []
        for index in drawn:
            places.append(Place(epoch, index, seen[index]))
            seen[index] += 1
        return places

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[Place]]:
        """The steps from `start` on, as far as they are for this process."""
        places = self.places(epoch)
        for step in range(start, self.steps):
            whole = places[step * self.batch_size : (step + 1) * self.batch_size]
            if self.shuffle:  # every process gets as many: fewer images than a batch lose a remainder
                whole = whole[: len(whole) // self.size * self.size]
            yield whole[self.rank :: self.size]


class Item(NamedTuple):
    """An image of a split, read."""

    position: int
    """In the split."""
    target: int | Tensor
    """Class index, or row (k,) of 0 and 1."""
    image: Tensor | str
    """Or why there is none."""


class _Images:
    """What the workers hold."""

    def __init__(self, part: Part, read: Read, seed: int) -> None:
        self.part, self.seed = part, seed
        self.torch_alone = isinstance(read, TrainReader) and read.draws_from_torch
        self.begin: Read = read
        self.end: Callable[[Tensor], Tensor] | None = None
        if isinstance(read, TrainReader) and self.torch_alone:
            self.begin, self.end = read.crop, read.augment

    def __len__(self) -> int:
        return len(self.part)

    def __getitems__(self, places: list[Place]) -> list[Item]:
        """A batch's images; this is what a DataLoader asks for."""
        return [item for group in self._groups(places) for item in self._items(group)]

    def _groups(self, places: list[Place]) -> Iterator[list[tuple[Place, bytes | VertebraError]]]:
        """Some small files, or a large one: see `_items`."""
        group, held = list[tuple[Place, bytes | VertebraError]](), 0
        for place in places:
            content = self._content(place)
            group.append((place, content))
            held += len(content) if isinstance(content, bytes) else 0
            if len(group) == _TOGETHER or held > _HELD:
                yield group
                group, held = [], 0
        yield group

    def _content(self, place: Place) -> bytes | VertebraError:
        """The encoded image, or why there is none."""
        try:
            return self.part.samples[place.image].read()
        except VertebraError as error:
            return error

    def _items(self, group: list[tuple[Place, bytes | VertebraError]]) -> list[Item]:
        """Each stage for all of them before the next one: where the processor comes back to the same code at once, an
        image of 64 pixels takes a seventh less. The generator's state goes with the image.
        """
        begun = [(self._begun(place, content), torch.default_generator.get_state()) for place, content in group]
        return [self._ended(place, *so_far) for (place, _), so_far in zip(group, begun, strict=True)]

    def _begun(self, place: Place, content: bytes | VertebraError) -> Tensor | VertebraError:
        seed = seed_of(self.seed, place.epoch, place.image, place.repeat)
        torch.default_generator.manual_seed(seed)
        if not self.torch_alone:  # for a small image, these two take a twentieth of the time
            random.seed(seed)
            np.random.seed(seed)
        return _done(self.begin, content)

    def _ended(self, place: Place, begun: Tensor | VertebraError, state: Tensor) -> Item:
        if self.end is not None:
            torch.default_generator.set_state(state)
            begun = _done(self.end, begun)
        image = self._named(place, begun) if isinstance(begun, VertebraError) else begun
        return Item(place.image, target(self.part, place.image), image)

    def _named(self, place: Place, error: VertebraError) -> str:
        return str(error).replace("<bytes>", self.part.samples[place.image].name, 1)


def _done(stage: Callable[[_Given], Tensor], given: _Given | VertebraError) -> Tensor | VertebraError:
    """An image that an earlier stage could not read stays so."""
    try:
        return given if isinstance(given, VertebraError) else stage(given)
    except VertebraError as error:
        return error


def target(part: Part, position: int) -> int | Tensor:
    """An image's class index, or its row (k,) of 0 and 1."""
    if part.classes is None:
        return cast("int", part.labels[position])
    row = torch.zeros(part.classes)
    row[list(part.classes_of(position))] = 1
    return row


def stack(images: list[Tensor]) -> Tensor:
    """(b, c, h, w). Images that lie pixel by pixel, as they are read, become a channels-last batch by plain copies."""
    if images[0].ndim == 3 and images[0].permute(1, 2, 0).is_contiguous():
        return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return default_collate(images)


def _collate(items: list[Item]) -> Batch:
    good = [item for item in items if isinstance(item.image, Tensor)]
    skipped = [(item.position, item.image) for item in items if isinstance(item.image, str)]
    read = [item.image for item in good if isinstance(item.image, Tensor)]
    images = stack(read) if read else torch.empty(0, dtype=torch.uint8)
    rows = [item.target for item in good if isinstance(item.target, Tensor)]
    labels = torch.stack(rows) if rows else torch.tensor([item.target for item in good], dtype=torch.long)
    return Batch(images, labels, torch.tensor([item.position for item in good], dtype=torch.long), skipped)


def _start_worker(_worker: int) -> None:
    """What a worker process does first: it keeps the memory it frees, and is deaf.

    Ctrl-C, and a SIGTERM to all of a run's processes, are for the main one, which still needs the workers to come
    to a good end, and then ends them. A worker that hangs gets a second SIGTERM from it as it exits.
    """
    keep_freed_memory(of_any_size=False)
    told: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        if told:
            os._exit(0)
        told.append(number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


class _Sampler:
    """What the DataLoader iterates: set to an epoch and a step before each pass."""

    def __init__(self, order: Order) -> None:
        self.order, self.epoch, self.start = order, 0, 0

    def __iter__(self) -> Iterator[list[Place]]:
        return self.order.batches(self.epoch, self.start)

    def __len__(self) -> int:
        return self.order.steps - self.start


class Loader:
    """Batches of a split, epoch by epoch, from any step on. Workers live until `close`."""

    def __init__(self, part: Part, read: Read, order: Order, *, workers: int = 0, pin: bool = False) -> None:
        self.order = order
        self.part = part
        self._sampler = _Sampler(order)
        self._images = _Images(part, read, order.seed)
        self._loader = DataLoader(
            cast("torch.utils.data.Dataset[object]", self._images),
            batch_sampler=cast("torch.utils.data.Sampler[list[int]]", self._sampler),
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_start_worker if workers else None,
            generator=torch.Generator(),  # its own: starting workers must not draw from the run's
        )

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The steps of an epoch from `start` on. Leaves the default generators as it finds them."""
        self._sampler.epoch, self._sampler.start = number, start
        batches = iter(self._loader)
        while True:
            with _undrawn(), _waiting():  # without workers, reading draws
                batch = cast("Batch | None", next(batches, None))
            if batch is None:
                return
            yield batch

    def peek(self, count: int) -> Batch:
        """The first images of the first epoch, all processes together, read here and now. Workers do not notice."""
        with _undrawn():
            return _collate(self._images.__getitems__(self.order.places(0)[:count]))

    def close(self) -> None:
        """End the workers, those that hang in a read, too."""
        iterator: Any = self._loader._iterator  # pyright: ignore[reportPrivateUsage] - no public way
        self._loader._iterator = None  # pyright: ignore[reportPrivateUsage]
        workers = getattr(iterator, "_workers", [])
        if workers:
            iterator._shutdown_workers()
        for worker in workers:
            if worker.is_alive():
                worker.kill()
                worker.join(_KILLED)


@contextmanager
def _waiting() -> Generator[None]:
    """`waited` counts within."""
    if threading.current_thread() is threading.main_thread():
        _Wait.since = time.monotonic()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _Wait.since = None


@contextmanager
def _undrawn() -> Generator[None]:
    """The default generators are afterwards as they were before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def default_workers(cores: int) -> int:
    """Processes that read: all cores but one up to 8; on one or two cores, as many as cores."""
    return cores if cores <= 2 else min(8, cores - 1)
