"""The parts of a run that need neither a model nor a step: names, the table of its split, workers."""

from __future__ import annotations

import csv
import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import InitProcessGroupKwargs

from vertebra.data.datasets import Dataset, Part
from vertebra.data.members import Member
from vertebra.engine import setup
from vertebra.engine.config import RunConfig
from vertebra.engine.settings import with_settings
from vertebra.engine.setup import readable, split_table
from vertebra.spec import VertebraError


def test_all_cores_but_one_read_up_to_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for allowed, workers in ((1, 1), (2, 2), (4, 3), (9, 8), (16, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=allowed: set(range(n)), raising=False)
        assert setup._workers(RunConfig()) == workers
    assert setup._workers(with_settings(RunConfig(), ["data.workers=5"])) == 5


def test_processes_wait_for_the_one_that_asks_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def accelerator(**options: Any) -> SimpleNamespace:
        made.append(options)
        return SimpleNamespace(num_processes=1)

    monkeypatch.setattr(setup, "Accelerator", accelerator)
    asks = with_settings(RunConfig(), ["device=cpu", "distill.teacher=dla34", f"distill.cache={tmp_path}"])
    for config in (asks, with_settings(asks, ["distill.cache=null"])):
        setup.make_accelerator(config, tmp_path)
    waits = [[h for h in one["kwargs_handlers"] if isinstance(h, InitProcessGroupKwargs)] for one in made]
    assert [len(own) for own in waits] == [1, 0]
    assert waits[0][0].to_kwargs() == {"timeout": timedelta(hours=6)}  # and no other backend than the device's


def test_folders_are_called_as_a_table_says_and_no_two_alike(tmp_path: Path) -> None:
    table = tmp_path / "names.csv"
    table.write_text("index,synset,name\n0,n01,crane\n1,n02,eel\n2,n03,crane\n")
    assert readable(["n02", "n01"], str(table)) == ("eel", "crane")
    assert readable(["1", "2"], str(table)) == ("eel", "crane")
    with pytest.raises(VertebraError, match=r"names.csv: calls both 'n01' and 'n03' 'crane'; give each class a name"):
        readable(["n01", "n02", "n03"], str(table))
    table.write_text("folder,name\nash,Ash\noak\n")
    with pytest.raises(VertebraError, match=r"names.csv: class 'oak' has no name; give each class one"):
        readable(["ash", "oak"], str(table))
    table.write_text("index,synset,name\n0,n01,crane\n")
    with pytest.raises(
        VertebraError, match=r"needs a header with a column 'name'.*as 'n09'; it has index, synset, name"
    ):
        readable(["n09"], str(table))
    (tmp_path / "names.csv").write_text('folder,name\nn01,"a\nb"\nn03,c\n')
    with pytest.raises(VertebraError, match=r"names.csv: class 'a\\nb' holds a line break"):
        readable(("n01", "n03"), str(tmp_path / "names.csv"))


def test_tables_of_known_data(shared_data: Path) -> None:
    def all_of(table: Path) -> tuple[str, ...]:
        with table.open(newline="") as file:
            return readable([row["synset"] for row in csv.DictReader(file)], str(table))

    assert len(set(all_of(shared_data / "tiny-imagenet-100" / "classes.csv"))) == 100
    with pytest.raises(
        VertebraError, match="calls both 'n02012849' and 'n03126707' 'crane'"
    ):  # the bird and the machine
        all_of(shared_data / "imagenet1k_classes.csv")


def test_the_table_of_a_split_is_csv_whatever_names_hold() -> None:
    names = ("a.png", 'b, "c".png', "d\n.png")
    part = Part(tuple(Member(f"x/{name}", name, 1) for name in names), ((0, 1), (), (1,)), 2)
    text = split_table(Dataset("x", ("cat", "dog, wild"), {"train": part}))
    assert text == (
        'split,label,image\ntrain,"cat|dog, wild",x/a.png\ntrain,,"x/b, ""c"".png"\ntrain,"dog, wild","x/d\n.png"\n'
    )
    assert list(csv.reader(text.splitlines(keepends=True)))[2:] == [
        ["train", "", 'x/b, "c".png'],
        ["train", "dog, wild", "x/d\n.png"],
    ]
