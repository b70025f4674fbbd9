"""`report.html`: all of it in one file, what others named cannot harm it, and it never touches the run."""

from __future__ import annotations

import io
import json
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.engine.conftest import tiny_run
from vertebra.data.datasets import Part
from vertebra.data.loader import Loader, Order
from vertebra.data.members import Member
from vertebra.engine import checkpoint
from vertebra.engine import train as module
from vertebra.engine.evaluate import Answers, Evaluation, measure
from vertebra.engine.outdir import REPORT
from vertebra.engine.progress import Progress
from vertebra.engine.report import MISTAKES, SAMPLES, Reporter, mistakes_in
from vertebra.engine.report_charts import Line, chart
from vertebra.engine.report_page import SQUARE, Page, Photo, render, safe
from vertebra.engine.setup import build
from vertebra.engine.state import State
from vertebra.engine.train import InterruptedRunError, train

HOSTILE = "<script>alert(1)</script>\"'\u202e\x1b[31m\udcff"


class Seen(HTMLParser):
    """The tags of a page, what they load, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page(out: Path) -> Seen:
    return Seen((out / REPORT).read_text())


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_run(photos), out)
    return out


def test_a_run_leaves_a_report_that_needs_nothing_beside_it(finished: Path) -> None:
    seen = page(finished)
    assert all(load.startswith("data:image/jpeg;base64,") for load in seen.loads)
    assert not {"script", "link", "iframe", "object", "form"} & set(seen.tags)
    assert "default-src 'none'" in (finished / REPORT).read_text()
    assert (finished / REPORT).stat().st_size < 2_000_000
    mistakes = json.loads((finished / "validation.json").read_text())["mistakes"]
    assert len(seen.loads) == len(mistakes) + SAMPLES
    assert seen.tags.count("svg") == 3
    for words in (
        "Finished, epoch 2 of 2",
        "class0",
        "What the network sees",
        "deit_tiny_patch16_224",
        "33 train, 3 val images",
        "Confusion",
    ):
        assert words in seen.text


def test_while_the_run_goes_the_report_is_of_its_last_epoch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that is no better than those before, too."""
    seen: list[str] = []
    write = Reporter.write

    def watched(self: Reporter, state: State, status: str) -> None:
        write(self, state, status)
        seen.append(page(tmp_path / "run").text)

    monkeypatch.setattr(Reporter, "write", watched)
    train(tiny_run(photos, "epochs=3", "optim.lr=1e-9", "ema.decay=null"), tmp_path / "run")
    said = ("Running, epoch 1 of 3", "Running, epoch 2 of 3", "Finished, epoch 3 of 3")
    assert [words in text for words, text in zip(said, seen, strict=True)] == [True] * 3
    assert "answers are those of the best, epoch 1" in seen[1]


def test_writing_it_draws_no_random_number_and_costs_no_step(finished: Path, photos: Path, tmp_path: Path) -> None:
    run = build(tiny_run(photos), tmp_path)
    before, weights = checkpoint.random_state(), [p.clone() for p in run.model.parameters()]
    Reporter(run, tmp_path, Progress(None)).write(State(), "Running")
    after = checkpoint.random_state()
    assert before["python"] == after["python"]
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"]["state"]["key"], after["numpy"]["state"]["key"])
    assert before["numpy"]["state"]["pos"] == after["numpy"]["state"]["pos"]
    assert all(torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))
    assert page(tmp_path).text.count("No epoch has ended yet") == 1


