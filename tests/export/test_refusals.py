"""What cannot be exported is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vertebra
from vertebra.export import export_model
from vertebra.models.backbone import Backbone
from vertebra.spec import UnknownNameError, VertebraError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onxx"}, "unknown format 'onxx'; did you mean 'onnx'"),
        ({"format": "pt2"}, "a file of format pt2 must end in .pt2"),
        ({"dtype": "bf16"}, "onnx files hold f32, not 'bf16'; bf16 can be written as openvino, pt2, aoti"),
        ({"dtype": "f8"}, "not 'f8'"),
        ({"batch": 0}, "batch=0"),
        ({"with_preprocess": True, "dynamic_size": True}, "photos of any size already"),
        ({"labels": ["one"]}, "1 labels for a model of 10 classes"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    vit: Backbone, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(VertebraError, match=message.replace("(", r"\(")):
        export_model(vit, tmp_path / "vit.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_openvino_refusals(vit: Backbone, tmp_path: Path) -> None:
    with pytest.raises(VertebraError, match="int8 needs photos to calibrate on"):
        export_model(vit, tmp_path / "vit.xml", dtype="int8")
    with pytest.raises(VertebraError, match="positions in bf16"):
        export_model(vit, tmp_path / "vit.xml", dtype="bf16", with_preprocess=True)
    with pytest.raises(UnknownNameError, match="its suffix says no format"):
        export_model(vit, tmp_path / "vit.bin")


def test_only_whole_f32_models_are_exported(vit: Backbone, tmp_path: Path) -> None:
    with pytest.raises(VertebraError, match="a Linear cannot be exported"):
        export_model(torch.nn.Linear(2, 2), tmp_path / "a.onnx")  # type: ignore[arg-type]
    half = vertebra.create_model("deit_tiny_patch16_224", depth=1, dtype=torch.bfloat16)
    with pytest.raises(VertebraError, match="in float32 on the CPU"):
        export_model(half, tmp_path / "a.onnx")
    none = vertebra.create_model("deit_tiny_patch16_224", depth=1, num_classes=0)
    with pytest.raises(VertebraError, match="no classes"):
        export_model(none, tmp_path / "a.onnx", with_preprocess=True)


@pytest.mark.parametrize("size", [(32, 32), (96, 100)])
def test_a_file_of_several_sizes_must_take_its_own(size: tuple[int, int], tmp_path: Path) -> None:
    model = vertebra.create_model("dla46_c", num_classes=10, pretrained_cfg_overlay={"input_size": (3, *size)}).eval()
    expected = f"for multiples of 32 from 64 on, and this model's own size is {size[0]}x{size[1]}; leave it out"
    with pytest.raises(VertebraError, match=expected):
        export_model(model, tmp_path / "model.onnx", dynamic_size=True)
    assert not list(tmp_path.iterdir())
