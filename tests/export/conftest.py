"""Two small models, and what every export test needs."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest
import torch

import vertebra
from tests.zoo import random_state
from vertebra.models.backbone import Backbone

LABELS = tuple(f"kind of thing {i}" for i in range(10))


@pytest.fixture(scope="module", autouse=True)
def untraced_shapes() -> Iterator[None]:
    """Shape checks off: they would become part of a traced graph."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def vit() -> Backbone:
    """One block, 32 pixels, ten named classes."""
    model = vertebra.create_model("deit_tiny_patch16_224", img_size=32, depth=1, num_classes=10)
    model.load_state_dict(random_state(model.state_dict()))
    model.pretrained_cfg["label_names"] = LABELS
    return model.eval()


@pytest.fixture(scope="session")
def cnn() -> Backbone:
    """DLA's smallest, at 64 pixels."""
    model = vertebra.create_model("dla46x_c", num_classes=10)
    model.load_state_dict(random_state(model.state_dict()))
    model.pretrained_cfg["input_size"] = (3, 64, 64)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32)
