"""What a name means: a row, a folder, a hub repository (live, cached, offline); and how each of them fails."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import save_file

import vertebra
from tests.hub.conftest import ARCH, holds, write_config
from vertebra import UnknownNameError, WeightsError, WeightsUnavailableError
from vertebra.hub import fetch
from vertebra.hub import state as state_module
from vertebra.hub.factory import describe
from vertebra.spec import State

# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dla43", r"unknown model 'dla43'; did you mean 'dla"),
        ("dla34.in2k", r"unknown tag 'in2k' for dla34; did you mean 'in1k'"),
        ("deit_tiny_patch16_225", "did you mean 'deit_tiny_patch16_224"),
        ("", "unknown model ''"),
        ("zzz", "`vertebra models` lists all"),
    ],
)
def test_unknown_names_teach(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message) as caught:
        vertebra.create_model(name)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dla102", "dla102.in1k", "timm/dla102.in1k", "hf-hub:timm/dla102.in1k"])
def test_four_names_of_one_checkpoint(name: str) -> None:
    model = vertebra.create_model(name, device="meta")
    assert model.pretrained_cfg["hf_hub_id"] == "timm/dla102.in1k"
    assert model.pretrained_cfg["tag"] == "in1k"
    assert model.default_cfg == model.pretrained_cfg


def test_records_replaced_and_overlaid() -> None:
    arch = "deit3_small_patch16_224"
    tagged = vertebra.create_model(arch, pretrained_cfg="fb_in22k_ft_in1k", device="meta")
    assert tagged.pretrained_cfg["crop_pct"] == 1.0
    own = vertebra.create_model(arch, pretrained_cfg={"mean": [0.1, 0.2, 0.3], "num_classes": 4}, device="meta")
    assert own.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    record = vertebra.get_pretrained_cfg(arch)
    same = vertebra.create_model(arch, pretrained_cfg=record, pretrained_cfg_overlay={"crop_pct": 0.5}, device="meta")
    assert same.pretrained_cfg["crop_pct"] == 0.5
    assert same.pretrained_cfg["hf_hub_id"] == record.hf_hub_id
    with pytest.raises(UnknownNameError, match=r"unknown option 'crop_pc' .*did you mean 'crop_pct'"):
        vertebra.create_model(arch, pretrained_cfg_overlay={"crop_pc": 1.0})
    with pytest.raises(UnknownNameError, match="unknown tag"):
        vertebra.create_model(arch, pretrained_cfg="no_such_tag")


def test_an_architecture_without_weights_says_so() -> None:
    with pytest.raises(WeightsError, match="no pretrained weights are published for 'dla34'"):
        vertebra.create_model("dla34", pretrained=True, pretrained_cfg={"num_classes": 1000})


# --- a local folder ---------------------------------------------------------------------------------------------------


def test_folder(folder: Path, state: State) -> None:
    model = vertebra.create_model(f"local-dir:{folder}", pretrained=True)
    assert holds(model, state)
    assert model.num_classes == 10
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert model.pretrained_cfg["input_size"] == (3, 96, 96)
    assert model.pretrained_cfg["crop_pct"] == 0.7
    assert holds(vertebra.load_model(folder), state)
    empty = vertebra.create_model(f"local-dir:{folder}", pretrained=False)
    assert empty.num_classes == 10
    assert not holds(empty, state)
    assert vertebra.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).num_classes == 3


def test_a_folder_named_without_a_word_on_its_weights_warns(folder: Path) -> None:
    with pytest.warns(UserWarning, match="starts with random weights; pretrained=True loads the folder's"):
        assert not vertebra.create_model(f"local-dir:{folder}").filled
    assert not vertebra.create_model(f"local-dir:{folder}", pretrained=False).filled  # warnings are errors here


def test_flat_config_of_old(folder: Path, state: State) -> None:
    flat = {"architecture": ARCH, "num_classes": 10, "mean": [0.1, 0.2, 0.3], "input_size": [3, 96, 96]}
    (folder / "config.json").write_text(json.dumps(flat))
    model = vertebra.create_model(f"local-dir:{folder}", pretrained=True)
    assert holds(model, state)
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert model.pretrained_cfg["input_size"] == (3, 96, 96)


def test_config_with_model_args_pool_and_labels(folder: Path) -> None:
    labels = list("abcdefghij")
    write_config(folder, model_args={"output_stride": 8}, global_pool="max", label_names=labels)
    model = vertebra.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.feature_info[-1]["reduction"] == 8
    assert model.global_pool.pool_type == "max"
    assert list(model.pretrained_cfg["label_names"]) == labels
    assert (
        vertebra.create_model(f"local-dir:{folder}", pretrained=False, global_pool="avg").global_pool.pool_type == "avg"
    )


def test_config_of_a_saved_model_reads_back(tmp_path: Path) -> None:
    arch = "deit_tiny_distilled_patch16_224"
    model = vertebra.create_model(arch, img_size=(64, 32), depth=1, num_classes=3, in_chans=1)
    (tmp_path / "config.json").write_text(json.dumps(describe(model)))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = vertebra.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert again.config == model.config
    assert holds(again, model.state_dict())
    assert again.pretrained_cfg["input_size"][1:] == (64, 32)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"])
def test_folder_file_names(name: str, folder: Path, state: State) -> None:
    (folder / "model.safetensors").unlink()
    if name.endswith("safetensors"):
        save_file(state, folder / name)
    else:
        torch.save({"state_dict": state}, folder / name)
    assert holds(vertebra.create_model(f"local-dir:{folder}", pretrained=True), state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("not json", "is not JSON"),
        ("[1]", "holds a list, not an object"),
        ("{}", "names no 'architecture'"),
        ('{"architecture": "dla43"}', "unknown model 'dla43'"),
        ('{"architecture": "dla46_c", "pretrained_cfg": {"meen": [1]}}', "did you mean 'mean'"),
        ('{"architecture": "dla46_c", "pretrained_cfg": [1]}', r"pretrained_cfg is \[1\]; it must be an object"),
        ('{"architecture": "dla46_c", "model_args": {"num_clases": 3}}', "did you mean 'num_classes'"),
        ('{"architecture": "dla46_c", "num_classes": 11}', r"fc\.weight is \(10"),
    ],
)
def test_configs_that_are_wrong(config: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(vertebra.VertebraError, match=message) as caught:
        vertebra.create_model(f"local-dir:{folder}", pretrained=True)
    assert "\n" not in str(caught.value)


def test_folders_that_lack_something(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no folder at"):
        vertebra.create_model(f"local-dir:{tmp_path}/nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"holds no weights; expected one of model\.safetensors"):
        vertebra.create_model(f"local-dir:{folder}", pretrained=True)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"holds no config\.json"):
        vertebra.create_model(f"local-dir:{folder}", pretrained=True)


# --- the hub ----------------------------------------------------------------------------------------------------------


class FakeHub:
    """Repositories as folders. It answers as `hf_hub_download` does, and remembers what it was asked."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.asked = list[tuple[str, str, str | None, Any]]()

    def __call__(
        self,
        repo_id: str,
        filename: str,
        *,
        revision: str | None = None,
        cache_dir: Any = None,
        local_files_only: bool = False,
    ) -> str:
        self.asked.append((repo_id, filename, revision, cache_dir))
        if local_files_only:
            raise LocalEntryNotFoundError(f"{filename} is not cached")
        path = self.repositories[repo_id] / filename
        if not path.is_file():
            raise RemoteEntryNotFoundError(f"404: {repo_id} has no {filename}", response=Mock(headers={}))
        return str(path)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub({"me/net": folder, "timm/dla46_c.in1k": folder})
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    monkeypatch.setattr(fetch, "reachable", lambda _: True)
    return fake


