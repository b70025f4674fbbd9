"""Whether anybody filled a model: a checkpoint, `load_state_dict`, training; or whether it holds what was drawn."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import vertebra
from tests.hub.conftest import ARCH
from vertebra.spec import State


def test_a_model_knows_that_nobody_filled_it() -> None:
    model = vertebra.create_model(ARCH)
    assert not model.filled
    model.eval()(torch.zeros(1, 3, 64, 64))
    model.half().float().reset_classifier(3)
    assert not model.filled
    assert not vertebra.create_model(ARCH, features_only=True, dtype=torch.bfloat16).model.filled
    resized = vertebra.create_model("deit_tiny_patch16_224", depth=1)
    resized.set_input_size(64)
    assert not resized.filled
    empty = vertebra.create_model(ARCH, device="meta")
    empty.materialize()
    assert not empty.filled


def _trained(model: Any, _: State) -> Any:
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return model


def _loaded(model: Any, state: State) -> Any:
    model.load_state_dict(state)
    return model


def _assigned(model: Any, state: State) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer), assign=True)
    return model


def _unpickled(model: Any, state: State) -> Any:
    return pickle.loads(pickle.dumps(_trained(model, state)))  # noqa: S301 - our own


@pytest.mark.parametrize("fill", [_trained, _loaded, _assigned, _unpickled, lambda m, s: copy.deepcopy(_loaded(m, s))])
def test_a_model_that_somebody_filled_says_so(fill: Any, state: State) -> None:
    assert fill(vertebra.create_model(ARCH, num_classes=10), state).filled


def test_a_checkpoint_fills_a_model_whatever_head_it_gets(file: Path) -> None:
    for options in ({"num_classes": 10}, {"num_classes": 3}, {"num_classes": 0}, {"num_classes": 10, "in_chans": 1}):
        assert vertebra.create_model(ARCH, checkpoint_path=file, **options).filled
    assert vertebra.load_model(ARCH, weights=file).filled