def test_a_run_without_reports_computes_the_same(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reporter, "write", lambda *_: None)
    train(tiny_run(photos), tmp_path / "run")
    ours, theirs = (checkpoint.load_latest(out)["model"] for out in (tmp_path / "run", finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (tmp_path / "run" / REPORT).exists()


def test_what_cannot_be_written_costs_a_line_and_no_run(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / REPORT).mkdir(parents=True)
    said = io.StringIO()
    done = train(tiny_run(photos, "epochs=1"), tmp_path / "run", console=Console(file=said, width=1000))
    assert done.best_epoch == 1
    (line,) = [line for line in said.getvalue().splitlines() if line.startswith("report ")]
    assert "not written: cannot write" in line


def test_ctrl_c_leaves_one_and_a_resumed_run_shows_the_mistakes_of_its_best_epoch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = module.update, list[int]()

    def update(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(0)
        if len(calls) == 5:  # of 4 an epoch
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(module, "update", update)
    config = tiny_run(photos)
    with pytest.raises(InterruptedRunError):
        train(config, tmp_path)
    assert "Interrupted, epoch 1 of 2" in page(tmp_path).text
    record = json.loads((tmp_path / "validation.json").read_text())
    mine = {"index": 0, "image": HOSTILE, "true": "class0", "answer": "class2", "confidence": 0.625}
    (tmp_path / "validation.json").write_text(json.dumps({**record, "mistakes": [mine], "top1": 0.987}))
    monkeypatch.setattr(module.outdir, "write_model", lambda *_: None)
    train(config, tmp_path, resume=True)
    seen = page(tmp_path)
    assert "Finished, epoch 2 of 2" in seen.text
    assert "class0said class2 62%" in seen.text
    assert "98.7%" in seen.text
    assert "script" not in seen.tags


def test_mistakes_are_the_surest_wrong_answers(tmp_path: Path) -> None:
    count = 40
    labels, said = torch.zeros(count, dtype=torch.long), torch.arange(count) % 2  # every other one is wrong
    best = torch.stack([said, 1 - said], 1)
    confidence = torch.linspace(0.5, 0.99, count)
    order = torch.arange(count) + 100
    answers = Answers(order, labels, best, confidence, torch.ones(count))
    part = Part(tuple(Member(str(tmp_path / f"{i}.png"), f"{i}.png", 1) for i in range(140)), (0,) * 140)
    found = mistakes_in(Evaluation(measure(answers, 2), answers, []), part, ("cat", "dog"))
    assert [one["index"] for one in found] == list(range(139, 99, -2))[:MISTAKES]
    assert found[0] == {
        "index": 139,
        "image": str(tmp_path / "139.png"),
        "true": "cat",
        "answer": "dog",
        "confidence": 0.99,
    }


def made(classes: int, name: str = "") -> Page:
    names = [f"{name}class {i}" for i in range(classes)]
    confusion = [[9 if i == j else 3 * ((i + 1) % classes == j) for j in range(classes)] for i in range(classes)]
    rows = [{"name": n, "recall": 0.75, "precision": None, "f1": 0.5, "images": 12} for n in names]
    jpeg = io.BytesIO()
    Image.new("RGB", (9, 9)).save(jpeg, "JPEG")
    photo = Photo(jpeg.getvalue(), f"{name}a", f"{name}b", f"{name}c.jpg")
    epoch = {"epoch": 1, "train_loss": float("nan"), "val_loss": 1.0, "val_top1": 0.5, "lr": 1e-5, "images_per_s": 3.0}
    return Page(
        title=f"{name}title",
        status=name,
        facts=[(name, name)],
        rows=[epoch],
        best=1,
        record={"top1": 0.75, "classes": rows, "confusion": confusion},
        mistakes=[photo],
        samples=[photo],
        settings=name,
    )


@pytest.mark.parametrize("classes", [3, SQUARE + 1])
def test_names_cannot_harm_it(classes: int) -> None:
    text = render(made(classes, HOSTILE))
    seen = Seen(text)
    assert text.encode()
    assert seen.tags == Seen(render(made(classes))).tags
    assert "<script>alert(1)</script>" in seen.text
    assert not {"\u202e", "\x1b", "\udcff"} & set(text)
    assert safe(HOSTILE) == "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;\\u202e\\x1b[31m\\xff"


def test_many_classes_show_the_pairs_most_confused() -> None:
    few, many = (Seen(render(made(classes))).text for classes in (SQUARE, SQUARE + 1))
    assert "Most confused" not in few
    assert "Confusion" in few
    assert "Confusion" not in many
    assert "class 0class 1 3 of 12" in many


def test_a_chart_shows_what_is_finite() -> None:
    svg = chart("Loss", [1, 2, 3, 4], [Line("a", [1.0, 2.0, float("nan"), 3.0]), Line("b", [float("inf")] * 4)], best=2)
    assert svg.count('class="l l0"') == 1
    assert svg.count("<circle") == 1
    assert "nan" not in svg
    assert "inf" not in svg
    assert "1.25e-4" in chart("Rate", [1, 2], [Line("a", [1e-4, 2e-4])])
    assert "50%" in chart("Top", [1, 2], [Line("a", [0.5, 0.5])], percent=True)


def test_peeking_at_a_loader_shows_the_first_step_and_disturbs_none(photos: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    part = Part(tuple(Member(str(f), f.name, f.stat().st_size) for f in files), (0,) * len(files))

    def read(content: bytes) -> torch.Tensor:
        return torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)

    loader = Loader(part, read, Order(images=len(files), batch_size=8), workers=0)
    steps = loader.epoch(0)
    first, state = next(steps), torch.get_rng_state()
    peeked = loader.peek(8)
    assert torch.equal(peeked.images, first.images)
    assert peeked.indices.tolist() == first.indices.tolist()
    assert torch.equal(torch.get_rng_state(), state)
    assert next(steps).indices.tolist() == [p.image for p in loader.order.places(0)[8:16]]
