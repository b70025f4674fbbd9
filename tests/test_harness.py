"""What conftest.py promises to every other test."""

import random
import socket

import numpy as np
import pytest
import torch

from vertebra.layers.mlp import Mlp


def test_shapes_are_executed() -> None:
    with pytest.raises(Exception, match="Float"):
        Mlp(4, 8)(torch.zeros(2, 3, 4, dtype=torch.int64))


def test_shapes_can_be_left_unchecked(unchecked_shapes: None) -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        Mlp(4, 8)(torch.zeros(2, 3, 4, dtype=torch.int64))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.org"])
def test_no_test_reaches_the_network(host: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="tests use no network"):
        socket.create_connection((host, 80), timeout=1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_free(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection((host, server.getsockname()[1]), timeout=5).close()


@pytest.mark.parametrize("turn", ["first", "second"])
def test_random_numbers_are_the_same_for_every_test(turn: str, seed: int) -> None:
    drawn = (random.random(), np.random.rand(), torch.rand(()).item())
    expected = (
        random.Random(seed).random(),
        np.random.RandomState(seed).rand(),
        torch.rand((), generator=torch.Generator().manual_seed(seed)).item(),
    )
    assert drawn == expected, turn
