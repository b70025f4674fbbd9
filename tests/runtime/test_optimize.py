"""What `optimize` promises whatever the backend: proof, cache, sizes, pickling."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vertebra
from tests.runtime.conftest import Fake
from vertebra.models.backbone import Backbone
from vertebra.runtime import choose
from vertebra.runtime.backend import BackendError
from vertebra.runtime.background import Build
from vertebra.runtime.optimize import SIZES, is_cached
from vertebra.runtime.verify import VerificationError
from vertebra.spec import VertebraError


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


def test_many_sizes_cause_no_storm_of_compilations(cnn: Backbone, fake: Fake, tmp_path: Path) -> None:
    fake.any_size = False
    fast = vertebra.optimize(cnn, "fake", "f32", cache_dir=tmp_path)
    sizes = [(64 + 32 * i, 64) for i in range(1, 2 * SIZES)]
    for size in sizes:
        fast(torch.randn(1, 3, *size))
    assert fake.built == [(64, 64)]  # a size that comes once is not worth it
    for _ in range(3):
        for size in sizes:
            image = torch.randn(1, 3, *size)
            assert torch.allclose(fast(image), cnn(image), atol=1e-5)
    assert fake.built == [(64, 64), *sizes[:SIZES]]


def test_other_sizes_are_compared_when_they_first_come(cnn: Backbone, fake: Fake, tmp_path: Path) -> None:
    fast = vertebra.optimize(cnn, "fake", "f32", cache_dir=tmp_path)
    fast(torch.randn(1, 3, 96, 96))
    fast._program._alter = lambda y: -y
    with pytest.raises(VerificationError, match="at 96x128 pixels"):
        fast(torch.randn(1, 3, 96, 128))


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


def test_auto_takes_what_a_calibration_found_fastest(
    vit: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = Fake("wrong", alter=lambda y: -y)
    some = {"eager": Fake("eager"), "openvino": Fake("openvino"), "wrong": wrong, "absent": Fake(reason="no")}
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
    own, others = (tmp_path / "compiled" / f".building-{pid}-x" for pid in (build._process.pid, 1))
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
