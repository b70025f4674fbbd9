"""`vertebra train`, `validate` and `recipes` as a shell sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tests.engine.conftest import environment, launcher
from vertebra.cli import app
from vertebra.data.datasets import open_dataset
from vertebra.engine import evaluate as module
from vertebra.engine import rehearsal
from vertebra.engine import validate as validating
from vertebra.engine.evaluate import Answers, Evaluation, measure
from vertebra.engine.multilabel import MultiAnswers, MultiEvaluation
from vertebra.engine.multilabel import measure as measure_several
from vertebra.engine.outdir import as_record, without_nan
from vertebra.engine.setup import Run
from vertebra.engine.validate import validation_split
from vertebra.hub.factory import load_model
from vertebra.models.backbone import Backbone
from vertebra.runtime.optimize import Optimized
from vertebra.spec import VertebraError

TINY = (
    "model.options={depth: 1, embed_dim: 48}",
    "data.image_size=32",
    "data.batch_size=8",
    "data.workers=0",
    "device=cpu",
    "trackers=[]",
    "epochs=2",
)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], prog_name="vertebra")


def settings(*more: str) -> list[str]:
    return [part for setting in (*TINY, *more) for part in ("--set", setting)]


def one_line(result: Result) -> str:
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(3)
    for name, channel in (("ash", 0), ("elm", 1), ("oak", 2)):
        (root / name).mkdir()
        for i in range(10):
            levels = numbers.integers(0, 90, (40, 40, 3))
            levels[..., channel] += 160
            Image.fromarray(levels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("runs") / "trees"
    model = ("--model", "deit_tiny_patch16_224", "--from-scratch")
    more = settings("epochs=6", "optim.lr=0.01", "optim.layer_decay=null")
    return out, run("train", photos, *model, "--out", out, *more)


def test_a_folder_of_folders_becomes_a_model_for_every_command(
    trained: tuple[Path, Result], photos: Path, tmp_path: Path, unchecked_shapes: None
) -> None:
    out, result = trained
    assert result.exit_code == 0, result.output
    assert "recipe=finetune" in result.stdout
    assert "epoch 6" in result.stdout
    assert f"report     {out / 'report.html'}\nnext       vertebra classify PHOTO --model {out}" in result.stdout
    answer = run("classify", photos / "elm" / "0.png", "--model", out, "--json")
    assert json.loads(answer.stdout)["predictions"][0]["label"] in {"ash", "elm", "oak"}
    said = run("validate", photos, "--model", out, "--json", "--workers", "0")
    assert said.exit_code == 0, said.output
    record = json.loads(said.stdout)
    assert (record["split"], record["held_out"], record["images"]) == ("val", True, 3)
    assert record["loss"] == pytest.approx(json.loads((out / "validation.json").read_text())["loss"], abs=5e-3)  # bf16
    learned = json.loads(run("validate", photos, "--model", out, "--split", "train", "--json", "--workers=0").stdout)
    assert (learned["images"], learned["held_out"], learned["top1"] > 0.8) == (27, False, True)
    exported = run("export", out, "--out", tmp_path / "trees.pt2")
    assert exported.exit_code == 0, exported.output
    again = json.loads(run("validate", photos, "--model", tmp_path / "trees.pt2", "--json", "--workers", "0").stdout)
    assert (again["split"], again["held_out"]) == ("all", False)
    both = zip(record["confusion"], learned["confusion"], strict=True)
    assert again["confusion"] == [[a + b for a, b in zip(*rows, strict=True)] for rows in both]
    for option in ("--optimize", "--backend=eager", "--device=cuda"):
        refused = run("validate", photos, "--model", tmp_path / "trees.pt2", option)
        assert "an exported file has its weights and its size inside" in one_line(refused)


def test_validate_prints_classes_and_writes_the_confusion(
    trained: tuple[Path, Result], photos: Path, tmp_path: Path
) -> None:
    table = tmp_path / "confusion.csv"
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        for file in sorted(photos.rglob("*.png")):
            archive.write(file, f"test/{file.relative_to(photos).as_posix()}")
    result = run("validate", tmp_path / "test.zip", "--model", trained[0], "--per-class", "--confusion", table)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["split", "test", "(30", "images)"] in lines
    assert ["images", "30"] in lines
    assert {line[0] for line in lines} >= {"split", "top1", "top5", "macro_f1", "ece", "loss", "ash", "elm", "oak"}
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert rows[0] == ["true", "ash", "elm", "oak"]
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == 30


def test_an_unreadable_photo_is_named_and_the_status_says_so(
    trained: tuple[Path, Result], photos: Path, tmp_path: Path
) -> None:
    for name in ("ash", "elm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "good.png").write_bytes((photos / name / "0.png").read_bytes())
    (tmp_path / "ash" / "bad.png").write_bytes(b"no image")
    result = run("validate", tmp_path, "--model", trained[0], "--workers", "0")
    assert result.exit_code == 1
    assert "bad.png" in one_line(result)
    assert "2, 1 skipped" in result.stdout
    assert "all (3 images; DATA has no val and no test: what the model learned from counts, too)" in result.stdout


def test_validate_runs_by_the_backend_that_is_named(
    trained: tuple[Path, Result], photos: Path, monkeypatch: pytest.MonkeyPatch, unchecked_shapes: None
) -> None:
    asked: list[tuple[str, str]] = []
    original = validating.make_fast

    def make_fast(model: Backbone, backend: str, dtype: str) -> Optimized:
        asked.append((backend, dtype))
        return original(model, backend, dtype)

    monkeypatch.setattr(validating, "make_fast", make_fast)
    result = run("validate", photos, "--model", trained[0], "--backend", "eager", "--exact", "--workers", "0")
    assert result.exit_code == 0, result.output
    assert asked == [("eager", "f32")]
    wrong = run("validate", photos, "--model", trained[0], "--backend", "egaer", "--workers", "0")
    assert "did you mean 'eager'" in one_line(wrong)


def test_validate_reads_names_as_the_run_did(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "names.csv"
    table.write_text("folder,name\nash,Ash tree\nelm,Elm\noak,Oak\n")
    out = tmp_path / "run"
    model = ("--model", "deit_tiny_patch16_224", "--from-scratch", "--out", out)
    assert run("train", photos, *model, *settings("epochs=1", f"data.names={table}", "seed=5")).exit_code == 0
    table_of_names = json.loads(run("validate", photos, "--model", out, "--json", "--workers=0").stdout)
    assert (table_of_names["split"], table_of_names["images"]) == ("val", 3)
    table.unlink()
    for folder, name in (("ash", "Ash tree"), ("elm", "Elm"), ("oak", "Oak")):  # named so, they need no table
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "0.png").write_bytes((photos / folder / "0.png").read_bytes())
    other = json.loads(run("validate", tmp_path / "photos", "--model", out, "--json", "--workers=0").stdout)
    assert (other["split"], other["images"]) == ("all", 3)


def test_processes_share_what_is_validated(trained: tuple[Path, Result], photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos" / "val")
    (tmp_path / "photos" / "val" / "ash" / "0.png").write_bytes(b"no image")
    args = ("validate", str(tmp_path / "photos"), "--model", str(trained[0]), "--json", "--workers", "0")
    alone = run(*args)
    call = [sys.executable, *launcher(), "-m", "vertebra", *args]
    both = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    (line,) = both.stdout.splitlines()
    assert json.loads(line)["confusion"] == json.loads(alone.stdout)["confusion"]
    assert json.loads(line)["images"] == 29
    assert both.stderr.count("0.png") == alone.stderr.count("0.png") == 1


def test_resume_goes_on_with_a_folder_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start = ("train", photos, "--model", "deit_tiny_patch16_224", "--from-scratch", "--out", out)
    assert run(*start, *settings()).exit_code == 0
    assert "already holds a run" in one_line(run(*start, *settings()))
    again = run("train", "--resume", out)
    assert again.exit_code == 0, again.output
    assert (
        "data       27 train, 3 val images, 3 classes: ash, elm, oak\nmodel      deit_tiny_patch16_224, "
        in again.stdout
    )
    assert (
        "steps      2 epochs of 3 updates, 8 images\nresumed    after the last of 2 epochs: no training is left\n"
        in again.stdout
    )
    changed = run("train", "--resume", out, "--set", "optim.lr=0.5")
    assert changed.exit_code == 1
    assert "optim.lr: 0.0005, now 0.5" in one_line(changed)
    repeated = run(*start, "--resume", out, *settings())
    assert repeated.exit_code == 0, repeated.output
    (tmp_path / "more.yaml").write_text("optim: {weight_decay: 0.5}\n")
    for given, named in (
        (("--model", "deit_small_patch16_224"), "model.name: 'deit_tiny_patch16_224', now 'deit_small_patch16_224'"),
        (("--recipe", "small"), "recipe: 'finetune', now 'small'"),
        (("--config", tmp_path / "more.yaml"), "optim.weight_decay: 0.05, now 0.5"),
        (("--out", tmp_path / "other"), f"--resume {out} goes on in that folder; leave --out {tmp_path / 'other'} out"),
    ):
        refused = run("train", photos, "--resume", out, *given)
        assert refused.exit_code == (2 if given[0] == "--out" else 1)  # two folders: wrong usage, whatever is in them
        assert named in one_line(refused)
    assert "holds no run to go on with" in one_line(run("train", photos, "--resume", tmp_path / "none"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model", "deit_tiny_patch16_244"), "deit_tiny_patch16_224"),
        (("--model", "dla34", "--recipe", "finetun"), "did you mean 'finetune'"),
        (("--model", "dla34", "--set", "optim.lrr=1"), "did you mean 'optim.lr'"),
        (("--model", "dla34", "--set", "epochs=none at all"), "give a whole number"),
        (
            ("--config", "x.yaml", "--recipe", "dla"),
            "--config x.yaml takes the place of a recipe; give it, or --recipe",
        ),
        ((), "no model"),
    ],
)
def test_wrong_names_end_it_before_anything_is_written(
    args: tuple[str, ...], message: str, photos: Path, tmp_path: Path
) -> None:
    result = run("train", photos, *args, "--out", tmp_path / "run")
    assert result.exit_code in (1, 2)
    assert message in one_line(result)
    assert not result.stdout  # no settings of a run that will not be
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", [(), ("--recipe", "small")])
def test_a_run_is_a_model_to_train_on_from(
    trained: tuple[Path, Result], photos: Path, tmp_path: Path, recipe: tuple[str, ...]
) -> None:
    """With its size, options and classes, whatever the recipe's own are."""
    few = ("--epochs", "1", "--batch-size", "8", "--workers", "0", "--device", "cpu", "--lr", "1e-9", "--seed", "3")
    done = run("train", photos, "--model", trained[0], "--out", tmp_path / "on", *recipe, *few, "--set", "trackers=[]")
    assert done.exit_code == 0, done.output
    assert f"start      {trained[0] / 'model.safetensors'}, all of it" in done.stdout
    assert "input 3 x 32 x 32" in done.stdout
    old, new = (json.loads((out / "config.json").read_text()) for out in (trained[0], tmp_path / "on"))
    for key in ("input_size", "crop_pct", "label_names"):
        assert new["pretrained_cfg"][key] == old["pretrained_cfg"][key]
    head = [load_model(out).state_dict()["head.weight"] for out in (trained[0], tmp_path / "on")]
    torch.testing.assert_close(head[1], head[0], rtol=1e-3, atol=1e-4)
    refused = run("train", photos, "--model", trained[0], "--from-scratch")
    assert refused.exit_code == 2
    assert "has its own weights; leave --weights and --from-scratch out" in one_line(refused)


