"""The training loader with the RandAugment recipe, ours against timm's `create_loader`: images a second of one core.

    taskset -c 1 python benchmarks/loader.py [--quick]

Each in a process of its own with one thread, started as its workers are (ours keep the memory they free): what a worker
of either would do, from class folders of files to normalised float32 batches. Seconds are the processor's, so that
other work on the machine counts less. Bar: 1.8 times timm's rate, on photos (to 224 pixels) and on 64-pixel images (to
64). timm takes the faster of its two ways, with or without its prefetcher. Ours is measured with simplejpeg, which
`vertebra[train]` installs, and without; nothing is cached. Files come from `../shared/data`, or from the folder that
VERTEBRA_SHARED names.
"""

import itertools
import multiprocessing
import sys
import tempfile
import time
import unittest.mock
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.ImageOps
import torch
from common import SHARED, keep, median
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageDataset, create_loader

from vertebra.data import create_train_reader, jpeg
from vertebra.data.augment.batch import RandomErasingBatch
from vertebra.data.datasets import open_dataset
from vertebra.data.loader import Loader, Order
from vertebra.data.memory import keep_freed_memory
from vertebra.data.normalize import NormalizeBatch

CONFIG = "rand-m9-mstd0.5-inc1"
BATCH = 32
BAR = 1.8

_posterize = PIL.ImageOps.posterize
# timm sometimes posterises to 0 bits, which Pillow 13 refuses: without this it would stop on its way.
PIL.ImageOps.posterize = lambda image, bits: _posterize(image, max(1, bits))


def ours(folder: Path, size: int, interpolation: str, decoder: Any) -> Callable[[], Iterator[torch.Tensor]]:
    """Batches as our training loop makes them; `decoder` as `vertebra.data.jpeg` finds it, or a stand-in for it."""
    (part,) = open_dataset(folder).parts.values()
    read = create_train_reader(size, auto_augment=CONFIG, interpolation=interpolation)
    loader = Loader(part, read, Order(images=len(part), batch_size=BATCH))
    finish = torch.nn.Sequential(NormalizeBatch(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), RandomErasingBatch(0.25))
    epochs = itertools.count()

    def batches() -> Iterator[torch.Tensor]:
        with unittest.mock.patch.object(jpeg, "_simplejpeg", decoder):
            for batch in loader.epoch(next(epochs)):
                yield finish(batch.images)

    return batches


def theirs(folder: Path, size: int, interpolation: str, prefetcher: bool) -> Callable[[], Iterator[torch.Tensor]]:
    """Batches as timm's training script makes them."""
    loader = create_loader(
        ImageDataset(str(folder)),
        (3, size, size),
        BATCH,
        is_training=True,
        auto_augment=CONFIG,
        interpolation=interpolation,
        re_prob=0.25,
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=prefetcher,
        device=torch.device("cpu"),
    )
    return lambda: (batch for batch, _ in loader)


def rates(contestants: dict[str, Callable[[], Iterator[torch.Tensor]]], rounds: int) -> dict[str, float]:
    """Images a processor second, the median of passes over the data, the contestants in turn."""
    fork = multiprocessing.get_context("fork")
    ends, processes = dict[str, Any](), list[Any]()
    for name, batches in contestants.items():
        ends[name], theirs = fork.Pipe()
        processes.append(fork.Process(target=passes, args=(batches, name.startswith("ours"), theirs), daemon=True))
        processes[-1].start()
    seen: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, end in ends.items():
            end.send("go")
            rate = end.recv()
            if round_ > 0:
                seen[name].append(rate)
    for process in processes:
        process.terminate()
    return {name: median(values) for name, values in seen.items()}


def passes(batches: Callable[[], Iterator[torch.Tensor]], keeps: bool, end: Any) -> None:
    """In a process of its own: a pass over the data each time it is asked to, and its images a second."""
    if keeps:
        keep_freed_memory(of_any_size=False)
    while end.recv():
        start, count = time.process_time(), 0
        for batch in batches():
            assert batch.dtype == torch.float32
            count += len(batch)
        end.send(count / (time.process_time() - start))


def folders(place: Path, quick: bool) -> dict[str, tuple[Path, int]]:
    """Class folders, which timm's dataset wants, of photos and of 64-pixel images; and the size to train at."""
    for number, path in enumerate(sorted((SHARED / "photos").glob("*.JPEG"))):
        photo = place / "photos" / "ab"[number % 2] / path.name
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.symlink_to(path)
    with zipfile.ZipFile(SHARED / "tiny-imagenet-100" / "val.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".JPEG")]
        archive.extractall(place / "tiny", names[:: 5 if quick else 1])
    return {"photos": (place / "photos", 224), "tiny": (place / "tiny", 64)}


def main() -> None:
    """Run, print, keep."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    found_decoder = jpeg._simplejpeg
    if found_decoder() is None:
        sys.exit("simplejpeg is missing: pip install 'vertebra[train]'")
    lines, ratios = list[str](), dict[str, float]()
    with tempfile.TemporaryDirectory() as place:
        for name, (folder, size) in folders(Path(place), quick).items():
            for interpolation in ("random", "bilinear", "bicubic"):
                found = rates(
                    {
                        "ours": ours(folder, size, interpolation, found_decoder),
                        "ours, Pillow": ours(folder, size, interpolation, lambda: None),
                        "timm": theirs(folder, size, interpolation, prefetcher=False),
                        "timm, prefetcher": theirs(folder, size, interpolation, prefetcher=True),
                    },
                    rounds=3 if quick else 9,
                )
                peer = max(found["timm"], found["timm, prefetcher"])
                pillow = found["ours, Pillow"] / peer
                ratios[f"{name} {interpolation}"] = found["ours"] / peer
                ratios[f"{name} {interpolation}, Pillow"] = pillow
                lines.append(
                    f"{name:<7} to {size:>3} px, {interpolation:<8}  ours {found['ours']:7.1f}/s  timm {peer:7.1f}/s"
                    f"  ratio {found['ours'] / peer:.2f} (bar {BAR}), without simplejpeg {pillow:.2f}"
                )
                print(lines[-1], flush=True)
    keep("loader", lines, {"ratios": ratios})


if __name__ == "__main__":
    main()
