"""What `optimize` promises whatever the backend: proof, cache, pickling."""

from __future__ import annotations

import copy
import errno
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vertebra
from tests.runtime.conftest import SIZE, Fake
from vertebra.data import labels_for
from vertebra.hub.factory import describe
from vertebra.models.backbone import Backbone
from vertebra.runtime import cache, choose
from vertebra.runtime.backend import BackendError
from vertebra.runtime.background import Build
from vertebra.runtime.maker import Maker, Recipe
from vertebra.runtime.optimize import is_cached
from vertebra.runtime.verify import VerificationError
from vertebra.spec import VertebraError, files


def test_it_stands_in_for_its_model(vit: Backbone, tmp_path: Path) -> None:
    fast = vertebra.optimize(vit.train(), "eager", cache_dir=tmp_path)
    assert not vit.training
    assert fast.eval() is fast
    assert fast.to("cpu") is fast
    assert not list(fast.parameters())
    assert fast.default_cfg == fast.pretrained_cfg == vit.pretrained_cfg
    assert (fast.num_classes, fast.in_chans) == (10, 3)
    assert not fast(torch.randn(1, 3, 32, 32, requires_grad=True)).requires_grad
    with pytest.raises(VertebraError, match="only answers"):
        fast.train()
    with pytest.raises(VertebraError, match="optimised for cpu"):
        fast.to("meta")
    assert vertebra.optimize(vertebra.create_model("dla46_c"), "eager", "f32").labels[258] == "Samoyed"


def test_what_is_no_model_of_ours_is_refused() -> None:
    with pytest.raises(VertebraError, match="not a Linear"):
        vertebra.optimize(torch.nn.Linear(1, 1))
    with pytest.raises(VertebraError, match="no weights yet"):
        vertebra.optimize(vertebra.create_model("dla46_c", device="meta"))


@pytest.mark.parametrize(
    "alter", [lambda y: y * torch.linspace(0.5, 1.5, 10), lambda y: -y, lambda y: y * float("nan")]
)
def test_a_model_that_answers_otherwise_is_not_handed_out(vit: Backbone, fake: Fake, tmp_path: Path, alter) -> None:
    fake.alter = alter
    with pytest.raises(VerificationError, match=r"cosine (-?\d\.\d+|nan).*allowed: cosine from 0.9999") as error:
        vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path)
    assert not error.value.figures.cosine >= error.value.bound.cosine
    assert not list((tmp_path / "compiled").iterdir())


def test_a_type_that_nobody_named_gives_way_to_f32(
    vit: Backbone, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose.machine, "native_bf16", lambda _: True)
    fake.alter = lambda y: y if len(fake.built) > 1 else -y
    fast = vertebra.optimize(vit, "fake", cache_dir=tmp_path)
    assert (fast.report.dtype, len(fake.built)) == ("f32", 2)
    again = vertebra.optimize(vit, "fake", cache_dir=tmp_path)
    assert (again.report.dtype, again.report.cached, len(fake.built)) == ("f32", True, 2)  # and bf16 is not tried anew
    fake.alter = lambda y: -y
    with pytest.raises(VerificationError, match=r"fake.* does not answer as eager f32"):
        vertebra.optimize(vit, "fake", "bf16", cache_dir=tmp_path)


def test_a_change_of_the_first_class_alone_is_found(vit: Backbone, fake: Fake, tmp_path: Path) -> None:
    vit.head.weight.data.mul_(50)  # sure of its answers
    sample = torch.randn(6, 3, 32, 32)
    swap = vit(sample)[0].topk(2)
    assert swap.values[0] - swap.values[1] > 0.1

    def alter(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, swap.indices] = logits[:, swap.indices.flip(0)]
        return logits

    fake.alter = alter
    with pytest.raises(VerificationError, match="first class kept on"):
        vertebra.optimize(vit, "fake", "f32", sample=sample, cache_dir=tmp_path)


def test_a_share_of_first_classes_is_judged_on_the_whole_sample_alone(
    vit: Backbone, fake: Fake, tmp_path: Path
) -> None:
    """One image of sixteen may turn in int8; so may it when two are compared again, or one by itself."""
    vit.head.weight.data.mul_(50)  # sure of its answers
    sample = torch.randn(16, 3, 32, 32)
    first = vit(sample[:1])[0].detach()
    best = first.topk(2).indices

    def alter(logits: Tensor) -> Tensor:
        logits = logits.clone()
        for row in logits:
            if torch.allclose(row, first, atol=1e-3):
                row[best] = row[best.flip(0)]
        return logits

    fake.alter = alter
    for _ in range(2):
        fast = vertebra.optimize(vit, "fake", "int8", sample=sample, batch=1, cache_dir=tmp_path)
    assert fast.report.cached
    assert len(fake.built) == 1
    assert fast(sample[:1]).argmax() == best[1]
    fake.alter = lambda logits: alter(logits).roll(1, 1)
    with pytest.raises(VerificationError, match=r"allowed: cosine from 0\.9, agreement from 90%"):
        vertebra.optimize(vit, "fake", "int8", sample=sample, cache_dir=tmp_path)


