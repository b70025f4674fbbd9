"""A disk that is full, at each file that a run writes. (On a real small disk: `benchmarks/endurance.py`.)"""

from __future__ import annotations

import csv
import resource
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tests.engine.conftest import tiny_run
from vertebra.engine import checkpoint, outdir
from vertebra.engine.checkpoint import CheckpointError
from vertebra.engine.train import train

SETTINGS = ("trackers=[tensorboard]", "ema.decay=null")


@contextmanager
def no_room() -> Generator[None]:
    """No file of this process can grow: write() fails as on a full disk, for whichever library calls it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def without_room(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, *, of: str = "", call: int = 1) -> None:
    """Let there be no room in that call of a function (that has a path whose name holds `of`)."""
    original, calls = getattr(owner, name), list[int]()

    def wrapped(*args: Any, **more: Any) -> Any:
        if of and of not in args[0].name:
            return original(*args, **more)
        calls.append(1)
        if len(calls) != call:
            return original(*args, **more)
        with no_room():
            return original(*args, **more)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with room for everything."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_run(photos, *SETTINGS), out)
    return out


Break = Callable[[pytest.MonkeyPatch], None]


def at(owner: Any, name: str, of: str = "", call: int = 1) -> Break:
    return lambda monkeypatch: without_room(owner, name, monkeypatch, of=of, call=call)


@pytest.mark.parametrize(
    ("break_", "named", "last"),
    [
        (at(outdir, "write_whole", "split.csv"), "split.csv", None),
        (at(checkpoint, "write_whole", "step-", 2), "checkpoints/step-000000004.pt", 0),
        (at(outdir, "write_whole", "metrics.csv", 2), "metrics.csv", 4),
        (at(outdir, "save_model"), "model.safetensors", 0),
        (at(outdir, "write_whole", "validation.json"), "validation.json", 0),
        (at(Accelerator, "init_trackers"), "vertebra", 0),
        (at(Accelerator, "log", call=2), "vertebra", 4),
    ],
    ids=["split", "checkpoint", "metrics", "model", "validation", "tracker's start", "tracker"],
)
def test_without_room_for_a_file_the_run_ends_with_a_line_and_goes_on_later(
    break_: Break, named: str, last: int | None, finished: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        break_(monkeypatch)
        with pytest.raises(CheckpointError) as caught:
            train(tiny_run(photos, *SETTINGS), out)
    said = str(caught.value)
    assert f"cannot write {out / named}" in said
    assert "File too large; allow larger files (ulimit -f), then " in said
    assert "--resume auto" in said
    assert "\n" not in said
    assert not [*out.glob(".*"), *(out / "checkpoints").glob(".*")]
    if last is None:
        assert not checkpoint.all_in(out)
    else:
        assert checkpoint.load_latest(out)["step"] == last
        assert f"step-{last:09d}.pt is whole" in said
    train(tiny_run(photos, *SETTINGS), out, resume=True)
    same(out, finished)


def same(out: Path, finished: Path) -> None:
    a, b = (load_file(folder / "model.safetensors") for folder in (out, finished))
    assert all(torch.equal(a[key], b[key]) for key in a | b)
    a, b = (checkpoint.load_latest(folder)["model"] for folder in (out, finished))
    assert all(torch.equal(a[key], b[key]) for key in a | b)
    tables = [list(csv.DictReader((folder / "metrics.csv").read_text().splitlines())) for folder in (out, finished)]
    for row in (*tables[0], *tables[1]):
        row.pop("images_per_s")
    assert tables[0] == tables[1]
