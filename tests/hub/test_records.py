"""A model's record, broken in every place, loads or is refused in one line: config.json, and a weights file's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import vertebra
from tests.records import broken, broken_texts, refused
from vertebra.data import create_transform, labels_for, resolve_model_data_config
from vertebra.engine.validate import trained
from vertebra.hub.convert import convert
from vertebra.spec import State, VertebraError

CONFIG: dict[str, Any] = {
    "architecture": "dla46_c",
    "num_classes": 10,
    "num_features": 256,
    "global_pool": "avg",
    "label_names": [f"kind {i}" for i in range(10)],
    "label_descriptions": {"kind 0": "first"},
    "multi_label": True,
    "model_args": {"output_stride": 32, "drop_rate": 0.1, "depths": [1, 2, 2, 1], "block": "bottleneck"},
    "pretrained_cfg": {
        "tag": "mine",
        "input_size": [3, 96, 96],
        "min_input_size": None,
        "pool_size": [3, 3],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.1, 0.2, 0.3],
        "num_classes": 10,
        "first_conv": "base_layer.0",
        "classifier": "fc",
        "label_names": None,
        "custom_load": False,
        "paper_ids": ["arXiv:1"],
        "notes": [],
    },
}
FLAT = {"architecture": "dla46_c", **CONFIG["pretrained_cfg"]}
VIT = {"architecture": "deit_tiny_patch16_224", "model_args": {"img_size": [32, 32], "depth": 1, "num_heads": 3}}


def opened(folder: Path) -> None:
    """As far as a command goes before it reads a photo."""
    model = vertebra.create_model(f"local-dir:{folder}", pretrained=False, device="meta")
    assert model.num_classes >= 0
    labels_for(model.num_classes, model.pretrained_cfg)
    create_transform(**resolve_model_data_config(model), is_training=False)


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").touch()
    return tmp_path


@pytest.mark.parametrize("config", [CONFIG, FLAT, VIT], ids=["whole", "flat", "vit"])
def test_every_broken_value(config: dict[str, Any], shell: Path) -> None:
    count = 0
    (shell / "config.json").write_text(json.dumps(config))
    opened(shell)
    for what, record in broken(config):
        (shell / "config.json").write_text(json.dumps(record))
        count += refused(lambda: opened(shell), what)
    assert count > 20


def test_every_broken_text(shell: Path) -> None:
    for what, text in broken_texts(CONFIG):
        (shell / "config.json").write_bytes(text)
        assert refused(lambda: opened(shell), what)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_KEYS = st.sampled_from([*CONFIG, *CONFIG["pretrained_cfg"], *CONFIG["model_args"]])


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.dictionaries(_KEYS, _JSON | st.dictionaries(_KEYS, _JSON, max_size=4), max_size=6))
def test_any_json_at_all(shell: Path, changes: dict[str, Any]) -> None:
    (shell / "config.json").write_text(json.dumps(CONFIG | changes))
    refused(lambda: opened(shell), "it")


@pytest.mark.parametrize(
    "record",
    [
        *("", "{", "[]", "null", '{"architecture": 3}', '{"training": 3}'),
        '{"architecture": "dla46_c", "model_args": [1]}',
        '{"architecture": "dla46_c", "label_names": {"a": []}}',
        '{"architecture": "dla46_c", "num_classes": "10"}',
    ],
)
def test_a_weights_files_own_record(record: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_file(state, path, metadata={"vertebra": record})
    assert refused(lambda: vertebra.load_model(path), record)
    refused(lambda: convert(path, None, tmp_path / "out.safetensors"), "it")
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    path.rename(tmp_path / "model.safetensors")
    refused(lambda: trained(tmp_path), "it")


@pytest.mark.parametrize("data", [3, [1], {"train": 3}, {"train": {"images": "many"}}, {"val": {"images": None}}])
def test_what_a_run_says_of_its_data(data: Any, state: State, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    save_file(state, tmp_path / "model.safetensors", metadata={"vertebra": json.dumps({"training": {"data": data}})})
    refused(lambda: trained(tmp_path), "it")


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, (10**15).to_bytes(8, "little") + b"{}"])
def test_a_run_whose_weights_are_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(VertebraError, match="is not a whole safetensors file"):
        trained(tmp_path)


@pytest.mark.parametrize(
    "args",
    [{"embed_dim": 0}, {"num_heads": 7}, {"depth": -1}, {"patch_size": 0}, {"img_size": 0}, {"mlp_ratio": -1}],
)
def test_model_args_of_which_no_model_can_be_made(args: dict[str, Any], shell: Path) -> None:
    (shell / "config.json").write_text(json.dumps(VIT | {"model_args": args}))
    refused(lambda: opened(shell), "it")
