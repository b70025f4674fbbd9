"""docs/capabilities.md says what the configs declare, and a declared limit is real."""

import os
from pathlib import Path

import pytest

import vertebra
from tests.zoo import ARCHS, small_options
from vertebra.hub.capabilities import capabilities, markdown
from vertebra.hub.registry import REGISTRY
from vertebra.spec import PROMISES, VertebraError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "capabilities.md"


def test_the_page_is_the_table() -> None:
    if os.environ.get("VERTEBRA_WRITE"):
        PAGE.write_text(markdown())
    assert PAGE.read_text() == markdown(), "run VERTEBRA_WRITE=1 scripts/test tests/contract/test_capabilities.py"


def test_every_promise_is_counted_over_every_model() -> None:
    for capability in capabilities():
        unkept = sum(len(archs) for archs in capability.limits.values())
        assert capability.kept + unkept == capability.total == len(ARCHS)


@pytest.mark.parametrize("arch", ARCHS)
def test_limits_name_promises_and_are_refused_in_words(arch: str) -> None:
    limits = REGISTRY.variant(arch).config.limits
    assert limits.keys() <= PROMISES.keys()
    asked = {"output_stride": {"output_stride": 16}, "global_pool": {"global_pool": "avg"}}
    for name, options in asked.items():
        if name in limits:
            with pytest.raises(VertebraError):
                vertebra.create_model(arch, device="meta", **{**small_options(arch), **options})
