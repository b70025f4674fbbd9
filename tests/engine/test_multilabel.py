"""Any number of classes an image, from the table to the answer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score
from typer.testing import CliRunner, Result

import vertebra
from tests.engine.conftest import tiny_run
from vertebra.cli import app
from vertebra.data.tables import Columns
from vertebra.engine import outdir
from vertebra.engine.config import RunConfig
from vertebra.engine.multilabel import MultiAnswers, measure, settle, smoothed
from vertebra.engine.progress import Progress
from vertebra.engine.report import SAMPLES, Reporter
from vertebra.engine.settings import with_settings
from vertebra.engine.setup import build
from vertebra.engine.train import Result as Done
from vertebra.engine.train import train
from vertebra.engine.validate import validation_split
from vertebra.spec import VertebraError

NAMES = ("ash", "elm", "oak")
SEVERAL = ("data.label_separator=|", "loss.kind=bce")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], prog_name="vertebra")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each class is a colour channel; images have none to three of them."""
    root = tmp_path_factory.mktemp("several")
    numbers, lines = np.random.default_rng(3), ["path,label"]
    for i in range(48):
        has = numbers.random(3) < (0.5, 0.4, 0.3)
        levels = numbers.integers(0, 60, (36, 36, 3)) + has * 180
        Image.fromarray(levels.astype(np.uint8)).save(root / f"{i}.png")
        lines.append(f"{i}.png,{'|'.join(n for n, there in zip(NAMES, has, strict=True) if there)}")
    path = root / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Mixed, smoothed, averaged, weighed: what recipes switch on must go with rows."""
    out = tmp_path_factory.mktemp("runs") / "several"
    more = ("epochs=6", "optim.lr=0.01", "ema.decay=0.8", "data.val_share=0.25", "loss.balance=true")
    more = (*more, "augment.auto_augment=null", "augment.cutmix=0", "augment.re_prob=0")
    return train(tiny_run(table, *SEVERAL, *more), out)


def test_a_run_learns_them_and_keeps_the_epoch_of_the_best_map(trained: Done) -> None:
    rows = list(csv.DictReader((trained.out / "metrics.csv").read_text().splitlines()))
    assert {"val_map", "val_macro_f1", "val_micro_f1", "val_ece"} <= rows[0].keys()
    maps = [float(row["val_map"]) for row in rows]
    assert maps[-1] > 0.9
    assert maps[trained.best_epoch - 1] == max(maps)
    record = json.loads((trained.out / "validation.json").read_text())
    assert record["map"] == pytest.approx(max(maps), abs=1e-5)
    assert [row["name"] for row in record["classes"]] == list(NAMES)
    assert record["map"] == pytest.approx(np.mean([row["ap"] for row in record["classes"]]), abs=1e-5)


@pytest.mark.parametrize("mixes", [True, False])
def test_the_report_names_every_class_of_a_sample_and_none(
    trained: Done, table: Path, tmp_path: Path, mixes: bool
) -> None:
    text = (trained.out / "report.html").read_text()
    assert "Finished, epoch 6 of 6" in text
    assert "What the network sees" in text
    off = () if mixes else ("augment.mixup=0", "augment.cutmix=0")
    run = build(tiny_run(table, *SEVERAL, *off), tmp_path)
    captions = [sample.caption for sample in Reporter(run, tmp_path, Progress(None))._samples]
    assert len(captions) == SAMPLES
    if not mixes:
        own = [run.train.part.classes_of(int(i)) for i in run.train.peek(SAMPLES).indices]
        assert () in own
        assert max(map(len, own)) > 2
        assert captions == [", ".join(NAMES[label] for label in labels) or "no class" for labels in own]


def test_its_answers_are_sigmoids_wherever_it_is_loaded(trained: Done, table: Path, tmp_path: Path) -> None:
    config = json.loads((trained.out / "config.json").read_text())
    assert config["multi_label"] is True
    assert "multi_label" not in config["pretrained_cfg"]  # which timm reads, and refuses what it does not know
    model = vertebra.load_model(trained.out)
    predictor = vertebra.Predictor(model, optimize=False)
    prepared = predictor.prepare(table.parent / "0.png").unsqueeze(0)
    (answer,) = predictor.answer(prepared)
    with torch.inference_mode():
        expected = model(prepared)[0].sigmoid()
    assert dict(zip(answer.indices, answer.probabilities, strict=True)) == pytest.approx(
        dict(enumerate(expected.tolist())), abs=1e-5
    )
    alone = vertebra.Predictor(vertebra.load_model(trained.out / "model.safetensors"), optimize=False)
    assert alone.answer(prepared)[0] == answer
    other = vertebra.load_model(trained.out, num_classes=2)
    vertebra.hub.save.save_model(other, tmp_path / "again.safetensors")
    assert vertebra.load_model(tmp_path / "again.safetensors").pretrained_cfg["multi_label"] is True


def test_the_commands_read_it_as_it_was_trained(
    trained: Done, table: Path, tmp_path: Path, unchecked_shapes: None
) -> None:
    said = run("validate", table, "--model", trained.out, "--workers", "0")
    assert said.exit_code == 0, said.output
    lines = {line.split()[0]: line.split()[1:] for line in said.stdout.splitlines()}
    assert lines["class"] == ["AP", "recall", "precision", "f1", "images"]
    assert float(lines["mAP"][0].rstrip("%")) > 90
    assert lines["split"] == ["val", "(10", "images,", "held", "out", "by", "the", "run)"]
    assert lines["images"] == ["10"]
    record = json.loads((trained.out / "validation.json").read_text())
    assert float(lines["mAP"][0].rstrip("%")) == pytest.approx(100 * record["map"], abs=0.5)
    assert len(lines["ash"]) == 5
    answer = run("classify", table.parent / "0.png", "--model", trained.out, "--json")
    assert {p["label"] for p in json.loads(answer.stdout)["predictions"]} == set(NAMES)
    exported = run("export", trained.out, "--out", tmp_path / "m.pt2")
    assert exported.exit_code == 0, exported.output
    with_it = run("validate", table, "--model", tmp_path / "m.pt2", "--label-separator", "|", "--json", "--workers=0")
    assert json.loads(with_it.stdout)["map"] > 0.9
    without = run("validate", table, "--model", tmp_path / "m.pt2", "--workers", "0")
    assert "label_separator" in without.stderr
    refused = run("export", trained.out, "--out", tmp_path / "p.pt2", "--with-preprocess")
    assert "answers each of its classes by itself" in refused.stderr
    matrix = run("validate", table, "--model", trained.out, "--confusion", tmp_path / "c.csv")
    assert matrix.exit_code == 2
    assert "--confusion takes one class a photo" in matrix.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SEVERAL[:1], "and loss.kind=cross_entropy expects exactly one class per image; set loss.kind=bce"),
        ((*SEVERAL[:1], "loss.kind=focal"), "loss.kind=focal .*set loss.kind=bce"),
        ((*SEVERAL, "distill.teacher=dla34"), "leave distill.teacher out"),
        ((*SEVERAL, "data.label_columns=[ash, oak]"), "give one"),
        (("data.label_separator=", "loss.kind=bce"), "line .* has no path or no label"),
        (('data.label_separator=""',), "label_separator is empty"),
    ],
)
def test_what_wants_one_class_an_image_is_refused_at_once(
    table: Path, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(VertebraError, match=message):
        build(tiny_run(table, *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_hot_columns_are_one_class_an_image_for_cross_entropy(table: Path, tmp_path: Path) -> None:
    from vertebra.data.datasets import open_dataset

    hot = table.parent / "hot.csv"
    hot.write_text("path,ash,elm\n0.png,1,0\n1.png,0,1\n2.png,1,0\n")
    dataset = open_dataset(hot)
    single = settle(RunConfig(), dataset)
    assert (single.multi_label, single.parts["train"].labels) == (False, (0, 1, 0))
    assert settle(with_settings(RunConfig(), ["loss.kind=bce"]), dataset) is dataset
    assert validation_split(hot, ("elm", "ash"), 2, split=None, names=None).part.labels == (1, 0, 1)
    several = validation_split(hot, ("elm", "yew", "ash"), 3, split=None, names=None, multi_label=True).part
    assert (several.labels, several.classes) == (((2,), (0,), (2,)), 3)
    with pytest.raises(VertebraError, match="the model expects exactly one class per image; give one that was trained"):
        validation_split(table, NAMES, 3, split=None, names=None, columns=Columns(separator="|"))


def test_metrics_are_those_of_torchmetrics() -> None:
    p, true = torch.rand(200, 5), torch.rand(200, 5) > 0.7
    found = measure(MultiAnswers(torch.arange(200), true, p, torch.rand(200)))
    ap = MultilabelAveragePrecision(5, average="none")(p, true.long())
    assert found.average_precision == pytest.approx(ap.tolist())
    assert found.map == pytest.approx(float(ap.mean()))
    assert found.macro_f1 == pytest.approx(float(MultilabelF1Score(5)(p, true.long())))
    assert found.micro_f1 == pytest.approx(float(MultilabelF1Score(5, average="micro")(p, true.long())))
    assert found.occurs == true.sum(0).tolist()


def test_classes_without_images_count_in_no_mean() -> None:
    p, true = torch.rand(50, 4), torch.rand(50, 4) > 0.5
    true[:, 1:] = False
    found = measure(MultiAnswers(torch.arange(50), true, p, torch.rand(50)))
    assert found.map == found.average_precision[0]
    assert all(value != value for value in found.average_precision[1:])
    none = measure(MultiAnswers(torch.arange(0), true[:0], p[:0], torch.rand(0)), skipped=3)
    assert (none.images, none.skipped) == (0, 3)
    assert none.map != none.map


def test_smoothing_moves_yes_and_no_alike() -> None:
    assert smoothed(torch.tensor([[1.0, 0.0]]), 0.2)[0].tolist() == pytest.approx([0.9, 0.1])
    assert smoothed(torch.tensor([1, 0]), 0.2).tolist() == [1, 0]


def test_one_place_names_the_figure_that_counts(table: Path, tmp_path: Path) -> None:
    assert outdir.best([{"val_map": 0.2, "val_top1": 0.9}, {"val_map": 0.3, "val_top1": 0.1}]) == 2
    assert outdir.best([{"val_top1": 0.9}, {"val_top1": 0.1}]) == 1
    losses = (0.9, 0.5, float("nan"), 0.5)
    assert outdir.best([{"val_top1": 0.9, "val_loss": loss} for loss in losses]) == 2
    assert outdir.best([{"val_top1": top1, "val_loss": loss} for top1, loss in ((0.9, float("inf")), (0.1, 9.0))]) == 2
    plateau = "schedule={kind: plateau, patience: 0, warmup_epochs: 0}"
    done = train(tiny_run(table, *SEVERAL, plateau, "optim.lr=1e-12", "stop.patience=1", "epochs=9"), tmp_path / "run")
    assert done.stopped_early
    assert done.metrics[-1]["lr"] < done.metrics[0]["lr"]
