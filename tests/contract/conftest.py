"""Every model; those with values are built once a file."""

import pytest
import torch

from tests.contract.subject import Subject
from tests.zoo import ARCHS


@pytest.fixture(scope="module", params=ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def subject(arch: str) -> Subject:
    torch.manual_seed(0)
    return Subject(arch)
