"""RegNet: what its checkpoints are named elsewhere, and how its line becomes stages."""

from typing import Any

import pytest
import torch
from torchvision import models

import vertebra
from tests.zoo import random_state, relative
from vertebra.models.regnet.config import RegNetConfig, plan_stages


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "theirs"),
    [
        ("regnetx_004_tv", models.regnet_x_400mf),
        ("regnety_008_tv", models.regnet_y_800mf),
        ("regnety_004", models.regnet_y_400mf),
    ],
)
def test_torchvisions_checkpoints_load_and_answer_the_same(arch: str, theirs: Any) -> None:
    reference = theirs(num_classes=5).eval()
    state = random_state(reference.state_dict())
    reference.load_state_dict(state)
    ours = vertebra.create_model(
        arch, num_classes=5, pretrained=True, pretrained_cfg_overlay={"state_dict": state, "num_classes": 5}
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    assert relative(ours(x), reference(x)) < 1e-5


def test_widths_are_made_divisible_by_their_groups() -> None:
    line = {"depth": 22, "w0": 24, "wa": 24.48, "wm": 2.54, "group_size": 16}
    assert [plan.width for plan in plan_stages(RegNetConfig(**line))] == [32, 64, 160, 384]
    assert [plan.width for plan in plan_stages(RegNetConfig(**line, group_min_ratio=0.9))] == [32, 64, 160, 400]
    wide = plan_stages(RegNetConfig(**line, bottle_ratio=4.0))
    assert all(plan.mid == 4 * plan.width and plan.mid % plan.group_size == 0 for plan in wide)
