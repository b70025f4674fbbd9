"""Tiny data and a tiny run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vertebra.engine.config import RunConfig
from vertebra.engine.settings import with_settings


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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))
