"""A DLA student with the published DeiT-Tiny as its teacher, and the same student without: same budget, same data.

    python benchmarks/distillation.py [--quick] [--epochs 20] [--seeds 3] [--set KEY=VALUE ...] [--teach KEY=VALUE ...]

20 classes of tiny-imagenet-100 (500 images each, as `benchmarks/training.py` cuts them), dla46_c at 64 pixels from
scratch; every run a process of its own, with and without in turn. `--set` changes both, `--teach` the taught one alone
(as `distill.cache=FOLDER`, where a teacher's answers are kept). Bar: the taught student's mean accuracy is above the
other's. Data and weights come from `../shared/data`, or from the folder that VERTEBRA_SHARED names.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHARED, keep
from training import WORKERS, cut

BOTH = (
    f"data.names={SHARED / 'tiny-imagenet-100' / 'classes.csv'}",
    f"data.workers={WORKERS}",
    "data.batch_size=64",
    "data.image_size=64",
    "data.crop_pct=1.0",
    "model.name=dla46_c",
    "augment.scale=[0.5, 1.0]",
    "augment.interpolation=bilinear",
    "loss.smoothing=0.1",
    "optim.name=sgd",
    "optim.lr=0.1",
    "optim.weight_decay=5e-4",
    "schedule.warmup_epochs=1",
)
TAUGHT = (
    "distill.teacher=deit_tiny_patch16_224",
    f"distill.weights={SHARED / 'weights' / 'deit_tiny_patch16_224.safetensors'}",
    "distill.kind=soft",
    "distill.alpha=0.7",
    "distill.temperature=2",
)


def run(settings: list[str]) -> dict[str, Any]:
    """One student: its best accuracy, its last one, and the seconds."""
    from vertebra.engine.config import RunConfig
    from vertebra.engine.settings import with_settings
    from vertebra.engine.train import train

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        rows = train(with_settings(RunConfig(), settings), Path(out) / "run").metrics
    return {"last": rows[-1]["val_top1"], "seconds": time.monotonic() - start}


def one(settings: list[str]) -> dict[str, Any]:
    """A run in a process of its own."""
    call = [sys.executable, __file__, "--one", json.dumps(settings)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(settings)}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description="The same student, taught and not.")
    parser.add_argument("--quick", action="store_true", help="few images, 2 epochs, 1 seed; nothing is kept")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of both")
    parser.add_argument("--teach", action="append", default=[], metavar="KEY=VALUE", help="one of the taught alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what this command calls itself with
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and with it the run that it waits for
    if chosen.one:
        print(json.dumps(run(json.loads(chosen.one))))
        return
    epochs, seeds = (2, 1) if chosen.quick else (chosen.epochs, chosen.seeds)
    added = {"alone": [], "taught": [*TAUGHT, *chosen.teach]}
    right: dict[str, list[float]] = {name: [] for name in added}
    lines = [f"both       {' '.join([*BOTH, *chosen.set])}", f"taught     {' '.join(added['taught'])}"]
    with tempfile.TemporaryDirectory() as place:
        data = cut(Path(place), *((32, 5) if chosen.quick else ()))
        for seed in range(seeds):
            for name, more in added.items():
                found = one([*BOTH, f"data.source={data}", f"epochs={epochs}", f"seed={seed}", *chosen.set, *more])
                right[name].append(found["last"])
                lines.append(f"seed {seed}  {name:<7} top-1 {found['last']:.2%}   {found['seconds']:.0f} s")
                print(lines[-1], flush=True)
    mean = {name: statistics.fmean(values) for name, values in right.items()}
    spread = {name: statistics.stdev(values) if seeds > 1 else 0.0 for name, values in right.items()}
    lines.append(
        f"{epochs} epochs, {seeds} seeds: taught {mean['taught']:.2%} +- {spread['taught']:.2%}, "
        f"alone {mean['alone']:.2%} +- {spread['alone']:.2%}: {100 * (mean['taught'] - mean['alone']):+.2f} points"
    )
    print(lines[-1])
    if not chosen.quick:
        keep("distillation", lines, {"top1": right, "epochs": epochs})


if __name__ == "__main__":
    main()