def test_what_was_compiled_is_found_again_until_the_weights_change(vit: Backbone, fake: Fake, tmp_path: Path) -> None:
    assert not vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path).report.cached
    assert vertebra.optimize(copy.deepcopy(vit), "fake", "f32", cache_dir=tmp_path).report.cached
    vit.head.bias.data[3] += 1
    assert not vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path).report.cached
    assert len(fake.built) == 2


def test_damaged_artefacts_are_made_anew(vit: Backbone, fake: Fake, tmp_path: Path) -> None:
    vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path)
    (file,) = (tmp_path / "compiled").glob("*/artefact")
    for content in ("half", "", "made or not"):
        file.write_text(content)
        assert not vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path).report.cached
        assert file.read_text() == "made"
    fake.alter = lambda y: -y
    with pytest.raises(VerificationError):
        vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path)
    assert not file.exists()


def test_a_damaged_graph_of_onnx_is_made_anew(vit: Backbone, tmp_path: Path) -> None:
    vertebra.optimize(vit, "onnxruntime", "f32", cache_dir=tmp_path)
    (file,) = tmp_path.glob("compiled/*/model.onnx")
    file.write_bytes(bytes(file.stat().st_size))
    fast = vertebra.optimize(vit, "onnxruntime", "f32", cache_dir=tmp_path)
    assert not fast.report.cached
    assert vertebra.optimize(vit, "onnxruntime", "f32", cache_dir=tmp_path).report.cached


def test_eager_mode_answers_nothing_while_the_model_trains(cnn: Backbone, tmp_path: Path) -> None:
    fast, image = vertebra.optimize(cnn, "eager", "f32", cache_dir=tmp_path), torch.randn(2, 3, 64, 64)
    norm = next(module for module in cnn.modules() if isinstance(module, torch.nn.BatchNorm2d))
    answer, mean = fast(image), norm.running_mean.clone()
    for module in (cnn, norm):
        module.train()
        with pytest.raises(VertebraError, match=r"in training mode.*call its eval\(\)"):
            fast(image)
        cnn.eval()
    assert torch.equal(norm.running_mean, mean)
    assert torch.allclose(fast(image), answer)


def test_int8_samples_are_told_apart_by_their_bytes_without_a_copy(vit: Backbone, fake: Fake, tmp_path: Path) -> None:
    def maker(sample: Tensor) -> Maker:
        made = Maker(vit, Recipe(dtype="int8", sample=sample, cache_dir=str(tmp_path)))
        made._hash = "of the weights"
        return made

    def entry(sample: Tensor) -> Path:
        return maker(sample).entry(fake, maker(sample).job((32, 32)))

    sample = torch.randn(256, 3, 32, 32)
    first = entry(sample)
    assert entry(sample.to(memory_format=torch.channels_last)) == first
    assert entry(sample + 1e-3) != first
    made = maker(sample)
    job = made.job((32, 32))
    tracemalloc.start()
    made.entry(fake, job)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < sample.nbytes / 2


def test_what_reset_classifier_changes_is_another_artefact(vit: Backbone, fake: Fake, tmp_path: Path) -> None:
    dimensions = list[int]()
    for pool in (None, "", "token"):
        vit.reset_classifier(0, pool)
        fast = vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path)
        assert fast.report.cached == (pool == "token")  # as it was at first
        dimensions.append(fast(torch.zeros(1, 3, 32, 32)).ndim)
    assert dimensions == [2, 3, 2]


def test_the_classes_of_a_new_head_have_no_names() -> None:
    model = vertebra.create_model("dla46_c.tin100", pretrained=True)
    assert labels_for(100, model.pretrained_cfg) is not None
    model.reset_classifier(100)
    assert labels_for(100, model.pretrained_cfg) is None
    assert model.default_cfg is model.pretrained_cfg
    again = vertebra.create_model("dla46_c.tin100", pretrained=True)
    assert labels_for(100, again.pretrained_cfg) is not None  # the row's own record is as it was


