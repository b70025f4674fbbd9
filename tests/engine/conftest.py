"""Tiny data, a tiny run, and how tests start one as a process and compare what it left."""

from __future__ import annotations

import csv
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vertebra
from vertebra.engine import checkpoint
from vertebra.engine.config import RunConfig
from vertebra.engine.settings import as_yaml, with_settings
from vertebra.engine.train import train
from vertebra.models.backbone import Backbone

SIZE = 32
"""Pixels a side of what `small` makes."""
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
from vertebra.engine.config import DataConfig, ModelChoice, RunConfig
from vertebra.engine.settings import with_file
from vertebra.engine.train import InterruptedRunError, train
try:
    train(with_file(RunConfig(), Path(sys.argv[1])), Path(sys.argv[2]), resume=True)
except InterruptedRunError as error:
    sys.exit(f"interrupted: {error}")
"""


def make_photos(root: Path, *, classes: int = 3, each: int = 12, size: int = 36) -> Path:
    """Noise whose strongest colour channel is its class."""
    numbers = np.random.default_rng(7)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(each):
            levels = numbers.integers(0, 120, (size, size, 3))
            levels[..., label % 3] += 100
            Image.fromarray(levels.astype(np.uint8)).save(folder / f"{i:02}.png")
    return root


def tiny_run(photos: Path, *settings: str) -> RunConfig:
    """Everything random switched on, on a model that trains in seconds."""
    return with_settings(
        RunConfig(),
        [
            f"data.source={photos}",
            "data.batch_size=8",
            "data.image_size=32",
            "data.workers=0",
            "model.name=deit_tiny_patch16_224",
            "model.options={depth: 1, embed_dim: 48}",
            "model.drop_path_rate=0.1",
            "model.drop_rate=0.1",
            "augment.auto_augment=rand-m9-mstd0.5-inc1",
            "augment.mixup=0.4",
            "augment.cutmix=1.0",
            "augment.re_prob=0.3",
            "loss.smoothing=0.1",
            "ema.decay=0.9",
            "schedule.warmup_epochs=0.5",
            "device=cpu",
            "epochs=2",
            "trackers=[]",
            *settings,
        ],
    )


UNDRAWN = (
    "precision=fp32",
    "augment.mixup=0",
    "augment.cutmix=0",
    "augment.re_prob=0",
    "model.drop_rate=0",
    "model.drop_path_rate=0",
)
"""Nothing drawn by batch."""
EXACT = (
    *UNDRAWN,
    "optim.name=sgd",
    "optim.lr=1",
    "ema.decay=null",
    "schedule.warmup_epochs=0",
    "epochs=1",
)
"""Nothing drawn by batch, and weights that move as their gradients do."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))


def command(config: RunConfig, out: Path, *, launcher: tuple[str, ...] = ()) -> list[str]:
    out.parent.mkdir(exist_ok=True)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(as_yaml(config))
    script = out.parent / "run.py"
    script.write_text(SCRIPT)
    return [sys.executable, *launcher, str(script), str(file), str(out)]


def environment(**more: str) -> dict[str, str]:
    """As many threads as here: sums, hence weights, depend on it."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(torch.get_num_threads()), **more}


def wait_for(ready: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def tensors(path: Path) -> dict[str, Any]:
    state = checkpoint.load(path)
    return {key: state[key] for key in ("model", "ema", "optimizer")}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that nothing befell."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_run(photos), out)
    return out


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def launcher() -> tuple[str, ...]:
    """What makes a script run as two processes."""
    return ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")


def on_two(config: RunConfig, out: Path) -> None:
    call = command(config, out, launcher=launcher())
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """A small real model with random weights; 7 classes, nobody said what they are called."""
    torch.manual_seed(1)
    model = vertebra.create_model("dla46_c", num_classes=7)
    model.load_state_dict(model.state_dict())  # somebody's, so that no warning is due
    return model


def jpeg(colour: str, size: tuple[int, int] = (80, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def small(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image.resize((SIZE, SIZE)))).permute(2, 0, 1) / 255
