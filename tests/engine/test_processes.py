"""A run spread over processes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import vertebra
from tests.engine.conftest import (
    EXACT,
    make_photos,
    on_two,
    table,
    tiny_run,
)
from vertebra.data.datasets import open_dataset
from vertebra.data.holdout import with_validation
from vertebra.data.loader import Order
from vertebra.engine import checkpoint, together
from vertebra.engine.checkpoint import CheckpointError
from vertebra.engine.settings import with_settings
from vertebra.engine.train import train
from vertebra.engine.validate import validate


def test_two_processes_compute_what_one_does(photos: Path, tmp_path: Path) -> None:
    plain = ["augment.mixup=0", "augment.cutmix=0", "augment.re_prob=0", "model.drop_rate=0", "model.drop_path_rate=0"]
    config = tiny_run(photos, *plain)
    train(config, tmp_path / "one")
    on_two(config, tmp_path / "two")
    rows = [table(tmp_path / name) for name in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        for key in ("train_loss", "val_loss", "val_top1"):
            assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-3), key
    records = [json.loads((tmp_path / name / "validation.json").read_text()) for name in ("one", "two")]
    assert records[0]["images"] == records[1]["images"] == 3


@pytest.mark.parametrize("more", [(), ("loss.balance=true",)])
def test_two_processes_learn_as_one_does_whatever_cannot_be_read(more: tuple[str, ...], tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", each=8)
    for label, name in ((0, "00"), (0, "01"), (0, "02"), (1, "03"), (2, "04"), (0, "05"), (0, "06")):
        (photos / f"class{label}" / f"{name}.png").write_bytes(b"no image")
    config = tiny_run(photos, *EXACT, *more, "data.batch_size=4", "optim.accumulate=3")
    on_two(config, tmp_path / "two")
    train(with_settings(config, ["data.batch_size=12", "optim.accumulate=1"]), tmp_path / "one")
    one, two = (checkpoint.load_latest(tmp_path / name)["model"] for name in ("one", "two"))
    assert max((two[key] - one[key]).abs().max() for key in one) < 2e-5
    assert float(table(tmp_path / "two")[0]["train_loss"]) == pytest.approx(
        float(table(tmp_path / "one")[0]["train_loss"]), rel=1e-5
    )


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
    on_two(config, out)
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
    assert "no training is left; it was on 2 processes, on 1 it draws other numbers" in text.getvalue()


def test_the_first_process_chooses_the_checkpoint_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = SimpleNamespace(is_main_process=True)
    assert together.saved(run, tmp_path, resume=True) is None
    checkpoint.save(tmp_path, 7, {"value": 1})
    assert together.saved(run, tmp_path, resume=False) is None
    first = together.saved(run, tmp_path, resume=True)
    assert first is not None
    assert first["step"] == 7
    run.is_main_process = False
    monkeypatch.setattr(together, "broadcast_object_list", lambda _: [None])
    assert together.saved(run, tmp_path, resume=True) is None
    monkeypatch.setattr(together, "broadcast_object_list", lambda _: [7])
    assert together.saved(run, tmp_path, resume=True) == first
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-000000007.pt, from which the first process"):
        together.saved(run, tmp_path / "elsewhere", resume=True)
