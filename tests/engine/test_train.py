"""What a run leaves, and what its settings do to it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import vertebra
from tests.engine.conftest import (
    EXACT,
    UNDRAWN,
    equal,
    make_photos,
    table,
    tiny_run,
)
from vertebra.data.datasets import open_dataset
from vertebra.data.holdout import with_validation
from vertebra.engine import checkpoint, teacher
from vertebra.engine.config import DataConfig, ModelChoice, RunConfig
from vertebra.engine.learner import frozen_depth, make_model, side
from vertebra.engine.settings import with_settings
from vertebra.engine.setup import build
from vertebra.engine.train import describe, train
from vertebra.engine.update import learn
from vertebra.layers.statistics import known_statistics
from vertebra.models.dla import Dla
from vertebra.spec import SettingError, VertebraError, files


@pytest.mark.parametrize("arch", ["dla46_c", "deit_tiny_distilled_patch16_224"])
def test_a_batch_that_could_not_be_read_gives_every_weight_a_gradient_of_nothing(arch: str) -> None:
    """Other processes wait for it."""
    model = vertebra.create_model(arch, num_classes=3).train()
    if hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)
    before = {name: value.clone() for name, value in model.named_buffers()}
    accelerator = SimpleNamespace(backward=lambda loss: loss.backward())
    run: Any = SimpleNamespace(model=model, net=model, device="cpu", accelerator=accelerator)
    nothing: Any = SimpleNamespace(labels=torch.empty(0))
    loss, count = learn(run, cast("Any", None), nothing)
    assert (loss.item(), count) == (0.0, 0)
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())


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


def test_accumulated_steps_are_one_large_step(photos: Path, tmp_path: Path) -> None:
    train(tiny_run(photos, *UNDRAWN, "data.batch_size=4", "optim.accumulate=2", "epochs=1"), tmp_path / "two")
    train(tiny_run(photos, *UNDRAWN, "epochs=1"), tmp_path / "one")
    a, b = (checkpoint.load_latest(tmp_path / name)["model"] for name in ("two", "one"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", [(), ("loss.balance=true",), ("loss.balance=true", "loss.kind=focal")])
def test_accumulated_steps_are_one_large_step_where_images_cannot_be_read(
    loss: tuple[str, ...], tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "photos", each=8)
    for label, name in ((0, "00"), (0, "01"), (0, "02"), (1, "03"), (2, "04"), (0, "05"), (0, "06")):
        (photos / f"class{label}" / f"{name}.png").write_bytes(b"no image")
    sizes = {"one": (12, 1), "two": (6, 2), "three": (4, 3), "six": (2, 6)}
    rows: dict[str, float] = {}
    for name, (batch, every) in sizes.items():
        settings = (f"data.batch_size={batch}", f"optim.accumulate={every}")
        rows[name] = train(tiny_run(photos, *EXACT, *loss, *settings), tmp_path / name).metrics[0]["train_loss"]
    whole = checkpoint.load_latest(tmp_path / "one")["model"]
    start = build(tiny_run(photos, *EXACT), tmp_path / "start").model.state_dict()
    assert max((start[key] - whole[key]).abs().max() for key in whole) > 0.01
    for name in ("two", "three", "six"):
        parts = checkpoint.load_latest(tmp_path / name)["model"]
        assert max((parts[key] - whole[key]).abs().max() for key in whole) < 2e-5
        assert rows[name] == pytest.approx(rows["one"], rel=1e-5)


def test_a_lone_image_of_a_batch_is_normalised_by_what_is_known(tmp_path: Path) -> None:
    """At 32 pixels BatchNorm would see one value a channel."""
    photos = make_photos(tmp_path / "photos", classes=2)
    for label in range(2):
        for i in range(9):
            (photos / f"class{label}" / f"{i:02}.png").write_bytes(b"no image")
    dla = ("model.name=dla46_c", "model.options=null", "model.drop_path_rate=null", "data.batch_size=4")
    done = train(tiny_run(photos, *dla, "epochs=2", "data.val_share=0.2"), tmp_path / "run")
    assert len(done.metrics) == 2
    assert all(value.isfinite().all() for value in checkpoint.load_latest(tmp_path / "run")["model"].values())


@pytest.mark.parametrize("arch", ["dla46_c", "dla60_res2net", "dpn68", "cspresnet50", "regnetx_002", "regnety_002"])
def test_every_family_learns_from_a_lone_image(arch: str) -> None:
    model = vertebra.create_model(arch, num_classes=3).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    with known_statistics(model):
        model(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())
    assert all(weight.grad is not None for weight in model.parameters())


def test_one_image_a_step_is_refused_where_a_norm_would_see_one_value(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", each=3)
    dla = ("model.name=dla46_c", "model.options=null", "model.drop_path_rate=null", "data.batch_size=1")
    with pytest.raises(SettingError, match=r"data.batch_size=1 .* one value a channel at 32 x 32 pixels; give 2"):
        train(tiny_run(photos, *dla), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for settings in ((*dla, "data.image_size=64"), ("data.batch_size=1",)):  # four values; no BatchNorm
        run = build(tiny_run(photos, *settings), tmp_path / "run")
        run.train.close()
        run.val.close()


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
    same, others = (make_model(config, [f"{name}{i}" for i in range(3)])[0] for name in ("class", "tree"))
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
    healthy = sick.read_bytes()
    sick.write_bytes(b"x" * len(healthy))
    unmixed = ("augment.mixup=0", "augment.cutmix=0", "distill.kind=soft", "distill.alpha=0.9")
    config = tiny_run(spoiled, f"distill.teacher={finished}", f"distill.cache={tmp_path / 'answers'}", *unmixed)
    dead = tmp_path / "answers" / f"{files.prefix_of(2**22 + 1)}abc"
    dead.mkdir(parents=True)
    first = train(config, tmp_path / "first")
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
    asked, ask = list[Any](), teacher._ask
    monkeypatch.setattr(teacher, "_ask", lambda t, p, chosen, *more: asked.append(chosen) or ask(t, p, chosen, *more))
    again = train(config, tmp_path / "again")
    assert asked == [unread]  # it might be readable by now
    assert equal(load_file(again.out / "model.safetensors"), load_file(first.out / "model.safetensors"))
    known = teacher.Remembered(
        teacher.Teacher(model, ("class0", "class1", "class2"), whole, None, torch.device("cpu")), part, kept.parent
    )
    sick.write_bytes(healthy)
    with pytest.raises(VertebraError, match=r"03.png can be read now, and could not when the teacher was asked"):
        known(torch.zeros(1, 3, 32, 32), torch.tensor(unread))
    train(config, tmp_path / "mended")
    assert not load_file(kept)["logits"].isnan().any()


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
    done = train(tiny_run(photos, "trackers=[tensorboard]", "epochs=1"), tmp_path / "run")
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    (top1,) = events.Scalars("val_top1")
    assert (top1.step, top1.value) == (1, pytest.approx(done.metrics[0]["val_top1"]))


def test_a_photo_of_another_size_trains_at_the_size_asked_for(photos: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(photos, tmp_path / "photos")
    folder = next(copy.rglob("*.png")).parent
    for name in "abcdefgh":  # of nine or more, one at least stays in training
        Image.new("RGB", (300, 20)).save(folder / f"{name}.png")
    done = train(tiny_run(copy, "data.image_size=48", "epochs=1"), tmp_path / "run")
    assert (done.best_epoch, done.skipped) == (1, {})
    assert re.search(r"^train,.*/[a-h]\.png$", (tmp_path / "run" / "split.csv").read_text(), re.MULTILINE) is not None
    assert vertebra.load_model(tmp_path / "run").pretrained_cfg["input_size"] == (3, 48, 48)


def test_a_size_for_validation_leaves_that_of_training_as_it_is(photos: Path, tmp_path: Path) -> None:
    cnn = ("model={name: dla46_c, options: null, drop_path_rate: null}", "data.image_size=null", "data.eval_size=96")
    run = build(tiny_run(photos, *cnn), tmp_path)
    assert run.train.peek(2).images.shape[-2:] == (224, 224)
    assert next(run.val.epoch(0)).images.shape[-2:] == (96, 96)
    assert run.model.pretrained_cfg["input_size"] == (3, 96, 96)
    assert "input 3 x 224 x 224, validated at 96 x 96," in describe(run)[1]
    both = build(tiny_run(photos, *cnn, "data.image_size=64"), tmp_path)
    assert both.train.peek(2).images.shape[-2:] == (64, 64)
    assert next(both.val.epoch(0)).images.shape[-2:] == (96, 96)


def test_a_run_says_which_splits_it_leaves_out(photos: Path, tmp_path: Path) -> None:
    run = build(tiny_run(photos), tmp_path)
    assert not [line for line in describe(run) if line.startswith("note")]
    run.dataset = replace(run.dataset, left_out=("extra", "more"))
    said = f"note       {photos}: split 'extra', 'more' left out; only train, val and test are read"
    assert describe(run)[1] == said
