"""Training side by side with timm's parts, put together as its users do: images a second, and what is learned.

    python benchmarks/training.py [--quick] [--epochs 12] [--seeds 3] [--images 500] [--set KEY=VALUE ...]
                                  [--data FOLDER]

20 classes of tiny-imagenet-100 (500 images each), dla46_c at 64 pixels, RandAugment, random erasing, label smoothing,
SGD with Nesterov momentum, a warm-up and a cosine. timm's side is `create_model`, `create_loader`,
`create_optimizer_v2`, `create_scheduler_v2` and its loss, once as they come (float32) and once with its best flags for
the machine: channels last, and autocast to bf16 where the machine computes that fast. On a GPU the first is left out,
and the second runs once more under torch.compile (its default mode), and so does ours (`--set compile=true`). Ours is
`vertebra.engine.train` with its defaults; `--set` changes a setting of ours alone. Every run is a process of its own
with all cores, one after the other, the contestants in turn. Both read with as many worker processes.

Bars: mean accuracy within the seeds' spread of the better of timm's; on a processor 1.8 times the images a second of
timm's stack as it comes, on a GPU 1.2 times those of its best flags. Images a second are those of training alone
(reading included): the median of the epochs but the first. The data come from `../shared/data`, or from the folder that
VERTEBRA_SHARED names.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import SHARED, keep, median

CLASSES, SIZE, BATCH, LR, DECAY, ERASE, SMOOTHING = 20, 64, 64, 0.1, 5e-4, 0.25, 0.1
MODEL, POLICY, SCALE = "dla46_c", "rand-m9-mstd0.5-inc1", (0.25, 1.0)
ON_GPU = torch.cuda.is_available()
WORKERS = min(8, os.cpu_count() or 2)
BAR = 1.2 if ON_GPU else 1.8


def cut(place: Path, train: int = 500, val: int = 50, source: Path = SHARED / "tiny-imagenet-100") -> Path:
    """Class folders `train/` and `val/` of every fifth class, with at most that many images of each."""
    chosen: list[str] = []
    for archive, most in (("train-0.zip", train), ("train-1.zip", train), ("val.zip", val)):
        with zipfile.ZipFile(source / archive) as file:
            names = sorted(name for name in file.namelist() if name.endswith(".JPEG"))
            if not chosen:
                chosen = sorted({name.split("/")[1] for name in names})[:: 100 // CLASSES]
            for label in chosen:
                folder = place / names[0].split("/")[0] / label
                have = len(list(folder.glob("*"))) if folder.is_dir() else 0
                own = [name for name in names if name.split("/")[1] == label]
                file.extractall(place, own[: max(0, most - have)])
    return place


def settings(data: Path, epochs: int, seed: int) -> list[str]:
    """What both do, as settings of ours."""
    return [
        f"data.source={data}",
        f"data.batch_size={BATCH}",
        f"data.image_size={SIZE}",
        f"data.workers={WORKERS}",
        "data.crop_pct=1.0",
        f"model.name={MODEL}",
        f"augment.scale=[{SCALE[0]}, {SCALE[1]}]",
        f"augment.auto_augment={POLICY}",
        "augment.interpolation=bilinear",
        f"augment.re_prob={ERASE}",
        f"loss.smoothing={SMOOTHING}",
        "optim.name=sgd",
        f"optim.lr={LR}",
        f"optim.weight_decay={DECAY}",
        f"schedule.warmup_epochs={1 if epochs > 1 else 0}",
        f"epochs={epochs}",
        f"seed={seed}",
    ]


def ours(data: Path, epochs: int, seed: int, more: list[str]) -> dict[str, Any]:
    """Vertebra's engine; defaults where `settings` says nothing."""
    from vertebra.engine.config import RunConfig
    from vertebra.engine.settings import with_settings
    from vertebra.engine.train import train

    with tempfile.TemporaryDirectory() as out:
        config = with_settings(RunConfig(), [*settings(data, epochs, seed), *more])
        rows = train(config, Path(out) / "run").metrics
    return {"rates": [row["images_per_s"] for row in rows], "top1": rows[-1]["val_top1"]}


def loaders(data: Path) -> tuple[Any, Any]:
    """timm's, for training and for validation."""
    import PIL.ImageOps
    from timm.data import create_dataset, create_loader

    posterize: Callable[..., Any] = PIL.ImageOps.posterize
    # timm sometimes posterises to 0 bits, which Pillow 13 refuses: without this it would stop on its way.
    PIL.ImageOps.posterize = lambda image, bits: posterize(image, max(1, bits))
    common = {"device": torch.device("cuda" if ON_GPU else "cpu"), "num_workers": WORKERS, "pin_memory": ON_GPU}
    train = create_loader(
        create_dataset("", root=str(data), split="train", is_training=True),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        scale=SCALE,
        auto_augment=POLICY,
        re_prob=ERASE,
        re_mode="pixel",
        interpolation="bilinear",
        **common,
    )
    val = create_loader(
        create_dataset("", root=str(data), split="val"),
        (3, SIZE, SIZE),
        BATCH,
        interpolation="bilinear",
        crop_pct=1.0,
        **common,
    )
    return train, val


