"""A run that learns nothing says so, and one that learns does not."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from tests.engine.conftest import EXACT, make_photos, tiny_run
from vertebra.engine.setup import build
from vertebra.engine.state import State
from vertebra.engine.train import train
from vertebra.engine.watch import Watch, before


def warned(photos: Path, out: Path, *settings: str) -> str:
    text = io.StringIO()
    train(tiny_run(photos, *settings), out, console=Console(file=text, width=1000))
    return "\n".join(line for line in text.getvalue().splitlines() if line.startswith("warning"))


def watched_run(photos: Path, out: Path, *settings: str) -> Any:
    run = build(tiny_run(photos, *settings), out)
    run.train.close()
    run.val.close()
    return run


def test_an_epoch_of_one_update_and_few_epochs_are_told_of(photos: Path, tmp_path: Path) -> None:
    one, few = before(watched_run(photos, tmp_path, "data.batch_size=32"))
    assert (
        "an epoch is one update (33 training images, 32 an update), so that 2 epochs change the weights 2 times" in one
    )
    assert "--batch-size 4" in one
    assert "33 training images and 2 epochs are 2 updates; with fewer than 1,000 photos give --epochs 30" in few
    assert before(watched_run(photos, tmp_path, "epochs=30")) == []


def test_a_class_of_one_photo_is_told_of(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    (photos / "rare").mkdir()
    Image.new("RGB", (36, 36)).save(photos / "rare" / "0.png")
    (line,) = before(watched_run(photos, tmp_path / "run", "epochs=30"))
    assert "a single photo to learn from: 'rare'; give such a class more, or leave it out" in line


def test_a_loss_that_grows_is_told_of_once(photos: Path, tmp_path: Path) -> None:
    wild = warned(photos, tmp_path / "wild", *EXACT, "optim.lr=10", "optim.clip_norm=1", "epochs=3")
    assert wild.count("it grows; lower --lr (now ") == 1
    assert "where guessing has 1.1" in wild
    assert "it grows" not in warned(photos, tmp_path / "tame", *EXACT, "optim.lr=0.01", "epochs=3")


@pytest.mark.parametrize("kind", ["cross_entropy", "bce"])
def test_the_loss_of_guessing_is_that_of_equal_answers(kind: str, photos: Path, tmp_path: Path) -> None:
    run = watched_run(photos, tmp_path, f"loss.kind={kind}", "loss.smoothing=0")
    assert Watch(run).guessing == pytest.approx(math.log(3) if kind == "cross_entropy" else math.log(2), rel=1e-5)


def test_what_is_no_better_than_the_most_frequent_class_is_told_of(photos: Path, tmp_path: Path) -> None:
    guard = Watch(watched_run(photos, tmp_path / "x", "epochs=3"))
    poor = [{"val_top1": 1 / 3, "train_loss": 1.1}] * 3
    (line,) = guard.epoch(State(metrics=poor, updates=12))
    assert "after 3 epochs the best top-1 is 33.3%, and naming the most frequent class alone gives 33.3%" in line
    assert "the training loss hardly falls: try --lr 0.0001 or 0.01, start from a checkpoint (--pretrained)" in line
    assert "see whether the labels are right" in guard.epoch(State(metrics=[{**poor[0], "train_loss": 0.2}] * 3))[0]
    assert guard.epoch(State(metrics=[*poor[:2], {"val_top1": 1.0, "train_loss": 0.2}])) == []
    assert guard.epoch(State(metrics=poor[:2])) == []


def test_an_average_that_stays_where_it_began_is_named(photos: Path, tmp_path: Path) -> None:
    run = watched_run(photos, tmp_path, "epochs=3", "ema.decay=0.9999", "ema.warmup=false")
    poor = [{"val_top1": 1 / 3, "train_loss": 0.5}] * 3
    (line,) = Watch(run).epoch(State(metrics=poor, updates=12))
    assert "ema.decay=0.9999" in line
