"""What is written answers as the model did, says what it is, and is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

import vertebra
from tests.export.conftest import LABELS
from vertebra.data import create_transform, resolve_model_data_config
from vertebra.engine.predict import Predictor
from vertebra.export import artefact, export_model, is_artefact, load, verify, write
from vertebra.export.artefact import open_file
from vertebra.export.formats import FORMATS, Job
from vertebra.export.write import Options, generated, spread
from vertebra.models.backbone import Backbone
from vertebra.runtime.sessions import onnx_session
from vertebra.spec import VertebraError


@pytest.fixture(scope="module")
def onnx_file(vit: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT as ONNX, any size."""
    return export_model(vit, tmp_path_factory.mktemp("onnx") / "vit.onnx", dynamic_size=True).out


# --- each format


def test_onnx_takes_any_batch_and_size_and_carries_its_record(vit: Backbone, onnx_file: Path) -> None:
    import onnx

    file = load(onnx_file)
    other = vertebra.create_model(
        "deit_tiny_patch16_224", img_size=32, depth=1, num_classes=10, dynamic_img_size=True
    ).eval()
    other.load_state_dict(vit.state_dict())
    for batch, size in ((1, (32, 32)), (5, (32, 32)), (2, (64, 48))):
        image = torch.randn(batch, 3, *size)
        with torch.inference_mode():
            assert torch.allclose(file(image), other(image), atol=1e-4)
    assert file.labels == LABELS
    assert file.num_classes == 10
    assert file.pretrained_cfg["mean"] == vit.pretrained_cfg["mean"]
    assert file.record.license == vit.pretrained_cfg["license"] == "apache-2.0"
    assert file.record.model["architecture"] == "deit_tiny_patch16_224"
    assert len(file.record.weights_sha256) == 64
    assert onnx.load(onnx_file).opset_import[0].version == file.record.opset == 20
    assert [p.name for p in onnx_file.parent.iterdir()] == ["vit.onnx"]


def test_an_artefact_refuses_what_it_was_not_made_for(onnx_file: Path) -> None:
    file = load(onnx_file)
    with pytest.raises(VertebraError, match="multiples of 16 from 32 on"):
        file(torch.zeros(1, 3, 40, 32))
    with pytest.raises(VertebraError, match=r"takes \(b, 3, h, w\)"):
        file(torch.zeros(1, 1, 32, 32))


def test_photos_go_in_and_probabilities_come_out(vit: Backbone, tmp_path: Path) -> None:
    """The graph resizes as Pillow does: pixels differ by single levels at most, answers by next to nothing."""
    done = export_model(vit, tmp_path / "vit.onnx", with_preprocess=True, batch=1)
    file, transform = load(done.out), create_transform(**resolve_model_data_config(vit))  # type: ignore[arg-type]
    photo = generated()[1].resize((97, 143))
    found = file.transform(photo).unsqueeze(0)
    assert found.dtype == torch.uint8
    with torch.inference_mode():
        expected = vit(transform(photo).unsqueeze(0)).softmax(-1)
    assert (file(found).softmax(-1) - expected).abs().max() < 2e-3
    assert torch.equal(file(found.expand(2, -1, -1, -1)), file(found).expand(2, -1))
    photos = [photo, generated()[0]]
    for (_, own), (_, asked) in zip(Predictor(file).stream(photos), Predictor(vit).stream(photos), strict=True):
        assert own.labels[0] == asked.labels[0] == LABELS[asked.indices[0]]
        assert own.probabilities[0] == pytest.approx(asked.probabilities[0], abs=5e-3)