@pytest.mark.parametrize("name", [(), ("--model", "deit_tiny_patch16_224")])
@pytest.mark.parametrize("recipe", ["finetune", "deit3"])
def test_weights_of_a_run_bring_its_size_and_options(
    trained: tuple[Path, Result], photos: Path, tmp_path: Path, recipe: str, name: tuple[str, ...]
) -> None:
    """A recipe's own size, crop and options (deit3 has all three) give way; what is asked for does not."""
    if not name and recipe == "deit3":  # which has an architecture of its own
        name = ("--model", "deit_tiny_patch16_224")
    weights, few = trained[0] / "model.safetensors", ("--epochs", "1", "--batch-size", "8", "--workers", "0")
    few = (
        *few,
        "--device",
        "cpu",
        "--set",
        "trackers=[]",
        "--set",
        "schedule.warmup_epochs=0",
        "--set",
        "ema.decay=0.9",
    )
    start = ("train", photos, "--weights", weights, "--recipe", recipe, *name, *few)
    done = run(*start, "--out", tmp_path / "on")
    assert done.exit_code == 0, done.output
    assert f"start      {weights}, all of it" in done.stdout
    old, new = (json.loads((out / "config.json").read_text()) for out in (trained[0], tmp_path / "on"))
    for key in ("input_size", "crop_pct", "label_names"):
        assert new["pretrained_cfg"][key] == old["pretrained_cfg"][key]
    larger = run(*start, "--img-size", "48", "--out", tmp_path / "larger")
    assert larger.exit_code == 0, larger.output
    assert "input 3 x 48 x 48" in larger.stdout
    assert "by its own record: input 32x32 (not 224x224); but data.image_size=48, as asked for" in larger.stdout


