"""Checkpoints: whole or not at all, and refused where they belong to another run."""

from __future__ import annotations

import errno
import os
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vertebra.engine import checkpoint
from vertebra.engine.checkpoint import CheckpointError
from vertebra.engine.config import RunConfig
from vertebra.engine.settings import as_dict, with_settings

DATA: dict[str, Any] = {"classes": ["a", "b"], "parts": {"train": {"images": 9, "sha256": "x"}}}


ON_A_FULL_DISK = (
    r"No space left on device \(the disk at /.* has [\d.]+ MB free of [\d.]+ MB\); make room there, "
    r"then go on with --resume auto: .*step-000000001.pt is whole$"
)


def state(value: float = 1.0) -> dict[str, Any]:
    return {"config": as_dict(RunConfig()), "data": DATA, "model": {"weight": torch.full((3,), value)}}


def test_the_newest_is_read_and_two_are_kept(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        checkpoint.save(tmp_path, step, state(step))
    assert [path.name for path in checkpoint.all_in(tmp_path)] == ["step-000000020.pt", "step-000000100.pt"]
    assert checkpoint.load_latest(tmp_path)["model"]["weight"].tolist() == [100.0] * 3
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]


def test_a_damaged_newest_is_named_and_the_one_before_it_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1))
    newest = checkpoint.save(tmp_path, 2, state(2))
    newest.write_bytes(newest.read_bytes()[:500])
    with pytest.warns(UserWarning, match="step-000000002.pt cannot be read"):
        assert checkpoint.load_latest(tmp_path)["step"] == 1


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        checkpoint.load_latest(tmp_path)
    torch.save({"other": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        checkpoint.load(tmp_path / "other.pt")


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = checkpoint.save(tmp_path, 1, state(1))
    content = last.read_bytes()

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=ON_A_FULL_DISK):
        checkpoint.save(tmp_path, 2, state(2))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [last.name]
    assert last.read_bytes() == content


def test_a_write_that_breaks_off_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    last = checkpoint.save(tmp_path, 1, state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*step-000000001.pt is whole"):
            checkpoint.save(tmp_path, 2, {**state(2), "large": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [last.name]
    assert checkpoint.load_latest(tmp_path)["step"] == 1


def test_random_states_come_back(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    random.seed(1)
    np.random.seed(1)
    np.random.randn()  # leaves a second normal number waiting
    torch.manual_seed(1)
    checkpoint.save(tmp_path, 0, {"random": checkpoint.random_state()})
    first = draw()
    draw()
    checkpoint.set_random_state(checkpoint.load_latest(tmp_path)["random"])
    assert draw() == first


@pytest.mark.parametrize(
    ("setting", "message"),
    [("optim.lr=0.5", r"optim.lr: 0.001, now 0.5"), ("seed=3", "seed: 0, now 3"), ("save_every=1", "")],
)
def test_another_config_is_refused_by_name(setting: str, message: str) -> None:
    new = as_dict(with_settings(RunConfig(), [setting]))
    if not message:
        checkpoint.check_same(state(), new, DATA)
        return
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check_same(state(), new, DATA)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"classes": ["a", "c"], "parts": DATA["parts"]}, r"classes: -b, \+c"),
        ({"classes": ["b", "a"], "parts": DATA["parts"]}, "classes: other order"),
        ({**DATA, "parts": {"train": {"images": 8, "sha256": "y"}}}, "split train: 9 images, now 8"),
        ({**DATA, "parts": {"train": {"images": 9, "sha256": "y"}}}, "split train: other names, sizes or labels"),
        ({**DATA, "parts": {**DATA["parts"], "val": {"images": 1, "sha256": ""}}}, "split val: is new"),
    ],
)
def test_other_data_is_refused_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check_same(state(), as_dict(RunConfig()), data)


def test_a_changed_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """A file may keep its length and still not be what was written: its checksums say so."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"model": {"weight": torch.ones(1000)}})
    newest = checkpoint.all_in(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    at = content.index(torch.ones(4).numpy().tobytes())
    content[at + 3] ^= 0x40
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-000000002.pt cannot be read: it was changed or damaged after it was"):
        assert checkpoint.load_latest(tmp_path)["step"] == 1