def test_openvino_of_a_cnn_takes_several_sizes(cnn: Backbone, tmp_path: Path) -> None:
    done = export_model(cnn, tmp_path / "cnn.xml", dynamic_size=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cnn.bin", "cnn.xml"]
    assert [case.shape for case in done.cases] == [(1, 3, 64, 64), (3, 3, 64, 64), (8, 3, 64, 64), (1, 3, 96, 128)]
    file, image = load(done.out), torch.randn(2, 3, 128, 96)
    with torch.inference_mode():
        assert torch.allclose(file(image), cnn(image), rtol=1e-3, atol=1e-3)
    assert file.labels is None
    assert file.record.license == "bsd-3-clause"


def test_openvino_int8_leaves_the_preprocessing_in_f32(cnn: Backbone, tmp_path: Path) -> None:
    photos = generated()
    samples = [photo.rotate(angle) for photo in photos for angle in (0, 90, 180, 270)]
    done = export_model(cnn, tmp_path / "cnn.xml", dtype="int8", with_preprocess=True, samples=samples)
    model = (tmp_path / "cnn.xml").read_text()
    assert model.count('type="FakeQuantize"') > 10
    assert 'element_type="u8"' in model
    assert (tmp_path / "cnn.bin").stat().st_size < 0.4 * sum(p.numel() for p in cnn.parameters()) * 4
    assert done.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert all(case.figures.cosine > 0.9 for case in done.cases)


def test_openvino_int8_of_a_fixed_batch_is_calibrated_with_batches(vit: Backbone, tmp_path: Path) -> None:
    photos = [photo.rotate(angle) for photo in generated() for angle in (0, 90, 180, 270)]
    done = export_model(vit, tmp_path / "vit.xml", dtype="int8", batch=3, samples=photos)
    assert [case.shape for case in done.cases] == [(3, 3, 32, 32)] * 4  # two generated ones beside
    with pytest.raises(VertebraError, match=r"7 samples were given; give at least 8"):
        export_model(vit, tmp_path / "more.xml", dtype="int8", samples=photos[:7])


@pytest.mark.parametrize(("batch", "sizes"), [(None, [1, 3, 10]), (1, [1] * 10), (4, [4, 4, 4])])
@pytest.mark.parametrize("with_preprocess", [True, False])
def test_every_photo_is_part_of_the_check(
    vit: Backbone, tmp_path: Path, batch: int | None, sizes: list[int], with_preprocess: bool
) -> None:
    options = Options("onnx", "f32", False, with_preprocess, batch)
    photos = [Image.new("RGB", (40, 40), (20 * i, 0, 0)) for i in range(10)]
    write._save_reference(vit, options, photos, tmp_path / "reference.safetensors")
    stored = load_file(tmp_path / "reference.safetensors")
    images = [stored[f"image.{number}"] for number in range(len(stored) // 2)]
    if not with_preprocess:
        assert [len(image) for image in images] == sizes
    reds = {round(float(row[..., 0].mean() if with_preprocess else row[0].mean()), 3) for i in images for row in i}
    assert len(reds) == len(photos)


def test_photos_are_decoded_one_at_a_time_and_no_more_than_needed(
    vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, most = list[Any](), list[int]()

    def decode(path: str) -> Image.Image:
        image = Image.new("RGB", (40, 40), path)
        made.append(weakref.ref(image))
        most.append(sum(one() is not None for one in made))
        return image

    monkeypatch.setattr(write, "decode", decode)
    shown: list[str] = []
    monkeypatch.setattr(write, "_save_reference", lambda *args: shown.extend(args[2][2:]))
    monkeypatch.setattr(write, "in_new_process", lambda *_: [])
    monkeypatch.setitem(FORMATS, "openvino", replace(FORMATS["openvino"], write=lambda _, path: path.touch()))
    export_model(vit, tmp_path / "a.xml", samples=["red"] * 400)
    assert not most
    assert shown == ["red"] * write.CHECK
    export_model(vit, tmp_path / "a.xml", dtype="int8", samples=["red"] * 400, force=True)
    assert len(most) == write.CALIBRATE
    assert max(most) <= 2  # the one before goes when the next is there
    most.clear()
    assert len(write._cases(vit, Options("onnx", "f32", False, False, None), shown)) == 3
    assert max(most) <= 2


def test_photos_are_small_where_whole_batches_of_them_are_compared(vit: Backbone) -> None:
    photos = [Image.new("RGB", size) for size in ((3000, 1500), (40, 50), (6000, 3))]
    cases = write._photo_cases(vit, Options("onnx", "f32", False, True, None), photos)
    assert [tuple(raw.shape) for raw, _ in cases] == [(1, 320, 640, 3), (3, 50, 40, 3), (8, 1, 640, 3)]
    assert photos[0].size == (3000, 1500)


def test_onnx_runtime_uses_as_many_threads_as_torch(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def session(path: Path, threads: int) -> Any:
        asked.append(threads)
        return onnx_session(path, threads)

    monkeypatch.setattr(artefact, "onnx_session", session)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    load(onnx_file)
    assert asked == [3]
    options = onnx_session(onnx_file, 2).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_openvino_bf16_has_weights_of_16_bits(vit: Backbone, tmp_path: Path) -> None:
    done = export_model(vit, tmp_path / "vit.xml", dtype="bf16")
    assert (tmp_path / "vit.bin").stat().st_size < 0.55 * sum(p.numel() for p in vit.parameters()) * 4
    assert load(done.out).record.dtype == "bf16"
    assert all(case.figures.cosine > 0.995 for case in done.cases)


def test_pt2_in_bf16_of_a_fixed_batch_leaves_the_model_as_it_was(vit: Backbone, tmp_path: Path) -> None:
    vit.train()
    done = export_model(vit, tmp_path / "vit.pt2", dtype="bf16", batch=2)
    assert vit.training
    assert next(vit.eval().parameters()).dtype == torch.float32
    file, image = load(done.out), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        difference = (file(image) - vit(image)).abs().max() / vit(image).abs().max()
    assert file(image).dtype == torch.float32
    assert 0 < difference < 0.15
    with pytest.raises(VertebraError, match="export it with --dynamic-size"):
        file(torch.zeros(2, 3, 64, 64))
    more = torch.randn(5, 3, 32, 32)  # in runs of two, the last one filled
    assert torch.equal(file(more), torch.cat([file(more[:2]), file(more[2:4]), file(more[3:])[1:]]))
    assert torch.equal(file(more[:4]), file(more)[:4])


def test_pt2_of_a_vit_takes_several_sizes(vit: Backbone, tmp_path: Path) -> None:
    done = export_model(vit, tmp_path / "vit.pt2", dynamic_size=True)
    assert [case.shape for case in done.cases] == [(1, 3, 32, 32), (3, 3, 32, 32), (8, 3, 32, 32), (1, 3, 48, 64)]
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(load(done.out)(image), vit(image), atol=1e-4)


def test_aoti(vit: Backbone, tmp_path: Path) -> None:
    done = export_model(vit, tmp_path / "vit.pt2", format="aoti")
    file, image = load(done.out), torch.randn(5, 3, 32, 32)
    assert file.record.format == "aoti"
    with torch.inference_mode():
        assert torch.allclose(file(image), vit(image), atol=1e-3)


def test_aoti_without_a_compiler_says_so(vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(VertebraError, match=r"needs a C\+\+ compiler"):
        export_model(vit, tmp_path / "vit.pt2", format="aoti")
    assert list(tmp_path.iterdir()) == []


# --- all or nothing


def test_a_file_that_answers_otherwise_is_not_kept(
    vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that spoils one weight is found out; what stood at the target is left."""
    out, honest = tmp_path / "vit.onnx", FORMATS["onnx"]
    out.write_bytes(b"an earlier file")

    def spoil(job: Job, path: Path) -> None:
        job.plan.module.get_parameter("model.blocks.0.mlp.fc1.weight").mul_(1.5)
        honest.write(job, path)

    monkeypatch.setitem(FORMATS, "onnx", replace(honest, write=spoil))
    with pytest.raises(VertebraError, match="does not answer as the model: 1x3x32x32: cosine 0"):
        export_model(vit, out, force=True)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"an earlier file"]


def test_a_file_that_moves_all_of_several_labels_is_not_kept(
    vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softmax takes a common shift away; sigmoids do not."""
    honest = FORMATS["onnx"]

    def shift(job: Job, path: Path) -> None:
        job.plan.module.get_parameter("model.head.bias").add_(1)
        honest.write(job, path)

    monkeypatch.setitem(FORMATS, "onnx", replace(honest, write=shift))
    monkeypatch.setattr(vit, "pretrained_cfg", {**vit.pretrained_cfg, "multi_label": True})
    with pytest.raises(VertebraError, match="1 of 1 images' probabilities changed"):
        export_model(vit, tmp_path / "several.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_not_kept(vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scribble(job: Job, path: Path) -> None:
        path.write_bytes(b"no model")

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=scribble))
    with pytest.raises(VertebraError, match=r"onnx file cannot be run: .*cannot be read"):
        export_model(vit, tmp_path / "vit.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_check_runs_alone_and_its_status_says_what_it_found(onnx_file: Path, tmp_path: Path) -> None:
    """`python -m vertebra.export.verify` without torch: 0 within the bounds, 1 outside."""
    image = torch.randn(2, 3, 32, 32)
    right = {"image.0": image.numpy(), "answer.0": load(onnx_file)(image).numpy()}
    wrong = {**right, "answer.0": right["answer.0"][::-1].copy()}
    for status, tensors in enumerate((right, wrong)):
        save_file(tensors, tmp_path / "reference.safetensors")
        module = "runpy.run_module('vertebra.export.verify', None, '__main__')"
        code = f"import sys, runpy; sys.modules['torch'] = None; {module}"
        command = [sys.executable, "-c", code, str(onnx_file), str(tmp_path / "reference.safetensors")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert json.loads(done.stdout)[0]["shape"] == [2, 3, 32, 32]
    assert set(load_file(tmp_path / "reference.safetensors")) == {"image.0", "answer.0"}


def test_the_check_opens_the_file_once(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = torch.randn(1, 3, 32, 32)
    save_file(
        {"image.0": image.numpy(), "answer.0": load(onnx_file)(image).numpy()}, tmp_path / "reference.safetensors"
    )
    opened = list[Path]()
    monkeypatch.setattr(verify, "open_file", lambda path: opened.append(path) or open_file(path))
    assert verify.main([str(onnx_file), str(tmp_path / "reference.safetensors")]) == 0
    assert opened == [onnx_file]
    assert json.loads(capsys.readouterr().out)[0]["shape"] == [1, 3, 32, 32]


def test_nobody_is_told_that_openvino_and_nncf_are_used() -> None:
    """Their telemetry stays unimported. In a process of its own: under pytest NNCF keeps quiet by itself."""
    code = """
import sys
from vertebra.runtime.unreported import unreported
ov, nncf = unreported("openvino"), unreported("nncf")
assert ov.Core and nncf.quantize
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
assert type(nncf.telemetry.telemetry).__name__ == "MagicMock", nncf.telemetry.telemetry
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_there_is_written_over_only_when_that_was_said(vit: Backbone, tmp_path: Path) -> None:
    for name, there in (("a.onnx", "a.onnx"), ("b.xml", "b.xml"), ("c.xml", "c.bin")):
        (tmp_path / there).write_text("mine")
        with pytest.raises(VertebraError, match=f"{there} is there already; name another file, or .*--force"):
            export_model(vit, tmp_path / name)
    source = Path(shutil.copy(tmp_path / "c.bin", tmp_path / "pytorch_model.bin"))
    vit.pretrained_cfg["file"] = str(source)
    try:
        with pytest.raises(VertebraError, match=r"pytorch_model.bin is the file that is read"):
            export_model(vit, tmp_path / "pytorch_model.xml", force=True)
    finally:
        del vit.pretrained_cfg["file"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def test_of_two_files_none_is_changed_where_the_second_cannot_be(
    vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(job: Job, path: Path) -> None:
        for suffix in (".bin", ".xml"):
            path.with_suffix(suffix).write_text("new")

    replace_ = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target == tmp_path / "a.xml":
            raise PermissionError(errno.EACCES, "Permission denied")
        return replace_(self, target)

    for name in ("a.bin", "a.xml"):
        (tmp_path / name).write_text("old")
    monkeypatch.setitem(FORMATS, "openvino", replace(FORMATS["openvino"], write=make))
    monkeypatch.setattr(write, "in_new_process", lambda *_: [])
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(VertebraError, match=r"cannot write .*a.xml: Permission denied; nothing was changed"):
        export_model(vit, tmp_path / "a.xml", force=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.bin": "old", "a.xml": "old"}


def test_an_xml_beside_the_weights_of_another_file_is_refused(vit: Backbone, tmp_path: Path) -> None:
    out = export_model(vit, tmp_path / "vit.xml").out
    weights = out.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(VertebraError, match=r"vit.xml and vit.bin do not belong together: .* export the model anew"):
        load(out)
    out.write_text(re.sub(r"<bin_sha256 [^>]*>", "", out.read_text()))
    assert load(out).num_classes == 10  # written by an earlier version


def test_an_export_that_is_ended_leaves_nothing(vit: Backbone, tmp_path: Path) -> None:
    source = vertebra.save_model(vit, tmp_path / "weights" / "own.safetensors")
    out = tmp_path / "out" / "own.onnx"
    command = [sys.executable, "-c", "from vertebra.cli import main; main()", "export", str(source), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not (out.parent.is_dir() and list(out.parent.iterdir())):
        time.sleep(0.01)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert not list(out.parent.iterdir())


# --- what is refused


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    assert is_artefact("a/B.ONNX")
    assert is_artefact(Path("model.xml"))
    assert not is_artefact("dla34.in1k")
    assert not is_artefact("weights.safetensors")
    with pytest.raises(VertebraError, match="no file at"):
        load(tmp_path / "none.onnx")
    for name in ("a.onnx", "a.xml", "a.pt2"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(VertebraError, match=f"{name} cannot be read"):
            load(tmp_path / name)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save(model, tmp_path / "theirs.onnx")
    with pytest.raises(VertebraError, match="holds no record of vertebra's"):
        load(tmp_path / "theirs.onnx")


def test_generated_photos_are_always_the_same() -> None:
    first, second = generated(), generated()
    assert all(np.array_equal(np.array(a), np.array(b)) for a, b in zip(first, second, strict=True))
    assert isinstance(first[0], Image.Image)


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(
    cnn: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "_save_reference", full)
    with pytest.raises(VertebraError, match=r"cannot write .*cnn.onnx: No space left on device; nothing was changed"):
        export_model(cnn, tmp_path / "cnn.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_takes_as_many_channels_as_its_model(tmp_path: Path) -> None:
    model = vertebra.create_model("deit_tiny_patch16_224", img_size=32, depth=1, num_classes=10, in_chans=1).eval()
    out = tmp_path / "grey.onnx"
    export_model(model, out)
    image = torch.randn(2, 1, 32, 32)
    found = load(out)
    assert found.in_chans == 1
    assert torch.allclose(found(image), model(image), atol=1e-3)
    with pytest.raises(VertebraError, match=r"takes \(b, 1, h, w\)"):
        found(torch.randn(2, 3, 32, 32))
    with pytest.raises(VertebraError, match="takes photos, and this model 1 channels"):
        export_model(model, tmp_path / "photo.onnx", with_preprocess=True)


def test_samples_are_taken_from_all_over() -> None:
    names = [Path(f"{i:03}.png") for i in range(1000)]
    assert spread(names, 4) == [names[i] for i in (0, 250, 500, 750)]
    assert spread(names[:3], 4) == names[:3]
    assert spread([], 4) == []