def test_a_dry_run_freezes_and_refuses_as_the_run_does(
    trained: tuple[Path, Result], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning: list[set[str]] = []
    original = rehearsal.update

    def watched(which: Run, *args: Any) -> Any:
        learning.append({name for name, weight in which.model.named_parameters() if weight.requires_grad})
        return original(which, *args)

    monkeypatch.setattr(rehearsal, "update", watched)
    probe = ("--recipe", "linear-probe", "--set", "freeze.thaw_every=1")
    start = ("train", photos, "--model", trained[0], *probe, "--dry-run")
    few = ("--batch-size", "8", "--workers", "0", "--device", "cpu")
    shown = run(*start, *few, "--out", tmp_path / "probe")
    assert shown.exit_code == 0, shown.output
    assert all(names == {"head.weight", "head.bias"} for names in learning)
    assert learning
    assert "already holds a run" in one_line(run(*start, *few, "--out", trained[0]))
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in one_line(run(*start, *few, "--out", tmp_path / "file"))


def test_more_epochs_are_another_run_that_goes_on(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start = ("train", photos, "--model", "deit_tiny_patch16_224", "--from-scratch", "--out", out)
    assert run(*start, *settings()).exit_code == 0
    more = run("train", "--resume", out, "--set", "epochs=4")
    assert more.exit_code == 0, more.output
    assert "resumed    epoch 3, step 0 of 3\nnote       another run: 2 epochs were asked for" in more.stdout
    assert "now 4; the schedule is laid out anew" in more.stdout
    assert len((out / "metrics.csv").read_text().splitlines()) == 1 + 4
    assert "of 2 epochs after epoch 2" in (out / "config.yaml").read_text()
    again = run("train", "--resume", out)  # its own record has the new number
    assert "after the last of 4 epochs" in again.stdout
    assert "another run" not in again.stdout
    fewer = run("train", "--resume", out, "--epochs", "3")
    assert "epochs=3: the run is in epoch 4" in one_line(fewer)
    assert fewer.exit_code == 1


@pytest.mark.parametrize(
    "given",
    [
        ("--epochs", "0"),
        ("--lr", "-1"),
        ("--batch-size", "0"),
        ("--img-size", "0"),
        ("--workers", "-1"),
        ("--seed", "-1"),
        ("--device", "gpu"),
        ("--set", "optim.lr=fast"),
        ("--set", "epochs"),
        ("--recipe", "none"),
        ("--weights", "none.safetensors"),
        ("--config", "none.yaml"),
        ("--resume", "none"),
        ("--epochs", "3", "--set", "epochs=3"),
        ("--set", "augment.auto_augment=none"),
        ("--set", "augment.auto_augment=rand-q9"),
        ("--label-column", "kind"),
        ("--out", "file.txt"),
        ("--model", "folder"),
        ("--model", "model.onnx"),
    ],
)
def test_a_wrong_value_is_wrong_usage(
    given: tuple[str, ...], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name in ("file.txt", "model.onnx"):
        Path(name).touch()
    out = () if {"--resume", "--out"} & set(given) else ("--out", tmp_path / "x")
    result = run("train", photos, "--model", "dla46_c", *out, *given)
    assert result.exit_code == 2, result.output
    assert one_line(result)
    assert not result.stdout


def test_a_folder_called_as_an_architecture_hides_it_from_no_command(
    trained: tuple[Path, Result], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained[0], tmp_path / "deit_tiny_patch16_224")
    (tmp_path / "dla46_c").mkdir()
    monkeypatch.chdir(tmp_path)
    start = ("--model", "deit_tiny_patch16_224", "--from-scratch", "--out", "run")
    assert run("train", photos, *start, *settings("epochs=1")).exit_code == 0
    weights = load_model("dla46_c.tin100").pretrained_cfg["file"]
    assert load_model("dla46_c", weights=weights).num_classes == 100


def test_a_damaged_checkpoint_is_one_line(trained: tuple[Path, Result], tmp_path: Path) -> None:
    out = shutil.copytree(trained[0], tmp_path / "run")
    max((out / "checkpoints").iterdir()).write_bytes(b"damaged")
    call = [sys.executable, "-m", "vertebra", "train", "--resume", str(out)]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.startswith("vertebra: ")
    assert done.stderr.endswith("cannot be read: File is not a zip file; going on from the one before it\n")
    assert done.stderr.count("\n") == 1


def test_a_runs_folder_names_an_architecture_for_other_weights(trained: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    done = run("convert", trained[0] / "model.safetensors", "--model", trained[0], "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "deit_tiny_patch16_224, 3 classes" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_a_terminal_cannot_show_are_escaped(
    trained: tuple[Path, Result], photos: Path, tmp_path: Path, encoding: str
) -> None:
    strange = shutil.copytree(photos, tmp_path / "my \u043a\u043e\u0442")
    call = [sys.executable, "-m", "vertebra", "doctor", str(strange)]
    done = subprocess.run(call, env=environment(PYTHONIOENCODING=encoding), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vertebra train '" in done.stdout
    assert "my \\u043a\\u043e\\u0442' --model NAME" in done.stdout


def test_offline_it_says_what_training_can_start_from(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vertebra.hub.fetch.reachable", lambda _: False)
    told = one_line(run("train", photos, "--model", "dla46_c.in1k", "--out", "x", *settings()[4:]))
    assert "give a local file with --weights FILE, start --from-scratch, or from what the package brings" in told


def test_without_data_it_says_so() -> None:
    assert "no data" in one_line(run("train", "--model", "dla34"))


def test_recipes_are_listed_and_shown() -> None:
    listed = run("recipes").stdout
    assert [line.split()[0] for line in listed.splitlines()][:3] == ["finetune", "linear-probe", "small"]
    shown = run("recipes", "deit").stdout
    assert shown.startswith("# DeiT on ImageNet-1k")
    assert "auto_augment: rand-m9-mstd0.5-inc1" in shown
    assert "did you mean 'deit'" in one_line(run("recipes", "deitt"))


def test_classes_are_matched_by_name_or_through_a_table(photos: Path, tmp_path: Path) -> None:
    known = ("oak", "yew", "elm", "ash")
    part = validation_split(photos, known, 4, split=None, names=None).part
    assert part.labels == (3,) * 10 + (2,) * 10 + (0,) * 10
    table = tmp_path / "names.csv"
    table.write_text("folder,name\nash,Ash tree\nelm,Elm\noak,Oak\n")
    named = validation_split(photos, ("Elm", "Oak", "Ash tree"), 3, split=None, names=str(table)).part
    assert set(named.labels) == {0, 1, 2}
    assert named.labels[0] == 2
    with pytest.raises(VertebraError, match=r"class 'ash' of .* is none of the 2"):
        validation_split(photos, ("yew", "elm"), 2, split=None, names=None)
    with pytest.raises(VertebraError, match="have no names"):
        validation_split(photos, None, 5, split=None, names=None)
    assert len(open_dataset(photos).classes) == len(
        set(validation_split(photos, None, 3, split=None, names=None).part.labels)
    )


def test_metrics_are_those_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
        multiclass_f1_score,
        multiclass_recall,
    )

    logits, labels = 2 * torch.randn(300, 7), torch.randint(0, 6, (300,))
    p = logits.softmax(-1)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    found = measure(Answers(torch.arange(300), labels, p.topk(5).indices, p.max(-1).values, losses), 7)
    assert found.top1 == pytest.approx(float(multiclass_accuracy(p, labels, 7, average="micro")))
    assert found.top5 == pytest.approx(float(multiclass_accuracy(p, labels, 7, average="micro", top_k=5)))
    assert found.macro_f1 == pytest.approx(float(multiclass_f1_score(p, labels, 7)))
    assert found.ece == pytest.approx(float(multiclass_calibration_error(p, labels, 7, n_bins=15)), abs=1e-6)
    assert found.recall[:6] == pytest.approx(multiclass_recall(p, labels, 7, average="none")[:6].tolist())
    assert found.loss == pytest.approx(float(losses.mean()))
    empty = measure(Answers(*(t[:0] for t in (labels, labels, p.topk(5).indices, losses, losses))), 7)
    assert empty.images == 0
    assert empty.top1 != empty.top1
    assert module.BEST == 5


def test_what_is_no_number_is_null_in_json() -> None:
    none = torch.empty(0)
    answers = Answers(none.long(), none.long(), torch.empty(0, 2).long(), none, none)
    record = as_record(Evaluation(measure(answers, 2, skipped=3), answers, []), ("ash", "elm"))
    assert json.loads(json.dumps(record, allow_nan=False))["loss"] is None
    assert record["classes"][0] == {"name": "ash", "recall": None, "precision": None, "f1": None, "images": 0}
    several = MultiAnswers(none.long(), torch.empty(0, 2).bool(), torch.empty(0, 2), none)
    record = as_record(MultiEvaluation(measure_several(several), several, []), ("ash", "elm"))
    assert json.loads(json.dumps(record, allow_nan=False))["map"] is None
    assert without_nan({"epoch": {"val_loss": float("inf"), "epoch": 1}}) == {"epoch": {"val_loss": None, "epoch": 1}}


def test_a_dry_run_shows_what_a_run_would_do_and_leaves_no_run(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    plain = (
        "augment.color_jitter=0",
        "augment.auto_augment=null",
        "augment.re_prob=0",
        "augment.mixup=0",
        "augment.cutmix=0",
    )
    done = run(
        "train",
        photos,
        "--model",
        "deit_tiny_patch16_224",
        "--from-scratch",
        "--dry-run",
        "--out",
        out,
        *settings(*plain),
    )
    assert done.exit_code == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line[:1].strip()}
    assert {"settings", "data", "model", "steps", "picture", "time", "memory", "dry"} <= lines.keys()
    assert "for 2 epochs" in lines["time"]
    assert " GB" in lines["memory"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.first-batch.png"]
    assert str(tmp_path / "run.first-batch.png") in lines["picture"]
    with Image.open(tmp_path / "run.first-batch.png") as page:
        levels = np.asarray(page.convert("RGB"))
    assert levels.std() > 1
    later = run("train", photos, "--model", "deit_tiny_patch16_224", "--from-scratch", "--out", out, *settings())
    assert later.exit_code == 0, later.stderr


def test_a_dry_run_raises_what_the_run_would(photos: Path, tmp_path: Path) -> None:
    done = run(
        "train", tmp_path / "none", "--model", "deit_tiny_patch16_224", "--from-scratch", "--dry-run", *settings()
    )
    assert done.exit_code == 1
    assert "none" in one_line(done)
    done = run("train", "--dry-run", "--resume", "auto", photos, "--model", "deit_tiny_patch16_224", *settings())
    assert done.exit_code == 2
