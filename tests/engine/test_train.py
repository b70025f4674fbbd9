"""Runs that survive: killed, interrupted, spoiled by a bad image or a bad number, spread over processes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

import vertebra
from tests.engine.conftest import make_photos, tiny_run
from vertebra.data.datasets import open_dataset, with_validation
from vertebra.data.loader import Order
from vertebra.engine import checkpoint, losses, teacher, together
from vertebra.engine import train as module
from vertebra.engine.checkpoint import CheckpointError
from vertebra.engine.config import DataConfig, ModelChoice, RunConfig
from vertebra.engine.learner import frozen_depth, make_model, side
from vertebra.engine.settings import as_yaml, with_settings
from vertebra.engine.setup import Run, build
from vertebra.engine.state import State
from vertebra.engine.train import InterruptedRunError, NotFiniteError, train
from vertebra.engine.validate import validate
from vertebra.models.dla import Dla
from vertebra.spec import VertebraError

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


def command(config: RunConfig, out: Path, *, launcher: tuple[str, ...] = ()) -> list[str]:
    out.parent.mkdir(exist_ok=True)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(as_yaml(config))
    script = out.parent / "run.py"
    script.write_text(SCRIPT)
    return [sys.executable, *launcher, str(script), str(file), str(out)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **more}


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


def test_a_run_leaves_a_model_that_loads_with_its_classes(finished: Path, photos: Path) -> None:
    rows = table(finished)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"lr", "train_loss", "val_top1", "val_ece", "images_per_s", "skipped"} <= rows[0].keys()
    model = vertebra.load_model(finished)
    assert model.pretrained_cfg["label_names"] == ("class0", "class1", "class2")
    assert model.pretrained_cfg["input_size"][-1] == 32
    assert vertebra.Predictor(model)(photos / "class0" / "00.png").labels
    record = json.loads((finished / "validation.json").read_text())
    best = max(rows, key=lambda row: float(row["val_top1"]))
    assert record["top1"] == pytest.approx(float(best["val_top1"]), abs=1e-5)
    assert [row["name"] for row in record["classes"]] == ["class0", "class1", "class2"]
    assert len((finished / "split.csv").read_text().splitlines()) == 1 + 36


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
        halves = ("checkpoints/.step-000000009.pt.1", ".metrics.csv.1", ".report.html.1")
        for half in (*halves, ".model.safetensors.1-2/.tmpAbCdEf"):
            (out / half).parent.mkdir(exist_ok=True)
            (out / half).write_bytes(b"half")
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


def test_a_folder_that_holds_a_run_is_not_overwritten(finished: Path, photos: Path) -> None:
    with pytest.raises(VertebraError, match="already holds a run; go on with it"):
        train(tiny_run(photos), finished)


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


def spoil(monkeypatch: pytest.MonkeyPatch, bad_calls: set[int]) -> list[int]:
    """Make the loss nan in the calls of these numbers."""
    calls: list[int] = []
    original = losses.CrossEntropy.forward

    def forward(self: losses.CrossEntropy, logits: Tensor, target: Tensor) -> Tensor:
        calls.append(len(calls))
        return original(self, logits, target) * (float("nan") if calls[-1] in bad_calls else 1.0)

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
    original = module._update

    def update(run: Run, state: State, group: list[Any]) -> Tensor:
        totals = original(run, state, group)
        if state.updates == 7:  # the last one: its own loss is fine, and none comes after it
            next(run.model.parameters()).data.view(-1)[0] = float("nan")
        return totals

    monkeypatch.setattr(module, "_update", update)
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


def test_too_many_rollbacks_stop_the_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, set(range(5, 99)))
    with pytest.raises(NotFiniteError, match="after 1 rollbacks"):
        train(tiny_run(photos, "stop.on_nan=rollback", "stop.rollbacks=1"), tmp_path / "run")


def test_accumulated_steps_are_one_large_step(photos: Path, tmp_path: Path) -> None:
    plain = [
        "precision=fp32",
        "augment.mixup=0",
        "augment.cutmix=0",
        "augment.re_prob=0",
        "model.drop_rate=0",
        "model.drop_path_rate=0",
    ]
    train(tiny_run(photos, *plain, "data.batch_size=4", "optim.accumulate=2", "epochs=1"), tmp_path / "two")
    train(tiny_run(photos, *plain, "epochs=1"), tmp_path / "one")
    a, b = (checkpoint.load_latest(tmp_path / name)["model"] for name in ("two", "one"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_groups_thaw_from_the_head_down(photos: Path, finished: Path, tmp_path: Path) -> None:
    start = f"model.weights={finished / 'model.safetensors'}"
    config = tiny_run(photos, start, "freeze.depth=-1", "freeze.thaw_every=1", "epochs=3", "ema.decay=null")
    run = build(config, tmp_path / "run")
    depths = [frozen_depth(config, run.model, epoch) for epoch in range(6)]
    assert depths == [3, 2, 1, 0, 0, 0]  # stem, one block, norm, head
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    train(config, tmp_path / "run")
    after = checkpoint.load_latest(tmp_path / "run")["model"]
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "blocks.0.attn.qkv.weight" in changed
    assert "head.weight" in changed
    assert "pos_embed" not in changed


def test_a_file_that_knows_as_many_other_classes_gives_no_classifier(photos: Path, finished: Path) -> None:
    file = finished / "model.safetensors"
    config = tiny_run(photos, f"model.weights={file}")
    head = load_file(file)["head.weight"]
    same, others = (make_model(config, [f"{name}{i}" for i in range(3)]) for name in ("class", "tree"))
    assert torch.equal(same.state_dict()["head.weight"], head)
    assert not torch.equal(others.state_dict()["head.weight"], head)
    assert others.pretrained_cfg["label_names"] == ("tree0", "tree1", "tree2")
    size = {"depth": 1, "embed_dim": 48, "img_size": 32}
    named = vertebra.load_model("deit_tiny_patch16_224", weights=file, **size)
    assert named.pretrained_cfg["label_names"] == ("class0", "class1", "class2")


def test_without_progress_a_run_ends_early(photos: Path, tmp_path: Path) -> None:
    done = train(tiny_run(photos, "stop.patience=1", "optim.lr=1e-12", "epochs=9"), tmp_path / "run")
    assert done.stopped_early
    assert (len(done.metrics), done.best_epoch) == (3, 1)


def test_a_teacher_is_learned_from(photos: Path, finished: Path, tmp_path: Path) -> None:
    config = tiny_run(photos, f"distill.teacher={finished}", "distill.kind=soft", "distill.alpha=0.9", "epochs=1")
    taught = train(config, tmp_path / "taught")
    alone = train(tiny_run(photos, "epochs=1"), tmp_path / "alone")
    assert taught.metrics[0]["train_loss"] < alone.metrics[0]["train_loss"]
    other = make_photos(tmp_path / "others", classes=2)
    (other / "class1").rename(other / "zebra")
    with pytest.raises(VertebraError, match="does not know class 'zebra'"):
        train(tiny_run(other, f"distill.teacher={finished}"), tmp_path / "no")


def test_a_teacher_is_asked_once_and_remembered(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(photos, spoiled)
    sick = spoiled / "class0" / "03.png"
    sick.write_bytes(b"no image")
    unmixed = ("augment.mixup=0", "augment.cutmix=0", "distill.kind=soft", "distill.alpha=0.9")
    config = tiny_run(spoiled, f"distill.teacher={finished}", f"distill.cache={tmp_path / 'answers'}", *unmixed)
    old, fresh = (tmp_path / "answers" / f".{name}.safetensors.1" for name in ("old", "fresh"))
    for half in (old, fresh):
        half.parent.mkdir(exist_ok=True)
        half.write_bytes(b"half")
    os.utime(old, (0, 0))
    first = train(config, tmp_path / "first")
    assert not old.exists()
    fresh.unlink()  # stays: another run may be writing it
    (kept,) = (tmp_path / "answers").iterdir()
    logits = load_file(kept)["logits"]
    part = with_validation(open_dataset(spoiled), config.data.val_share, config.seed).part("train")
    unread = [i for i, sample in enumerate(part.samples) if Path(sample.name) == sick]
    assert logits.shape == (len(part), 3)
    assert logits.isnan().any(1).nonzero().flatten().tolist() == unread
    model = vertebra.create_model(f"local-dir:{finished}", pretrained=True).eval()
    whole: dict[str, Any] = {**vertebra.data.resolve_model_data_config(model), "crop_pct": 1.0}
    read = vertebra.data.create_transform(**whole)
    image = read(Image.open(part.samples[0].name).convert("RGB"))
    torch.testing.assert_close(logits[0].float(), model(image[None])[0].detach(), atol=0.02, rtol=0.02)
    monkeypatch.setattr(teacher, "_ask", lambda *_: pytest.fail("it was asked again"))
    again = train(config, tmp_path / "again")
    assert equal(load_file(again.out / "model.safetensors"), load_file(first.out / "model.safetensors"))


def test_images_grow_over_the_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(
        epochs=4,
        data=DataConfig(source=str(photos), batch_size=8, workers=0, start_size=32, image_size=64),
        model=ModelChoice(name="dla46_c"),
        trackers=(),
        device="cpu",
    )
    larger = with_settings(config, ["data.image_size=96", "epochs=6"])
    assert [side(larger, epoch) for epoch in range(6)] == [32, 32, 64, 64, 96, 96]
    uneven = with_settings(config, ["data.start_size=64", "data.image_size=112", "epochs=6"])
    assert [side(uneven, epoch) for epoch in range(6)] == [64, 64, 64, 96, 112, 112]
    little = with_settings(config, ["data.start_size=48", "epochs=3"])
    assert [side(little, epoch) for epoch in range(3)] == [48, 48, 64]
    trained, validated = list[int](), set[int]()
    forward = Dla.forward

    def note(self: Dla, x: Tensor) -> Tensor:
        if self.training:
            trained.append(x.shape[-1])
        else:
            validated.add(x.shape[-1])
        return forward(self, x)

    monkeypatch.setattr(Dla, "forward", note)
    train(config, tmp_path / "run")
    steps = len(trained) // 4
    assert trained == [size for size in (32, 32, 32, 64) for _ in range(steps)]
    assert validated == {64}


def test_plateau_lowers_the_rate_between_epochs(photos: Path, tmp_path: Path) -> None:
    done = train(
        tiny_run(
            photos,
            "schedule={kind: plateau, patience: 0, warmup_epochs: 0, decay_rate: 0.1}",
            "optim.lr=1e-6",
            "epochs=4",
        ),
        tmp_path / "run",
    )
    rates = [row["lr"] for row in done.metrics]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] < rates[0]
    assert sorted(rates, reverse=True) == rates


def test_tensorboard_gets_the_metrics(photos: Path, tmp_path: Path) -> None:
    train(tiny_run(photos, "trackers=[tensorboard]", "epochs=1"), tmp_path / "run")
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_two_processes_compute_what_one_does(photos: Path, tmp_path: Path) -> None:
    plain = ["augment.mixup=0", "augment.cutmix=0", "augment.re_prob=0", "model.drop_rate=0", "model.drop_path_rate=0"]
    config = tiny_run(photos, *plain)
    train(config, tmp_path / "one")
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
    call = command(config, tmp_path / "two", launcher=launcher)
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [table(tmp_path / name) for name in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        for key in ("train_loss", "val_loss", "val_top1"):
            assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-3), key
    records = [json.loads((tmp_path / name / "validation.json").read_text()) for name in ("one", "two")]
    assert records[0]["images"] == records[1]["images"] == 3


def test_two_processes_save_the_statistics_that_they_validated_and_name_all_that_they_cannot_read(
    tmp_path: Path, unchecked_shapes: None
) -> None:
    photos = make_photos(tmp_path / "photos", each=8)
    bad = {photos / f"class{label}" / f"{i:02}.png" for label in range(3) for i in range(3)}
    for path in bad:
        path.write_bytes(b"no image")
    more = ("model.options=null", "model.drop_path_rate=null", "data.batch_size=4", "data.val_share=0.25")
    config = tiny_run(photos, "model.name=dla46_c", *more, "precision=fp32", "data.image_size=64")
    out = tmp_path / "two"
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
    call = command(config, out, launcher=launcher)
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    dataset = with_validation(open_dataset(photos), 0.25, config.seed)
    train_part, order = dataset.part("train"), Order(images=len(dataset.part("train")), batch_size=4)
    seen = {place.image for epoch in range(2) for place in order.places(epoch)[: order.steps * 4]}
    expected = {i for i in seen if Path(train_part.samples[i].name) in bad}
    assert checkpoint.load_latest(out)["state"]["skipped"].keys() == expected
    assert table(out)[-1]["skipped"] == str(len(expected))
    again = validate(vertebra.load_model(out), dataset.part("val"))
    record = json.loads((out / "validation.json").read_text())
    assert record["loss"] == pytest.approx(again.metrics.loss, rel=1e-5)
    text = io.StringIO()
    train(config, out, resume=True, console=Console(file=text, width=200))
    assert "resumed    epoch 3, step 0 of 4; it was on 2 processes, on 1 it draws other numbers" in text.getvalue()


def test_the_first_process_chooses_the_checkpoint_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True))
    assert together.saved(run, tmp_path, resume=True) is None
    checkpoint.save(tmp_path, 7, {"value": 1})
    assert together.saved(run, tmp_path, resume=False) is None
    first = together.saved(run, tmp_path, resume=True)
    assert first is not None
    assert first["step"] == 7
    run.accelerator.is_main_process = False
    monkeypatch.setattr(together, "broadcast_object_list", lambda _: [None])
    assert together.saved(run, tmp_path, resume=True) is None
    monkeypatch.setattr(together, "broadcast_object_list", lambda _: [7])
    assert together.saved(run, tmp_path, resume=True) == first
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-000000007.pt, from which the first process"):
        together.saved(run, tmp_path / "elsewhere", resume=True)


def test_a_photo_of_another_size_trains_at_the_size_asked_for(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (300, 20)).save(photos.parent / "wide.png")
    done = train(tiny_run(photos, "data.image_size=48", "epochs=1"), tmp_path / "run")
    assert done.best_epoch == 1
    assert vertebra.load_model(tmp_path / "run").pretrained_cfg["input_size"] == (3, 48, 48)


def test_an_interrupt_in_this_process_is_an_error_of_its_own(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module._update

    def update(*args: Any) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return original(*args)

    ended: list[int] = []
    monkeypatch.setattr(module, "_update", update)
    monkeypatch.setattr(Accelerator, "end_training", lambda _: ended.append(1))
    with pytest.raises(InterruptedRunError, match="stopped in epoch 1"):
        train(tiny_run(photos), tmp_path / "run")
    assert len(ended) == 1  # trackers have sent what they hold
    assert checkpoint.load_latest(tmp_path / "run")["step"] == 1
