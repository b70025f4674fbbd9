"""Packages that were written for timm, run on vertebra and on timm itself: each in a process of its own."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).parent / "clients"
ENCODERS = ("dla34", "cspdarknet53", "dpn68")


@cache
def answers(client: str, library: str) -> dict[str, Any]:
    # One thread: the models are tiny, and two that wait for each other take five times as long on a busy machine.
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(CLIENTS / f"{client}.py"), library]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize("client", ["segmentation", "huggingface", "detection"])
def test_the_same_script_sees_the_same(client: str) -> None:
    ours, theirs = answers(client, "vertebra"), answers(client, "timm")
    assert theirs
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_unet(name: str, stride: int) -> None:
    seen = answers("segmentation", "vertebra")[f"unet {name} {stride}"]
    assert seen["out"] == [2, 2, 32, 64]
    assert seen["dead"] == []
    sides = [(1, 32, 64), *((min(r, stride), 32 // min(r, stride), 64 // min(r, stride)) for r in (2, 4, 8, 16, 32))]
    assert seen["maps"] == [[2, c, h, w] for c, (_, h, w) in zip(seen["channels"], sides, strict=True)]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("stride", [8, 16])
def test_deeplab(name: str, stride: int) -> None:
    seen = answers("segmentation", "vertebra")[f"deeplab {name} {stride}"]
    assert seen["out"] == [2, 2, 64, 32]
    assert seen["maps"][-1][2:] == [64 // stride, 32 // stride]
    assert seen["dead"] == []


def test_an_encoder_of_another_family_is_refused_when_it_is_asked_for() -> None:
    refusals = answers("segmentation", "vertebra")["refusals"]
    for name in ("timm-efficientnet-b0", "timm-skresnet18"):
        assert refusals[name].startswith("VertebraError: timm.models.")
        assert "is not in vertebra" in refusals[name]
    assert refusals["tu-resnet18"].startswith("UnknownNameError: unknown model 'resnet18'")


def test_backbone_maps_and_gradients() -> None:
    seen = answers("huggingface", "vertebra")
    assert seen["dla34"]["maps"] == [[2, 64, 8, 16], [2, 512, 1, 2]]
    assert seen["cspdarknet53"]["maps"] == [[2, 64, 16, 32], [2, 1024, 2, 4]]
    assert seen["dpn68"]["maps"] == [[2, 320, 4, 8], [2, 832, 1, 2]]
    for name in ENCODERS:
        assert seen[name]["trained"]
    for name, chosen in {"dla34": (2, 5), "cspdarknet53": (1, 3)}.items():
        stages, among_them, after_that = seen[f"hidden {name}"]
        assert len(stages) == chosen[-1] + 1  # those behind the last one asked for are deleted
        assert among_them == after_that == [stages[i] for i in chosen]
    assert seen["frozen"]["frozen"] == ["FrozenBatchNorm2d"]


@pytest.mark.parametrize("name", ["classify dla34", "classify vit"])
def test_classifier_and_its_image_processor(name: str) -> None:
    seen = answers("huggingface", "vertebra")[name]
    assert seen["logits"] == [2, 7]
    assert seen["same after saving"]
    assert seen["same pixels"]


def test_detector() -> None:
    seen = answers("detection", "vertebra")
    assert seen["finite"]
    assert seen["trained"]
    assert seen["maps"] == [[1, 32, 16, 24], [1, 32, 8, 12], [1, 32, 4, 6], [1, 32, 2, 3]]
