"""Runs that survive: killed, interrupted, spoiled by a bad image or a bad number."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.conftest import (
    command,
    environment,
    equal,
    make_photos,
    table,
    tensors,
    tiny_run,
    wait_for,
)
from vertebra.data.loader import waited
from vertebra.data.members import Member
from vertebra.engine import checkpoint, losses, outdir, together
from vertebra.engine import state as state_module
from vertebra.engine import train as module
from vertebra.engine.checkpoint import CheckpointError
from vertebra.engine.config import RunConfig
from vertebra.engine.settings import with_settings
from vertebra.engine.setup import Run
from vertebra.engine.state import State
from vertebra.engine.train import InterruptedRunError, NotFiniteError, train
from vertebra.spec import VertebraError, files


def test_killed_in_the_middle_of_an_epoch_it_goes_on_to_the_same_weights(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    config = with_settings(tiny_run(photos), ["data.workers=2", "save_every=0"])
    call, out = command(config, tmp_path / "killed"), tmp_path / "killed"
    for update in (2, 6):  # of 4 an epoch
        process = subprocess.Popen(
            call, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        wait_for(lambda update=update: checkpoint.all_in(out) and _step(out) >= update, process)
        os.killpg(process.pid, signal.SIGKILL)  # the workers, too
        process.communicate()
        assert _step(out) < 8
        dead = f"{files.prefix_of(process.pid)}abc"
        for half in (out / "checkpoints" / dead / "step-000000009.pt", out / dead / "metrics.csv"):
            half.parent.mkdir()
            half.write_bytes(b"half")
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not [*out.glob(".*"), *(out / "checkpoints").glob(".*")]
    ours, theirs = (checkpoint.all_in(folder)[-1] for folder in (out, finished))
    assert ours.name == theirs.name == "step-000000008.pt"
    assert equal(tensors(ours), tensors(theirs))
    assert equal(load_file(out / "model.safetensors"), load_file(finished / "model.safetensors"))
    timed = {"images_per_s": ""}
    assert [row | timed for row in table(out)] == [row | timed for row in table(finished)]


def _step(out: Path) -> int:
    return int(checkpoint.all_in(out)[-1].stem.removeprefix("step-"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_say_how_to_go_on(
    number: signal.Signals, finished: Path, photos: Path, tmp_path: Path
) -> None:
    config = with_settings(tiny_run(photos), ["data.workers=1", "save_every=0"])
    call, out = command(config, tmp_path / "run"), tmp_path / "run"
    process = subprocess.Popen(
        call, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for(lambda: checkpoint.all_in(out) and _step(out) >= 1, process)
    os.killpg(process.pid, number)  # as a terminal, or a scheduler, does: the workers, too
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"interrupted: stopped in epoch {1 + (_step(out) - 1) // 4}, step " in said
    assert "Traceback" not in said
    train(config, out, resume=True)
    assert equal(tensors(checkpoint.all_in(out)[-1]), tensors(checkpoint.all_in(finished)[-1]))


def test_an_interrupt_in_this_process_is_an_error_of_its_own(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.update

    def update(*args: Any) -> tuple[Tensor, Tensor]:
        signal.raise_signal(signal.SIGINT)
        return original(*args)

    ended: list[int] = []
    monkeypatch.setattr(module, "update", update)
    monkeypatch.setattr(Accelerator, "end_training", lambda _: ended.append(1))
    with pytest.raises(InterruptedRunError, match="stopped in epoch 1"):
        train(tiny_run(photos), tmp_path / "run")
    assert len(ended) == 1  # trackers have sent what they hold
    assert checkpoint.load_latest(tmp_path / "run")["step"] == 1


def test_one_process_trains_in_a_folder(photos: Path, tmp_path: Path) -> None:
    """Also when it is killed alone, and its workers live on for a while."""
    config, out = with_settings(tiny_run(photos), ["data.workers=1", "save_every=0", "epochs=500"]), tmp_path / "run"
    process = subprocess.Popen(
        command(config, out), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for(lambda: checkpoint.all_in(out) and _step(out) >= 1, process)
        for resume in (True, False):
            with pytest.raises(VertebraError, match=rf"another process \({process.pid}\) is training in .*run; wait"):
                train(config, out, resume=resume)
    finally:
        process.kill()
        process.wait()
    outdir.Claim(out, resume=True).release()
    assert not (out / ".running").exists()


def test_of_two_that_start_at_once_the_later_one_sees_the_folder_taken(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first, second = (outdir.Claim(out, resume=False) for _ in range(2))
    first.take()
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "step-000000000.pt").touch()
    first.release()
    with pytest.raises(VertebraError, match=r"holds a run that has finished no epoch; .* delete the folder, or"):
        second.take()
    second.release()
    assert [path.name for path in out.iterdir()] == ["checkpoints"]


def test_a_folder_that_holds_a_run_is_not_overwritten(finished: Path, photos: Path) -> None:
    with pytest.raises(VertebraError, match="already holds a run; go on with it"):
        train(tiny_run(photos), finished)


@pytest.mark.parametrize("name", ["model.safetensors", "labels.txt"])
def test_a_folder_that_holds_something_else_is_not_written_over(photos: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(VertebraError, match=rf"already holds {name}; name another --out"):
        train(tiny_run(photos), tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again_over_its_model(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(VertebraError, match=r"already holds metrics.csv, and no checkpoint to go on from in checkpoin"):
        train(tiny_run(photos), out, resume=True)


def test_what_a_run_started_from_may_be_gone_when_it_goes_on(finished: Path, photos: Path, tmp_path: Path) -> None:
    start = shutil.copy(finished / "model.safetensors", tmp_path / "start.safetensors")
    config = tiny_run(photos, f"model.weights={start}", "optim.lr=0.01")
    straight = train(config, tmp_path / "straight")
    out = shutil.copytree(tmp_path / "straight", tmp_path / "run")
    checkpoint.all_in(out)[-1].unlink()  # back to the end of the first epoch
    Path(start).unlink()
    again = train(config, out, resume=True)
    assert equal(load_file(out / "model.safetensors"), load_file(straight.out / "model.safetensors"))
    assert (out / "config.json").read_text() == (straight.out / "config.json").read_text()
    assert [row["val_loss"] for row in again.metrics] == [row["val_loss"] for row in straight.metrics]


def test_other_data_or_settings_are_refused(finished: Path, photos: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"optim.lr: 0.001, now 0.1"):
        train(tiny_run(photos, "optim.lr=0.1"), out, resume=True)
    other = shutil.copytree(photos, tmp_path / "photos")
    (other / "class0" / "00.png").unlink()
    with pytest.raises(CheckpointError, match=r"over other data \(split train: 33 images, now 32"):
        train(tiny_run(other), out, resume=True)


def test_a_corrupt_image_is_named_counted_and_left_out(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    for name in ("03", "05"):
        (photos / "class1" / f"{name}.png").write_bytes(b"\x89PNG no image")
    done = train(tiny_run(photos, "data.val_share=0.05", "epochs=1"), tmp_path / "run")
    bad = {why.split(": ")[0].rsplit("/", 1)[1] for why in done.skipped.values()}
    assert bad <= {"03.png", "05.png"}
    row = table(tmp_path / "run")[0]
    assert int(row["skipped"]) == len(done.skipped) >= 1


def test_a_corrupt_image_of_the_validation_split_is_named_once_and_counted(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for split in ("train", "val"):
        make_photos(photos / split, each=4)
    bad = photos / "val" / "class1" / "02.png"
    bad.write_bytes(b"\x89PNG no image")
    text = io.StringIO()
    done = train(tiny_run(photos), tmp_path / "run", console=Console(file=text, width=1000))
    assert text.getvalue().count(str(bad)) == 1
    assert [row["val_skipped"] for row in table(tmp_path / "run")] == ["1", "1"]
    assert [row["skipped"] for row in table(tmp_path / "run")] == ["0", "0"]
    assert not done.skipped
    (why,) = done.val_skipped.values()
    assert why.startswith(str(bad))
    assert "0 training and 1 validation images that cannot be read" in (tmp_path / "run" / "report.html").read_text()
    assert checkpoint.load_latest(tmp_path / "run")["state"]["val_skipped"] == done.val_skipped


def test_a_run_goes_on_from_rows_that_lack_a_column(tmp_path: Path) -> None:
    outdir.write_metrics([{"epoch": 1, "val_top1": 0.5}, {"epoch": 2, "val_top1": 0.75, "val_skipped": 3}], tmp_path)
    old, new = table(tmp_path)
    assert old == {"epoch": "1", "val_top1": "0.5", "val_skipped": ""}
    assert new == {"epoch": "2", "val_top1": "0.75", "val_skipped": "3"}


def spoil(monkeypatch: pytest.MonkeyPatch, bad_calls: set[int], *, gradient: bool = False) -> list[int]:
    """Make the loss nan in the calls of these numbers, or the gradient alone."""
    calls: list[int] = []
    original = losses.CrossEntropy.forward

    def forward(self: losses.CrossEntropy, logits: Tensor, target: Tensor) -> Tensor:
        if not logits.requires_grad:  # what guessing would lose, which no batch has a part in
            return original(self, logits, target)
        calls.append(len(calls))
        loss = original(self, logits, target)
        if gradient:  # a root of 0 adds nothing, and rises without bound
            return loss + (logits * 0).sum().sqrt() if calls[-1] in bad_calls else loss
        return loss * (float("nan") if calls[-1] in bad_calls else 1.0)

    monkeypatch.setattr(losses.CrossEntropy, "forward", forward)
    return calls


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_batch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {5})
    with pytest.raises(
        NotFiniteError, match=r"in epoch 2, step 2 \(images .*class.*png.*lower optim.lr.*step-000000004"
    ):
        train(tiny_run(photos), tmp_path / "run")
    weights = checkpoint.load_latest(tmp_path / "run")["model"]
    assert all(value.isfinite().all() for value in weights.values())


def test_weights_that_are_no_numbers_supersede_no_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.update

    def update(run: Run, state: State, group: list[Any]) -> tuple[Tensor, Tensor]:
        found = original(run, state, group)
        if state.updates == 7:  # the last one: its own loss is fine, and none comes after it
            next(run.model.parameters()).data.view(-1)[0] = float("nan")
        return found

    monkeypatch.setattr(module, "update", update)
    said = r"the weights are no finite numbers after epoch 2, step 4 \(images .*lower optim.lr.*step-000000004"
    with pytest.raises(NotFiniteError, match=said):
        train(tiny_run(photos), tmp_path / "run")
    saved = checkpoint.load_latest(tmp_path / "run")
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert len(table(tmp_path / "run")) == 1


def test_rolling_back_leaves_the_step_out_and_finishes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spoil(monkeypatch, {5})
    train(tiny_run(photos, "stop.on_nan=rollback"), tmp_path / "run")
    assert len(calls) == 4 + 2 + 3
    saved = checkpoint.load_latest(tmp_path / "run")
    assert saved["state"]["left_out"] == [(1, 1)]
    assert saved["step"] == 8
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_a_gradient_that_is_no_number_is_blamed_for_it_and_not_the_update_after_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str
) -> None:
    config = tiny_run(photos, f"optim.clip_norm={clip}")
    with monkeypatch.context() as once:
        spoil(once, {5}, gradient=True)
        with pytest.raises(NotFiniteError, match=r"the gradient is no finite number in epoch 2, step 2 \(images"):
            train(config, tmp_path / "stops")
    spoil(monkeypatch, {5, 8}, gradient=True)
    train(with_settings(config, ["stop.on_nan=rollback"]), tmp_path / "run")
    saved = checkpoint.load_latest(tmp_path / "run")
    assert saved["state"]["left_out"] == [(1, 1), (1, 3)]
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_of_updates_that_are_looked_at_together_the_first_bad_one_is_named() -> None:
    photos = SimpleNamespace(part=SimpleNamespace(samples=[]), order=SimpleNamespace(places=lambda _: []))
    run: Any = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1), config=RunConfig(), train=photos)
    nan, inf = float("nan"), float("inf")
    updates = [(step, torch.tensor(both)) for step, both in enumerate([(1.0, 1.0), (1.0, inf), (nan, nan)])]
    assert together.agree(run, 0, updates[:1], stop=True, due=False) == (True, False)
    with pytest.raises(NotFiniteError, match="the gradient is no finite number in epoch 1, step 2"):
        together.agree(run, 0, updates, stop=False, due=False)
    with pytest.raises(NotFiniteError, match="the loss is no finite number in epoch 1, step 3"):
        together.agree(run, 0, [updates[0], updates[2]], stop=False, due=False)


def test_an_infinite_gradient_is_a_scalers_own_business() -> None:
    model = torch.nn.Linear(2, 2)  # its bias has no gradient
    run: Any = SimpleNamespace(accelerator=SimpleNamespace(scaler=None), device=torch.device("cpu"), model=model)
    assert together.gradient_norm(run, None) == 0
    model.weight.grad = torch.full((2, 2), float("inf"))
    assert together.gradient_norm(run, None) == float("inf")
    assert together.gradient_norm(run, torch.tensor(3.0)) == 3
    run.accelerator.scaler = object()  # fp16's, which leaves such updates out by itself
    assert together.gradient_norm(run, None) == 0


def test_too_many_rollbacks_stop_the_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, set(range(5, 99)))
    with pytest.raises(NotFiniteError, match="after 1 rollbacks"):
        train(tiny_run(photos, "stop.on_nan=rollback", "stop.rollbacks=1"), tmp_path / "run")


@pytest.mark.parametrize(("place", "workers"), [("train", 0), ("train", 1), ("val", 1)])
def test_sigterm_ends_a_run_that_waits_for_a_read_without_end(
    place: str, workers: int, finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a network drive that has gone: in the third step of the second epoch, or when that is validated."""
    config, out = with_settings(tiny_run(photos), [f"data.workers={workers}"]), tmp_path / "run"
    held, _ = os.pipe()
    listed = (finished / "split.csv").read_text().splitlines()
    validation = {line.split(",")[2] for line in listed if line.startswith("val,")}
    assert validation
    before = {"train": 4 * 8 + 2 * 8, "val": len(validation)}[place]
    original, told, seen = Member.read, tmp_path / "told", list[str]()

    def read(self: Member) -> bytes:
        if (self.name in validation) == (place == "val"):
            seen.append(self.name)
        if len(seen) > before:
            told.write_text("")
            os.read(held, 1)
        return original(self)

    monkeypatch.setattr(Member, "read", read)
    monkeypatch.setattr(state_module, "PATIENCE", 0.5)
    monkeypatch.setattr(state_module, "TICK", 0.2)

    def end() -> None:
        while not (told.exists() and waited() > 0.3):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=end, daemon=True)
    sender.start()
    with pytest.raises(InterruptedRunError, match=r"stopped in epoch [12], step \d: a batch has not come .*; saved in"):
        train(config, out)
    assert not multiprocessing.active_children()
    monkeypatch.undo()
    train(config, out, resume=True)
    assert equal(tensors(checkpoint.all_in(out)[-1]), tensors(checkpoint.all_in(finished)[-1]))
