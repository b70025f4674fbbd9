"""Cache, buckets, comparison and choice, each by itself."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import rich
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import vertebra
from tests.runtime.conftest import Fake
from vertebra.cli import app
from vertebra.runtime import buckets, cache, choose, inductor, interpreter, machine
from vertebra.runtime.backend import BackendError
from vertebra.runtime.compare import compare
from vertebra.runtime.graph import quiet
from vertebra.runtime.int8 import _undrawn
from vertebra.runtime.verify import BOUNDS, VerificationError, check, made_up_images
from vertebra.spec import VertebraError, files

CPU = torch.device("cpu")


@given(st.integers(1, 3000), st.sampled_from([1, 2, 32, 256]))
def test_buckets_hold_every_image_and_little_else(count: int, largest: int) -> None:
    cut = buckets.parts(count, largest)
    assert sum(taken for taken, _ in cut) == count
    for taken, bucket in cut:
        assert 0 < taken <= bucket <= largest
        assert bucket & (bucket - 1) == 0
        assert (bucket - taken) / bucket <= buckets.WASTE


@pytest.mark.parametrize(("allowed", "processes", "share"), [(16, None, 16), (16, "4", 4), (2, "4", 1), (1, "1", 1)])
def test_processes_of_one_torchrun_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, allowed: int, processes: str | None, share: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert machine.cores() == share


@given(st.integers(1, 40))
def test_bucketed_answers_are_in_order(count: int) -> None:
    sizes = list[int]()

    def call(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part * 2

    x = torch.arange(count).float().reshape(-1, 1)
    assert torch.equal(buckets.run(call, x, 8), x * 2)
    assert set(sizes) <= {1, 2, 4, 8}


def test_an_artefact_is_whole_or_absent(tmp_path: Path) -> None:
    entry = tmp_path / "compiled" / "one"
    with pytest.raises(FileNotFoundError), cache.building(entry) as folder:
        (folder / "part").write_text((folder / "absent").read_text())
    assert not list(entry.parent.iterdir())
    with cache.building(entry) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "part").write_text("first")
        assert not cache.whole(entry)
    assert cache.whole(entry)
    with cache.building(entry) as folder:  # another process made it meanwhile
        (folder / "part").write_text("second")
    assert (entry / "inner" / "part").read_text() == "first"
    (entry / "inner" / "part").write_text("shorter or longer")
    assert not cache.whole(entry)
    with cache.building(entry) as folder:
        (folder / "part").write_text("third")
    assert (entry / "part").read_text() == "third"
    assert [e.name for e in entry.parent.iterdir()] == ["one"]


def test_what_was_wanted_longest_ago_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_CACHE_GB", "0.0000035")
    for age, name in enumerate("abc"):
        with cache.building(tmp_path / name) as folder:
            (folder / "file").write_bytes(bytes(1000))
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    cache.used(tmp_path / "a")
    with cache.building(tmp_path / "d") as folder:
        (folder / "file").write_bytes(bytes(1000))
    assert sorted(e.name for e in tmp_path.iterdir()) == ["a", "c", "d"]


@pytest.mark.parametrize("given", ["20GB", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_told_before_anything_is_compiled(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERTEBRA_CACHE_GB", given)
    message = f"VERTEBRA_CACHE_GB='{given}': give a number of gigabytes"
    with pytest.raises(VertebraError, match=message), cache.building(tmp_path / "a"):
        pytest.fail("something was compiled")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("VERTEBRA_CACHE_GB", "")
    assert cache.limit() == 20e9


def test_what_is_half_made_is_no_artefact_to_prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_CACHE_GB", "0")
    (tmp_path / f"{files.prefix_of(os.getppid())}x").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_bytes(b"1")
    with cache.building(tmp_path / "a"):
        pass
    assert sorted(e.name for e in tmp_path.iterdir()) == [f"{files.prefix_of(os.getppid())}x", "a"]


def test_another_process_that_prunes_costs_no_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Path) -> int:
        raise FileNotFoundError("removed by another process")

    monkeypatch.setattr(cache, "size", gone)
    with cache.building(tmp_path / "a"):
        pass
    assert cache.whole(tmp_path / "a")


def test_a_fresh_interpreter_sees_the_package_and_nothing_of_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not the real one')")
    (tmp_path / "vertebra.py").write_text("raise SystemExit('not the real one')")
    for module in ("json.tool", "vertebra"):
        done = subprocess.run(
            interpreter.command(module, *(["--version"] if module == "vertebra" else [])),
            env=interpreter.environment(),
            cwd=tmp_path,
            input="[]",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "not the real one" not in done.stderr


def test_silence_is_for_the_exporters_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet(), _undrawn():
        print("of another thread")  # noqa: T201
        rich.print("a bar")
    rich.print("afterwards")
    assert capsys.readouterr().out == "of another thread\nafterwards\n"


def test_int8_on_a_gpu_is_for_models_that_work_with_linear_layers() -> None:
    inductor.check_quantisable(vertebra.create_model("deit_tiny_distilled_patch16_224", device="meta"))
    for arch in ("dla46_c", "dpn68", "regnetx_002", "cspresnet50"):
        with pytest.raises(BackendError, match="this model has none besides its classifier; use dtype='bf16'"):
            inductor.check_quantisable(vertebra.create_model(arch, device="meta"))


def test_two_threads_that_want_silence_leave_warnings_as_they_were() -> None:
    before, entered, left = list(warnings.filters), threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            entered.set()
            left.wait(0.2)  # in vain, as long as the other one waits for its turn

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with quiet():
        left.set()
        thread.join(5)
    assert list(warnings.filters) == before


def test_comparison_sees_direction_and_first_class_and_no_common_shift() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 8)) * 10
    bound = BOUNDS["f32"]
    assert compare(logits, logits + 3, bound, classes=True).cosine == pytest.approx(1)
    assert compare(logits, logits + 3, bound, classes=False).cosine < 0.999
    assert compare(logits, -logits, bound, classes=True).cosine == pytest.approx(-1)
    swapped = logits.copy()
    swapped[0] = np.roll(swapped[0], 1)
    figures = compare(logits, swapped, bound, classes=True)
    assert (figures.sure, figures.images) == (5, 5)
    assert figures.agreement == pytest.approx(0.8)
    assert compare(np.zeros((1, 4)), np.zeros((1, 4)), bound, classes=True).cosine == 1
    for spoilt in (np.nan, np.inf):
        assert not compare(logits, np.full_like(logits, spoilt), bound).within(bound)


@pytest.mark.parametrize("classes", [1, 2, 8])
def test_where_each_class_has_its_own_probability_a_common_shift_is_another_answer(classes: int) -> None:
    logits = np.random.default_rng(0).normal(size=(5, classes)) - 3
    bound = BOUNDS["bf16"]
    same = compare(logits, logits + 0.01, bound, several=True)
    assert same.within(bound)
    assert (same.sure, same.flipped) == (5, 0)
    assert "probabilities kept on 100.0% of 5 images" in str(same)
    moved = logits.copy()
    moved[0, -1] = 2
    assert compare(logits, moved, bound, several=True).flipped == 1
    shifted = compare(logits, logits + 3, bound, several=True)
    assert not shifted.within(bound)
    for spoilt in (np.nan, np.inf):
        assert not compare(logits, np.full_like(logits, spoilt), bound, several=True).within(bound)


def test_answers_of_another_shape_are_other_answers() -> None:
    with pytest.raises(VerificationError, match=r"it answers with \(2, 4, 7, 7\) in the place of \(2, 4\)"):
        check(torch.ones(2, 4), torch.ones(2, 4, 7, 7), dtype="f32", what="it", classes=False)


def test_made_up_images_are_the_same_each_time() -> None:
    torch.manual_seed(1)
    first = made_up_images(2, 3, 40, 50)
    torch.manual_seed(2)
    assert torch.equal(first, made_up_images(2, 3, 40, 50))
    assert first.shape == (2, 3, 40, 50)


@pytest.mark.parametrize(
    ("flags", "dtype"), [({"avx2": True}, "f32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")]
)
def test_auto_takes_bf16_only_from_the_hardware(
    flags: dict[str, bool], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "processor", lambda: flags)
    assert choose.pick_dtype("auto", CPU) == dtype


def test_auto_takes_the_best_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose.pick_backend("auto", "f32", CPU, None).name == "openvino"
    assert choose.pick_backend("auto", "f32", CPU, "inductor").name == "inductor"
    assert choose.pick_backend("auto", "f32", CPU, "gone").name == "openvino"
    absent = {"openvino"}
    monkeypatch.setattr("vertebra.runtime.openvino.missing", lambda *names: [n for n in names if n in absent])
    monkeypatch.setattr("vertebra.runtime.onnxruntime.missing", lambda *names: [n for n in names if n in absent])
    assert choose.pick_backend("auto", "f32", CPU, None).name == "onnxruntime"
    absent.add("onnx")
    assert choose.pick_backend("auto", "f32", CPU, None).name == "eager"
    with pytest.raises(BackendError, match=r"nothing here runs int8.*openvino, onnx not installed.*vertebra\[fast\]"):
        choose.pick_backend("auto", "int8", CPU, None)
    assert choose.pick_backend("auto", "f32", torch.device("mps"), None).name == "eager"


def test_a_spoilt_note_of_choices_is_no_note(tmp_path: Path) -> None:
    choose.remember(tmp_path, "a", "eager")
    choose.remember(tmp_path, "b", "openvino")
    assert choose.remembered(tmp_path, "a") == "eager"
    (tmp_path / "choices.json").write_text("{")
    assert choose.remembered(tmp_path, "a") is None


def test_the_faster_of_two_is_found() -> None:
    def slow(x: torch.Tensor) -> torch.Tensor:
        for _ in range(200):
            x = x + 1
        return x

    times = choose.fastest({"slow": slow, "quick": lambda x: x}, torch.zeros(1, 3, 64, 64))
    assert times["quick"] < times["slow"]


def test_the_command_says_what_is_here_and_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path))
    found = json.loads(CliRunner().invoke(app, ["info", "--runtime", "--json"]).stdout)
    assert set(found["backends"]) == {"eager", "inductor", "cudagraphs", "openvino", "onnxruntime"}
    assert "f32" in found["backends"]["openvino"]["runs"]
    assert found["to gain"] == ""
    monkeypatch.setattr(machine, "missing", lambda *names: list(names))
    monkeypatch.setitem(choose.BACKENDS, "openvino", Fake(reason="openvino not installed"))
    shown = CliRunner().invoke(app, ["info", "--runtime"]).stdout
    assert "pip install 'vertebra[fast]' brings openvino" in shown
    assert "not here: openvino not installed" in shown


@pytest.mark.parametrize("arguments", [["info"], ["info", "dla34", "--runtime"]])
def test_info_wants_a_name_or_the_runtime(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2


def test_a_full_disk_is_told_with_the_folder_and_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(VertebraError, match=r"cannot be kept in .*: No space left.*another folder with VERTEBRA_CACHE"),
        cache.building(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_what_may_not_be_touched_elsewhere_is_not_laid_to_the_cache(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), cache.building(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", "/usr/bin/g++")
    assert not list(tmp_path.iterdir())