@pytest.mark.parametrize("name", ["me/net", "hf-hub:me/net", "hf_hub:me/net"])
def test_hub_repository(name: str, hub: FakeHub, state: State, tmp_path: Path) -> None:
    model = vertebra.create_model(name, pretrained=True, cache_dir=tmp_path)
    assert holds(model, state)
    assert model.num_classes == 10
    assert model.pretrained_cfg["hf_hub_id"] == "me/net"
    assert hub.asked == [("me/net", "config.json", None, tmp_path), ("me/net", "model.safetensors", None, tmp_path)]


def test_hub_revision(hub: FakeHub, state: State) -> None:
    assert holds(vertebra.create_model("hf-hub:me/net@v1.2", pretrained=True), state)
    assert {revision for _, _, revision, _ in hub.asked} == {"v1.2"}


def test_hub_falls_back_to_other_file_names(hub: FakeHub, folder: Path, state: State) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert holds(vertebra.create_model("me/net", pretrained=True), state)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsUnavailableError, match=r"model\.safetensors of me/net"):
        vertebra.create_model("me/net", pretrained=True)


def test_hub_file_name_of_the_record(hub: FakeHub, folder: Path, state: State) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    overlay = {"hf_hub_filename": "other.safetensors"}
    assert holds(vertebra.create_model("me/net", pretrained=True, pretrained_cfg_overlay=overlay), state)
    assert hub.asked[-1][1] == "other.safetensors"


