"""Batches that depend on seed, epoch and image, and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from vertebra.data import create_train_reader
from vertebra.data.augment.reader import TrainReader
from vertebra.data.datasets import Part, open_dataset
from vertebra.data.loader import Batch, Loader, Order, default_workers, seed_of
from vertebra.spec import VertebraError


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    root = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for label in range(2):
        (root / str(label)).mkdir()
        for i in range(11):
            levels = numbers.integers(0, 255, (30, 34, 3), dtype=np.uint8)
            Image.fromarray(levels).save(root / str(label) / f"{i:02}.png")
    return open_dataset(root).parts["train"]


def batches(part: Part, workers: int, epoch: int = 2, start: int = 0, **order: int) -> list[Batch]:
    read = create_train_reader(24, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4)
    loader = Loader(part, read, Order(images=len(part), batch_size=4, **order), workers=workers)
    found = list(loader.epoch(epoch, start))
    loader.close()
    return found


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) and torch.equal(x.indices, y.indices)
        for x, y in zip(a, b, strict=True)
    )


def test_workers_do_not_change_a_batch(part: Part) -> None:
    whole = batches(part, 0)
    assert len(whole) == 5
    assert whole[0].images.shape == (4, 3, 24, 24)
    assert same(whole, batches(part, 2))


def test_images_lie_pixel_by_pixel(part: Part) -> None:
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches(part, 0))


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: float(torch.rand(()))])
def test_whoever_draws_is_seeded_for_each_image(part: Part, draw: Callable[[], float]) -> None:
    """Also a step that somebody adds to our own reader."""

    class Step:
        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            return torch.full_like(image, int(draw() * 256))

    class Reader(TrainReader):
        def __call__(self, source: Any) -> torch.Tensor:
            return Step()(super().__call__(source))

    readers: list[Any] = [
        lambda _: torch.full((3, 2, 2), draw()),
        Reader((4, 4)),
        TrainReader((4, 4), steps=[Step()]),
        TrainReader((4, 4), steps=[v2.RandomApply([v2.Lambda(Step())], p=1.0)]),
    ]
    for read in readers:
        orders = [Order(images=len(part), batch_size=4)] * 2
        whole, late = (list(Loader(part, read, order).epoch(0, i * 3)) for i, order in enumerate(orders))
        assert same(whole[3:], late)
        assert len({float(image.flatten()[0]) for batch in whole for image in batch.images}) > 10


def test_each_image_is_what_reading_it_alone_gives(part: Part) -> None:
    """Though all are cropped before the first is augmented."""
    read = create_train_reader(24, auto_augment="3a", color_jitter=0.4, grayscale_prob=0.3)
    for batch in Loader(part, read, Order(images=len(part), batch_size=8, seed=5)).epoch(1):
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            torch.manual_seed(seed_of(5, 1, index, 0))
            assert torch.equal(image, read(part.samples[index].read()))


def test_an_epoch_goes_on_from_any_step(part: Part) -> None:
    assert same(batches(part, 0)[3:], batches(part, 2, start=3))


def test_epochs_and_seeds_differ_in_order_and_augmentation(part: Part) -> None:
    whole = batches(part, 0)
    for other in (batches(part, 0, epoch=3), batches(part, 0, seed=1)):
        assert not torch.equal(whole[0].indices, other[0].indices)
        a, b = ({int(i): image for x in found for i, image in zip(x.indices, x.images, strict=True)}
                for found in (whole, other))  # fmt: skip
        assert not any(torch.equal(a[i], b[i]) for i in a.keys() & b.keys())


def test_one_loader_serves_epoch_after_epoch_also_when_one_is_left_early(part: Part) -> None:
    read = create_train_reader(24)
    loader = Loader(part, read, Order(images=len(part), batch_size=4), workers=1)
    next(loader.epoch(0))
    first, second = list(loader.epoch(1)), list(loader.epoch(2))
    loader.close()
    fresh = Loader(part, read, Order(images=len(part), batch_size=4))
    assert same(first, list(fresh.epoch(1)))
    assert same(second, list(fresh.epoch(2)))


def test_reading_leaves_the_runs_own_generators_alone(part: Part) -> None:
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    batches(part, 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_share_the_very_batches_of_one(repeats: int) -> None:
    alone = Order(images=300, batch_size=8, repeats=repeats, seed=5)
    pair = [Order(images=300, batch_size=8, repeats=repeats, seed=5, size=2, rank=rank) for rank in (0, 1)]
    assert {order.steps for order in pair} == {alone.steps}
    for one, *parts in zip(alone.batches(1), *(order.batches(1) for order in pair), strict=True):
        assert sorted(one) == sorted(parts[0] + parts[1])
        assert len(parts[0]) == len(parts[1]) == 4


def test_repetitions_of_an_image_are_augmented_differently(part: Part) -> None:
    order = Order(images=len(part), batch_size=6, repeats=3)
    read = create_train_reader(24)
    first = next(Loader(part, read, order).epoch(0))
    assert first.indices.tolist() == [first.indices[0]] * 3 + [first.indices[3]] * 3
    assert not torch.equal(first.images[0], first.images[1])


def test_evaluation_sees_each_image_once_over_all_processes() -> None:
    orders = [Order(images=11, batch_size=4, shuffle=False, size=3, rank=rank) for rank in range(3)]
    seen = [place.image for order in orders for batch in order.batches(0) for place in batch]
    assert sorted(seen) == list(range(11))
    assert len({len(list(order.batches(0))) for order in orders}) == 1


def test_a_corrupt_image_is_named_and_left_out(part: Part, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    spoiled = open_dataset(_with(tmp_path, part, broken)).parts["train"]
    loader = Loader(spoiled, create_train_reader(24), Order(images=len(spoiled), batch_size=4), workers=1)
    found = list(loader.epoch(0))
    loader.close()
    skipped = [item for batch in found for item in batch.skipped]
    assert len(skipped) == 1
    position, why = skipped[0]
    assert spoiled.samples[position].name.endswith("broken.png")
    assert "broken.png" in why
    assert "not an image" in why
    assert sorted(len(batch.images) for batch in found) == [3, 4, 4]
    assert position not in torch.cat([batch.indices for batch in found]).tolist()


def _with(tmp_path: Path, part: Part, broken: Path) -> Path:
    """A table of some good images and the broken one; 12 in all."""
    rows = [(s.name, label) for s, label in zip(part.samples[5:16], part.labels[5:16], strict=True)] + [(broken, 0)]
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    return table


def test_files_are_read_a_few_ahead_and_large_ones_one_by_one() -> None:
    told = list[str]()

    @dataclass
    class Sample:
        name: str
        size: int

        def read(self) -> bytes:
            told.append(f"file {self.name}")
            if self.size < 0:
                raise VertebraError(f"{self.name}: cannot be read")
            return self.name.encode().ljust(self.size)

    def read(content: bytes) -> torch.Tensor:
        told.append(f"image {content.decode().strip()}")
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    sizes = [9, -1, *[9] * 32, 2**22, 2**21, 2**22, 9]
    part = Part(tuple(cast("Any", Sample(str(i), size)) for i, size in enumerate(sizes)), (0,) * len(sizes))
    loader = Loader(part, read, Order(images=len(sizes), batch_size=len(sizes), shuffle=False))
    (batch,) = loader.epoch(0)
    assert batch.skipped == [(1, "1: cannot be read")]
    assert batch.indices.tolist() == [0, *range(2, len(sizes))]
    groups = [range(32), range(32, 35), range(35, 37), range(37, 38)]
    assert told == [
        line
        for group in groups
        for line in (*[f"file {i}" for i in group], *[f"image {i}" for i in group if sizes[i] > 0])
    ]


def test_a_batch_of_nothing_but_corrupt_images_is_empty(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.png").write_bytes(b"")
    part = open_dataset(tmp_path).parts["train"]
    (batch,) = Loader(part, create_train_reader(24), Order(images=2, batch_size=2)).epoch(0)
    assert (len(batch.images), len(batch.labels), len(batch.skipped)) == (0, 0, 2)


def test_fewer_images_than_a_batch_make_one_smaller_batch() -> None:
    assert [len(batch) for batch in Order(images=5, batch_size=8, size=2).batches(0)] == [2]


@pytest.mark.parametrize("order", [{"images": 0}, {"batch_size": 3, "size": 2}, {"images": 1, "size": 2}])
def test_what_cannot_be_divided_is_refused(order: dict[str, int]) -> None:
    with pytest.raises(VertebraError, match=r"images cannot be divided among [12] processes"):
        Order(**{"images": 8, "batch_size": 4, **order})


def test_workers_by_cores() -> None:
    assert [default_workers(cores) for cores in (1, 2, 4, 64)] == [1, 2, 3, 8]