@pytest.mark.parametrize("arch", ["deit_tiny_patch16_224", "dla46_c", "regnetx_002", "dpn68", "cspresnet50"])
def test_a_model_says_of_itself_what_reset_classifier_made_of_it(arch: str) -> None:
    model = vertebra.create_model(arch, device="meta")
    model.reset_classifier(3, "max")
    assert (model.config.num_classes, model.config.global_pool) == (3, "max")
    where = {"fc_norm": False} if arch.startswith("deit") else {}  # a ViT's norm stays where it is, as timm's
    assert describe(model)["model_args"] == {"global_pool": "max", **where}
    model.reset_classifier(5)
    assert (model.config.num_classes, model.config.global_pool) == (5, "max")


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("full")])
def test_what_is_no_damage_costs_no_artefact(
    vit: Backbone, fake: Fake, error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path)

    def fail(*_: object) -> None:
        assert error is not None
        raise error

    if error is not None:
        monkeypatch.setattr(Fake, "load", fail)
    with pytest.raises((VertebraError, RuntimeError)):  # a sample of too few channels; a GPU that is full
        vertebra.optimize(vit, "fake", "f32", sample=torch.randn(2, 3 if error else 1, 32, 32), cache_dir=tmp_path)
    monkeypatch.undo()
    monkeypatch.setitem(choose.BACKENDS, "fake", fake)
    assert vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path).report.cached


def test_half_precision_models_find_what_was_compiled_of_them(
    vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choose.BACKENDS, "openvino", Fake("openvino"))
    half = vit.bfloat16()
    assert not is_cached(half, dtype="f32", cache_dir=tmp_path)
    vertebra.optimize(half, dtype="f32", cache_dir=tmp_path)
    assert is_cached(half, dtype="f32", cache_dir=tmp_path)


def test_a_pickle_is_a_recipe(vit: Backbone, tmp_path: Path) -> None:
    fast = vertebra.optimize(vit, "eager", "bf16", cache_dir=tmp_path)
    again = pickle.loads(pickle.dumps(fast))  # noqa: S301 - our own
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(image), fast(image))
    assert again.report.dtype == "bf16"
    assert copy.deepcopy(fast) is fast


def test_half_precision_models_are_optimised_from_their_values(vit: Backbone, tmp_path: Path) -> None:
    half = copy.deepcopy(vit).bfloat16()
    fast = vertebra.optimize(half, "eager", "f32", cache_dir=tmp_path)
    assert next(half.parameters()).dtype == torch.bfloat16
    assert torch.allclose(fast(torch.ones(1, 3, 32, 32)), vit(torch.ones(1, 3, 32, 32)), atol=0.05)


def test_embeddings_are_compared_without_classes(tmp_path: Path) -> None:
    model = vertebra.create_model("deit_tiny_patch16_224", num_classes=0, depth=1, img_size=32)
    fast = vertebra.optimize(model, "eager", "f32", cache_dir=tmp_path)
    assert fast(torch.zeros(2, 3, 32, 32)).shape == (2, 192)
    assert fast.report.figures.sure == 0


def test_probabilities_of_a_model_of_several_labels_must_stay(vit: Backbone, fake: Fake, tmp_path: Path) -> None:
    fake.alter = lambda logits: logits + 1
    fast = vertebra.optimize(vit, "fake", "bf16", cache_dir=tmp_path / "one")
    assert fast.report.figures.cosine > 0.999, "of one label a photo, a common shift changes nothing"
    vit.pretrained_cfg = {**vit.pretrained_cfg, "multi_label": True}
    with pytest.raises(VertebraError, match=r"not answer as eager f32: .* probabilities kept on 0\.0% of 4 images"):
        vertebra.optimize(vit, "fake", "bf16", cache_dir=tmp_path / "several")


def test_auto_takes_what_a_calibration_found_fastest(
    vit: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = Fake("wrong", alter=lambda y: -y)
    broken = Fake("broken", alter=lambda y: y.view(-1, 7))  # a RuntimeError
    some = {"eager": Fake("eager"), "openvino": Fake("openvino"), "wrong": wrong, "absent": Fake(reason="no")}
    some["broken"] = broken
    for name, backend in some.items():
        monkeypatch.setitem(choose.BACKENDS, name, backend)
    for name in ("inductor", "onnxruntime"):
        monkeypatch.delitem(choose.BACKENDS, name)
    monkeypatch.setattr(choose, "fastest", lambda programs, _: {name: len(name) for name in programs})
    assert vertebra.optimize(vit, dtype="f32", cache_dir=tmp_path).report.backend == "openvino"
    assert vertebra.optimize(vit, dtype="f32", calibrate=True, cache_dir=tmp_path).report.backend == "eager"
    assert len(wrong.built) == 1
    assert vertebra.optimize(vit, dtype="f32", calibrate=True, cache_dir=tmp_path).report.backend == "eager"
    assert len(wrong.built) == 1  # measured once
    assert vertebra.optimize(vit, dtype="f32", cache_dir=tmp_path).report.backend == "eager"


def test_another_process_compiles_what_this_one_loads(
    vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path))
    vit.set_input_size(48)
    assert not is_cached(vit, dtype="f32")
    build = Build(vit, "f32", torch.get_num_threads())
    build._process.wait(120)
    assert build.done()
    assert build.failure() == ""
    build.close()
    assert is_cached(vit, dtype="f32")
    assert vertebra.optimize(vit, dtype="f32").report.cached