def test_a_row_comes_from_its_repository(hub: FakeHub, folder: Path) -> None:
    model = vertebra.create_model(ARCH, num_classes=10, pretrained_cfg_overlay={"num_classes": 10}, pretrained=True)
    assert model.num_classes == 10
    assert hub.asked == [("timm/dla46_c.in1k", "model.safetensors", None, None)]


def test_building_without_weights_asks_for_none(hub: FakeHub) -> None:
    vertebra.create_model("me/net")
    assert [name for _, name, _, _ in hub.asked] == ["config.json"]
    hub.asked.clear()
    vertebra.create_model("dla34", device="meta")
    assert not hub.asked


def test_a_strangers_config_cannot_point_at_files_here(
    hub: FakeHub, folder: Path, state: State, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.safetensors"
    save_file({key: value + 1 for key, value in state.items()}, secret)
    write_config(folder, pretrained_cfg={"file": str(secret), "url": "http://127.0.0.1:9/x.pth", "source": "url"})
    assert holds(vertebra.create_model("me/net", pretrained=True), state)


def real_cache(root: Path, repo: str, files: dict[str, bytes], commit: str = "0" * 39 + "1") -> Path:
    """A hub cache as huggingface_hub lays it out."""
    base = root / f"models--{repo.replace('/', '--')}"
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (base / folder).mkdir(parents=True)
    (base / "refs" / "main").write_text(commit)
    for name, content in files.items():
        blob = base / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (base / "snapshots" / commit / name).symlink_to(os.path.relpath(blob, base / "snapshots" / commit))
    return root


OFFLINE = """
import sys, torch, vertebra
model = vertebra.create_model(sys.argv[1], pretrained=True)
print(model.num_classes, float(model.fc.bias[0]))
"""


def offline(cache: Path, name: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "TORCH_HOME": str(cache)}
    command = [sys.executable, "-c", OFFLINE, name]
    return subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=300)


def test_offline_from_a_real_cache(folder: Path, state: State, tmp_path: Path) -> None:
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    cache = real_cache(tmp_path / "cache", "me/net", files)
    done = offline(cache, "hf-hub:me/net")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["10", str(float(state["fc.bias"][0]))]


def test_offline_without_a_copy(tmp_path: Path) -> None:
    before = time.monotonic()
    done = offline(tmp_path, "dla34")
    assert time.monotonic() - before < 60
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "WeightsUnavailableError: cannot get" in last
    assert "no network and no cached copy" in last
    assert "checkpoint_path=" in last


