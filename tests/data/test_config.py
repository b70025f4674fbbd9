"""Data configurations against the reference implementation, as a black box."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import timm.data
from hypothesis import given, settings
from hypothesis import strategies as st

import vertebra.data
from vertebra.data import resolve_data_config, resolve_model_data_config
from vertebra.spec.errors import VertebraError

PLAIN = {
    "input_size": (3, 224, 224),
    "interpolation": "bilinear",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.1, 0.2, 0.3),
    "crop_pct": 0.9,
    "num_classes": 1000,
    "pool_size": (7, 7),
}
LARGER = {**PLAIN, "test_input_size": (3, 288, 288), "test_crop_pct": 1.0, "crop_mode": "squash"}
CONFIGS: list[dict[str, Any]] = [
    PLAIN,
    LARGER,
    {**LARGER, "test_input_size": None},
    {**LARGER, "test_crop_pct": None},
    {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)},
    {"input_size": [3, 96, 128], "mean": [0.1, 0.2, 0.3]},
    {"input_size": None, "mean": None, "std": None, "crop_pct": None, "crop_mode": None, "interpolation": ""},
]


@settings(deadline=None)
@given(
    config=st.sampled_from(CONFIGS),
    use_test_size=st.booleans(),
    args=st.fixed_dictionaries(
        {},
        optional={
            "img_size": st.none() | st.integers(1, 512),
            "input_size": st.none() | st.sampled_from([(3, 100, 200), [3, 64, 64], (6, 32, 32)]),
            "mean": st.none() | st.sampled_from([(0.1,), [0.2]]),
            "std": st.none() | st.sampled_from([(0.1,), [0.2]]),
            "in_chans": st.none() | st.integers(1, 5),
            "chans": st.none() | st.integers(1, 5),
            "crop_pct": st.none() | st.floats(0, 1.5),
            "crop_mode": st.none() | st.sampled_from(["center", "border", ""]),
            "interpolation": st.none() | st.sampled_from(["nearest", ""]),
            "batch_size": st.integers(),
        },
    ),
)
def test_same_dictionary_as_the_reference(config: dict[str, Any], args: dict[str, Any], use_test_size: bool) -> None:
    options = {"args": args, "pretrained_cfg": config, "use_test_size": use_test_size}
    ours = resolve_data_config(**options)
    assert ours == timm.data.resolve_data_config(**options)
    assert list(ours) == ["input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"]
    model = SimpleNamespace(pretrained_cfg=config)
    assert resolve_data_config(args, model=model, use_test_size=use_test_size) == ours
    assert resolve_model_data_config(model, args, use_test_size=use_test_size) == ours


@pytest.mark.parametrize(("key", "values"), [("mean", (0.1, 0.2, 0.3)), ("std", [0.4, 0.5, 0.6])])
def test_one_value_a_channel(key: str, values: Any) -> None:
    options = {"args": {key: values}, "pretrained_cfg": PLAIN}
    assert resolve_data_config(**options) == timm.data.resolve_data_config(**options)
    assert resolve_data_config(**options)[key] == tuple(values)


def test_where_the_configuration_comes_from() -> None:
    other = {**PLAIN, "crop_pct": 0.7}
    model = SimpleNamespace(pretrained_cfg=PLAIN, default_cfg=other)
    assert resolve_data_config(model=model)["crop_pct"] == 0.9
    assert resolve_data_config(pretrained_cfg=other, model=model)["crop_pct"] == 0.7
    assert resolve_data_config(model=SimpleNamespace(default_cfg=other))["crop_pct"] == 0.7
    bare = SimpleNamespace()
    assert resolve_data_config(model=bare) == timm.data.resolve_data_config(model=bare)
    assert resolve_data_config({"crop_pct": 0.5}) == timm.data.resolve_data_config({"crop_pct": 0.5})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"input_size": 128}, "input_size=128: give (channels, height, width)"),
        ({"input_size": (224, 224)}, "input_size=(224, 224)"),
        ({"input_size": (3, 224, 0)}, "input_size="),
        ({"img_size": (100, 200)}, "img_size=(100, 200): give one positive whole number"),
        ({"img_size": "96"}, "img_size='96'"),
        ({"img_size": 0}, "img_size=0"),
        ({"mean": (0.1, 0.2)}, "mean=(0.1, 0.2): give a sequence of 1 or 3 numbers"),
        ({"mean": (0.1, 0.2, 0.3), "in_chans": 1}, "1 or 1 numbers"),
        ({"mean": 0.1}, "mean=0.1"),
        ({"std": "imagenet"}, "std='imagenet'"),
        ({"in_chans": 0, "img_size": 32}, "in_chans=0"),
    ],
)
def test_wrong_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(VertebraError) as caught:
        resolve_data_config(args, PLAIN)
    assert message in str(caught.value)


def test_no_source_is_an_error() -> None:
    with pytest.raises(VertebraError, match="give args, pretrained_cfg or model"):
        resolve_data_config({})


def test_verbose_logs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        resolve_data_config(pretrained_cfg=PLAIN)
        assert not caplog.records
        resolve_data_config(pretrained_cfg=PLAIN, verbose=True)
    assert "crop_pct=0.9" in caplog.text


def test_constants_are_those_of_the_reference() -> None:
    names = [name for name in dir(timm.data) if name.isupper() and name.startswith(("IMAGENET", "OPENAI", "DEFAULT"))]
    assert len(names) == 10
    for name in names:
        assert getattr(vertebra.data, name) == getattr(timm.data, name), name


def test_every_public_name_exists_and_the_import_is_light() -> None:
    code = (
        "import sys, vertebra.data as d; assert not {'torch', 'torchvision'} & set(sys.modules); "
        "assert d.transforms_factory.create_transform is d.create_transform; "
        "assert all(hasattr(d, n) for n in d.__all__); assert dir(d) == sorted(d.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(vertebra.data, "nothing")  # noqa: B009 - the lazy lookup is what is tested
