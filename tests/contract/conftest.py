"""Every model on `meta`; the sample's models with values, built once a file."""

import pytest
import torch

from tests.contract.subject import Subject
from tests.zoo import ARCHS, SAMPLE


@pytest.fixture(scope="module", params=ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=SAMPLE)
def sampled(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def subject(sampled: str) -> Subject:
    torch.manual_seed(0)
    return Subject(sampled)