def test_an_older_name_in_a_real_cache_offline(
    folder: Path, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository holds no safetensors, and the cache therefore neither: the next name is found in it."""
    torch.save(state, folder / "pytorch_model.bin")
    files = {name: (folder / name).read_bytes() for name in ("config.json", "pytorch_model.bin")}
    cache = real_cache(tmp_path / "cache", "me/net", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert holds(vertebra.create_model("me/net", pretrained=True, cache_dir=cache), state)


@pytest.fixture
def cached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A hub cache of `me/net`, and the weights' file in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    cache = real_cache(tmp_path / "cache", "me/net", files)
    blob = cache / "models--me--net" / "blobs" / hashlib.sha256(files["model.safetensors"]).hexdigest()
    return cache, blob


def test_a_file_of_the_hub_is_checked_against_its_name_once(
    cached: tuple[Path, Path], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, blob = cached
    hashed, hashes = list[Path](), fetch._hashes
    monkeypatch.setattr(fetch, "_hashes", lambda path: hashed.append(path) or hashes(path))
    assert holds(vertebra.create_model("me/net", pretrained=True, cache_dir=cache), state)
    assert len(hashed) == 2
    assert holds(vertebra.create_model("me/net", pretrained=True, cache_dir=cache), state)
    assert len(hashed) == 2
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(WeightsError, match=r"^model.safetensors of me/net in the hub's cache is not what .*; delete "):
        vertebra.create_model("me/net", pretrained=True, cache_dir=cache)


def test_small_files_of_the_hub_are_checked_by_gits_hash(cached: tuple[Path, Path], folder: Path) -> None:
    cache, _ = cached
    (link,) = cache.glob("models--me--net/snapshots/*/config.json")
    content = (folder / "config.json").read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    link.resolve().rename(cache / "models--me--net" / "blobs" / git)
    link.unlink()
    link.symlink_to(f"../../blobs/{git}")
    vertebra.create_model("me/net", device="meta", cache_dir=cache)
    (cache / "models--me--net" / "blobs" / git).write_bytes(content.replace(b"mine", b"thei"))
    with pytest.raises(WeightsError, match=r"config.json of me/net in the hub's cache is not what the hub named it"):
        vertebra.create_model("me/net", device="meta", cache_dir=cache)


def test_only_files_that_nobody_rewrites_are_mapped(
    cached: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = list[bool]()
    original = state_module._map_rest
    monkeypatch.setattr(state_module, "_map_rest", lambda raw: mapped.append(True) or original(raw))
    vertebra.create_model("me/net", pretrained=True, cache_dir=cached[0])
    assert mapped == [True]
    vertebra.create_model(f"local-dir:{folder}", pretrained=True)
    vertebra.create_model("dla46_c.tin100", pretrained=True)
    assert mapped == [True]


@pytest.mark.parametrize("name", ["dla34", "hf-hub:nobody/nothing", "nobody/nothing@v2"])
def test_no_network_is_one_clear_line_at_once(name: str, unplugged: None, tmp_path: Path) -> None:
    before = time.monotonic()
    with pytest.raises(WeightsUnavailableError) as caught:
        vertebra.create_model(name, pretrained=True, cache_dir=tmp_path)
    assert time.monotonic() - before < 5
    message = str(caught.value)
    assert "\n" not in message
    assert "no network and no cached copy" in message
    assert "to go on offline" in message


def test_no_network_but_a_cached_copy(unplugged: None, folder: Path, state: State, tmp_path: Path) -> None:
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    cache = real_cache(tmp_path / "cache", "me/net", files)
    assert holds(vertebra.create_model("me/net", pretrained=True, cache_dir=cache), state)


def test_malformed_repository_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "reachable", lambda _: True)
    with pytest.raises(WeightsUnavailableError, match="a/b/c"):
        vertebra.create_model("a/b/c", cache_dir=tmp_path)


def test_the_network_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment later not: four files of a repository must not wait four times."""
    now, tried, there = [1000.0], list[object](), [False]

    def connect(address: object, _timeout: float) -> Any:
        tried.append(address)
        if not there[0]:
            raise OSError("unreachable")
        return Mock(__enter__=Mock(), __exit__=Mock(return_value=False))

    monkeypatch.setattr(fetch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fetch.socket, "create_connection", connect)
    monkeypatch.setattr(fetch.urllib.request, "getproxies", dict)
    url = "https://hub.example/model"
    assert [fetch.reachable(url) for _ in range(4)] == [False] * 4
    assert len(tried) == 1
    there[0], now[0] = True, now[0] + 60
    assert fetch.reachable(url)


def test_an_unknown_option_is_a_type_error_as_pythons_own_is() -> None:
    for create in (vertebra.create_model, timm.create_model):
        with pytest.raises(TypeError):
            create("dla34", num_clases=3)
    with pytest.raises(vertebra.UnknownOptionError, match="did you mean 'num_classes'"):
        vertebra.create_model("dla34", num_clases=3)
    with pytest.raises(TypeError, match="did you mean 'crop_pct'"):
        vertebra.create_model("dla34", pretrained_cfg_overlay={"crop_pc": 1.0})