def test_a_model_that_cannot_leave_this_process_is_no_crash(vit: Backbone) -> None:
    vit.register_forward_hook(lambda *_: None)
    with pytest.raises(BackendError, match="cannot be sent to another process"):
        Build(vit, "f32", 1)


def test_a_compilation_that_is_ended_leaves_nothing_half_made(
    vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path))
    build = Build(vit, "f32", 1)
    own, others = (tmp_path / "compiled" / f"{files.prefix_of(pid)}x" for pid in (build._process.pid, 1))
    for folder in (own, others):
        folder.mkdir(parents=True)
    build.close()
    assert others.exists()
    assert not own.exists()


def test_a_compilation_that_fails_says_why(vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path))
    build = Build(vit, "f33", 1)
    build._process.wait(120)
    assert "f33" in build.failure()
    build.close()


def test_a_batch_with_a_program_of_its_own_is_compared_too(vit: Backbone, fake: Fake, tmp_path: Path) -> None:
    fake.alter = lambda logits: -logits if len(logits) == 5 else logits
    assert vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path).report.figures.cosine > 0.999
    with pytest.raises(VerificationError, match="fake f32, batch 5 does not answer as eager f32"):
        vertebra.optimize(vit, "fake", "f32", batch=5, cache_dir=tmp_path)
    with pytest.raises(VertebraError, match="batch=0: give"):
        vertebra.optimize(vit, "fake", "f32", batch=0, cache_dir=tmp_path)


# --- nothing can be kept


def test_without_a_cache_there_is_one_warning_and_every_answer(
    vit: Backbone, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "file" / "cache"))
    image = torch.randn(2, 3, SIZE, SIZE)
    assert not is_cached(vit, dtype="f32")
    for number in (1, 2):
        fast = vertebra.optimize(vit, "fake", "f32")
        assert torch.allclose(fast(image), vit(image), atol=1e-5)
        assert not fast.report.cached
        assert len(fake.built) == number
    (told,) = [record.message for record in caplog.records]
    assert "compiled models cannot be kept in " in told
    assert "Not a directory; name another folder with VERTEBRA_CACHE; until then it is compiled each time" in told


def test_a_disk_that_fills_while_a_model_is_compiled_costs_no_answer(
    vit: Backbone, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = fake.build

    def full(job: Any, folder: Path) -> None:
        if folder.is_relative_to(tmp_path / "cache"):
            raise OSError(errno.ENOSPC, "No space left on device")
        build(job, folder)

    monkeypatch.setattr(fake, "build", full)
    image = torch.randn(2, 3, SIZE, SIZE)
    assert torch.allclose(vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path / "cache")(image), vit(image))
    assert not list((tmp_path / "cache" / "compiled").iterdir())


def test_where_nothing_at_all_can_be_written_it_is_one_line(
    vit: Backbone, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(**_: Any) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    (tmp_path / "file").touch()
    monkeypatch.setattr(cache.tempfile, "mkdtemp", nowhere)
    with pytest.raises(VertebraError, match=r"there is no folder to write in .*VERTEBRA_CACHE or TMPDIR"):
        vertebra.optimize(vit, "fake", "f32", cache_dir=tmp_path / "file")


NOBODY = """
import os, sys
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "VERTEBRA_CACHE"):
    os.environ.pop(name, None)
os.getuid = lambda: 4_000_000_000  # whom no one knows
import torch, vertebra
model = vertebra.create_model("deit_tiny_patch16_224", num_classes=10, depth=1, img_size=32).eval()
image = torch.randn(2, 3, 32, 32)
fast = vertebra.optimize(model, "openvino", "f32")
assert torch.allclose(fast(image), model(image), atol=1e-3)
print(fast.report.backend, fast.report.cached)
"""


def test_a_user_of_no_name_and_no_home_gets_answers(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NOBODY], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["openvino", "False"]
    assert done.stderr.count("there is no home folder (HOME is not set); name another folder with VERTEBRA_CACHE") == 1
    assert not list(tmp_path.iterdir())
