"""Names taken apart and made safe, against timm's own answers."""

import pytest
import timm.models

from vertebra.compat.names import parse_model_name, safe_model_name

NAMES = [
    "dla34",
    "dla34.in1k",
    "dla34.",
    "a--b__",
    "é x",
    ".a",
    "",
    "hf-hub:timm/dla34.in1k",
    "hf_hub:timm/dla34.in1k@main",
    "hf-hub:name",
    "local-dir:/tmp/x/y.z",
]


@pytest.mark.parametrize("name", NAMES)
def test_as_the_reference(name: str) -> None:
    assert parse_model_name(name) == timm.models.parse_model_name(name)
    assert safe_model_name(name) == timm.models.safe_model_name(name)
    assert safe_model_name(name, remove_source=False) == timm.models.safe_model_name(name, remove_source=False)


@pytest.mark.parametrize("name", ["timm/dla34.in1k", "file:/x", "a:b", "http://x/y.pth", "dir\\x"])
def test_unknown_sources_are_refused_as_there(name: str) -> None:
    assert safe_model_name(name, remove_source=False) == timm.models.safe_model_name(name, remove_source=False)
    for parse in (timm.models.parse_model_name, timm.models.safe_model_name, parse_model_name, safe_model_name):
        with pytest.raises(ValueError, match="source"):
            parse(name)