def theirs(data: Path, epochs: int, seed: int, best: bool, compiled: bool) -> dict[str, Any]:
    """Timm's parts in the loop that its documentation shows."""
    from timm import create_model
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import accuracy, random_seed

    from vertebra.runtime.machine import native_bf16

    device = torch.device("cuda" if ON_GPU else "cpu")
    random_seed(seed)
    model = create_model(MODEL, num_classes=CLASSES).to(device)
    half = best and native_bf16(device)
    layout = torch.channels_last if best else torch.contiguous_format
    model.to(memory_format=layout)
    called: Any = torch.compile(model) if compiled else model
    train, val = loaders(data)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=LR, momentum=0.9, weight_decay=DECAY)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=1 if epochs > 1 else 0,
        warmup_lr=1e-6,
        min_lr=0.0,
        warmup_prefix=False,
        step_on_epochs=False,
        updates_per_epoch=len(train),
    )
    loss_of, rates, updates = LabelSmoothingCrossEntropy(SMOOTHING), list[float](), 0
    for _ in range(epochs):
        model.train()
        start, seen, total = time.monotonic(), 0, 0.0
        for images, labels in train:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = loss_of(called(images.contiguous(memory_format=layout)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            schedule.step_update(num_updates=updates)
            seen += len(labels)
            total += loss.item() * len(labels) if not ON_GPU else 0.0
        if ON_GPU:
            torch.cuda.synchronize()
        rates.append(seen / (time.monotonic() - start))
    model.eval()
    right, count = 0.0, 0
    with torch.inference_mode():
        for images, labels in val:
            right += (
                float(accuracy(model(images.contiguous(memory_format=layout)).float(), labels)[0]) * len(labels) / 100
            )
            count += len(labels)
    return {"rates": rates, "top1": right / count, "loss": total / seen}


CONTESTANTS = (
    ("ours", "timm, best flags", "ours, compiled", "timm, compiled") if ON_GPU else ("ours", "timm", "timm, best flags")
)


def one(name: str, data: Path, epochs: int, seed: int, more: list[str]) -> dict[str, Any]:
    """A run in a process of its own."""
    call = [sys.executable, __file__, "--one", name, "--data", str(data), f"--epochs={epochs}", f"--seeds={seed}"]
    more = [*more, "compile=true"] if name == "ours, compiled" else more
    call += [word for setting in more for word in ("--set", setting)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}, seed {seed}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(data: Path, epochs: int, seeds: int, more: list[str]) -> tuple[list[str], dict[str, Any]]:
    """All runs in turn, a line each; then the verdict."""
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    right: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    lines: list[str] = [f"settings of ours alone: {' '.join(more)}"] if more else []
    for seed in range(seeds):
        for name in CONTESTANTS:
            found = one(name, data, epochs, seed, more)
            rates[name].append(median(found["rates"][1:] or found["rates"]))
            right[name].append(found["top1"])
            lines.append(f"seed {seed}  {name:<17} {rates[name][-1]:7.1f} images/s   top-1 {found['top1']:.2%}")
            print(lines[-1], flush=True)
    speed = {name: median(values) for name, values in rates.items()}
    mean = {name: statistics.fmean(values) for name, values in right.items()}
    spread = {name: statistics.stdev(values) if seeds > 1 else 0.0 for name, values in right.items()}
    lines += [
        f"{name:<17} {speed[name]:7.1f} images/s   top-1 {mean[name]:.2%} +- {spread[name]:.2%} "
        f"({seeds} seeds, {epochs} epochs)   ours is {speed['ours'] / speed[name]:.2f} times as fast"
        for name in CONTESTANTS
    ]
    peer = "timm, best flags" if ON_GPU else "timm"
    ratio = speed["ours"] / speed[peer]
    behind = max(mean[name] for name in CONTESTANTS if name.startswith("timm")) - mean["ours"]
    lines.append(f"ratio to {peer} {ratio:.2f} (bar {BAR}); accuracy behind the better of timm's {behind:+.2%}")
    if ON_GPU:
        compiled = speed["ours, compiled"] / speed["timm, compiled"]
        plain = speed["ours"] / speed["timm, compiled"]
        lines.append(f"ratio to timm, compiled: {plain:.2f} as it comes, {compiled:.2f} compiled, too")
    print("\n".join(lines[-len(CONTESTANTS) - 2 :]), flush=True)
    return lines, {"images_per_s": rates, "top1": right, "ratio": ratio, "behind": behind, "spread": spread}


def _theirs(chosen: argparse.Namespace) -> dict[str, Any]:
    plain, compiled = chosen.one == "timm", chosen.one == "timm, compiled"
    return theirs(chosen.data, chosen.epochs, chosen.seeds, best=not plain, compiled=compiled)


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description="Training, ours and timm's.")
    parser.add_argument("--quick", action="store_true", help="few images, 2 epochs, 1 seed; nothing is kept")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=500, help="of a class, to train on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of ours")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what this command calls itself with
    parser.add_argument("--data", type=Path, help="the 20 classes, cut already: class folders in train/ and val/")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and with it the run that it waits for
    if chosen.one in ("ours", "ours, compiled"):
        print(json.dumps(ours(chosen.data, chosen.epochs, chosen.seeds, chosen.set)))
    elif chosen.one:
        print(json.dumps(_theirs(chosen)))
    else:
        epochs, seeds = (2, 1) if chosen.quick else (chosen.epochs, chosen.seeds)
        with tempfile.TemporaryDirectory() as place:
            data = chosen.data or cut(Path(place), *((32, 5) if chosen.quick else (chosen.images, 50)))
            lines, figures = compare(data, epochs, seeds, chosen.set)
        if not chosen.quick and chosen.images == 500:
            keep("training-gpu" if ON_GPU else "training", lines, figures)


if __name__ == "__main__":
    main()
