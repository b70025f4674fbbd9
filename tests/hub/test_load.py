"""Weights into models: what fits goes in bit for bit, what was asked to differ is adapted, all else raises by name."""

import hashlib
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vertebra
from tests.hub.conftest import ARCH
from tests.zoo import random_state
from vertebra import WeightsError
from vertebra.spec import State

DISTILLED, THREE = "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(ours: State, theirs: State) -> bool:
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def load(arch: str, file: Path, **options: Any) -> Any:
    overlay = {"file": str(file), **options.pop("overlay", {})}
    return vertebra.create_model(arch, pretrained=True, pretrained_cfg_overlay=overlay, **options)


@pytest.mark.parametrize("way", ["overlay", "checkpoint_path", "state_dict", "load_model"])
def test_every_way_in(way: str, file: Path, state: State) -> None:
    model = {
        "overlay": lambda: load(ARCH, file, overlay={"num_classes": 10}),
        "checkpoint_path": lambda: vertebra.create_model(ARCH, checkpoint_path=file, num_classes=10),
        "state_dict": lambda: vertebra.create_model(
            ARCH, pretrained=True, pretrained_cfg_overlay={"state_dict": state, "num_classes": 10}
        ),
        "load_model": lambda: vertebra.load_model(ARCH, weights=file),
    }[way]()
    assert same(model.state_dict(), state)
    assert model.num_classes == 10
    assert not model.load_report.reinitialised
    assert not model.load_report.dropped
    assert not model.load_report.resized


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_loaded_parameters_train_in_place_and_the_file_stays(suffix: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    before = digest(path)
    model = vertebra.create_model(ARCH, checkpoint_path=path, num_classes=10).train()
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert digest(path) == before
    assert not same(model.state_dict(), state)
    assert same(vertebra.create_model(ARCH, checkpoint_path=path, num_classes=10).state_dict(), state)


def test_two_models_of_one_state_share_nothing(state: State) -> None:
    overlay = {"state_dict": {key: value.clone() for key, value in state.items()}, "num_classes": 10}
    one, two = (vertebra.create_model(ARCH, pretrained=True, pretrained_cfg_overlay=overlay) for _ in range(2))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1)
    assert same(two.state_dict(), state)
    assert same(overlay["state_dict"], state)
    assert "state_dict" not in two.pretrained_cfg, "a model's record holds no second copy of it"


# --- the authors' layouts ---------------------------------------------------------------------------------------------


def test_dla_checkpoints_hold_projections_that_nothing_reads(tmp_path: Path) -> None:
    state = random_state(vertebra.create_model("dla34", device="meta").state_dict())
    extra = {
        "level3.project.0.weight": torch.zeros(128, 64, 1, 1),
        "level3.project.1.weight": torch.zeros(128),
        "level3.project.1.running_mean": torch.zeros(128),
        "level4.project.0.weight": torch.zeros(256, 128, 1, 1),
    }
    # Old files, too, lack BatchNorm's counter.
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save({f"module.{key}": value for key, value in (old | extra).items()}, tmp_path / "dla34-authors.pth")
    model = vertebra.create_model("dla34", checkpoint_path=tmp_path / "dla34-authors.pth")
    assert set(model.load_report.dropped) == set(extra)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items() if key in old)
    assert all("no forward pass reads" in why for why in model.load_report.dropped.values())


def test_a_projection_that_the_model_reads_is_not_dropped(tmp_path: Path) -> None:
    model = vertebra.create_model("dla34")
    read = [key for key in model.state_dict() if ".project." in key]
    assert read
    save_file(model.state_dict(), tmp_path / "dla34.safetensors")
    again = vertebra.create_model("dla34", checkpoint_path=tmp_path / "dla34.safetensors")
    assert same(again.state_dict(), model.state_dict())


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_another_architectures_checkpoint_names_the_keys(file: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        vertebra.create_model("dla60x_c", checkpoint_path=file, num_classes=10)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    assert "missing (" in message
    assert "level" in message
    with pytest.raises(WeightsError, match=r"missing.*cls_token.*unexpected.*base_layer"):
        vertebra.create_model("deit_tiny_patch16_224", checkpoint_path=file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("level2.root.bn.bias"), r"missing \(1\): level2\.root\.bn\.bias"),
        (lambda s: s.update(stranger=torch.zeros(2)), r"unexpected \(1\): stranger"),
        (lambda s: s.update({"level0.0.weight": torch.zeros(16, 16, 5, 5)}), r"level0\.0\.weight is \(16, 16, 5, 5\)"),
        (lambda s: s.pop("fc.weight"), r"missing \(1\): fc\.weight"),
        (lambda s: s.update({"base_layer.0.weight": torch.zeros(16, 3, 5, 5)}), r"base_layer\.0\.weight is"),
    ],
    ids=["missing", "unexpected", "shape", "head", "stem"],
)
def test_one_wrong_entry(change: Any, message: str, state: State) -> None:
    wrong = dict(state)
    change(wrong)
    with pytest.raises(WeightsError, match=message):
        vertebra.create_model(ARCH, pretrained=True, pretrained_cfg_overlay={"state_dict": wrong, "num_classes": 10})


def test_another_number_of_classes_in_the_file_than_its_record_says(file: Path) -> None:
    with pytest.raises(WeightsError, match=r"fc\.weight is \(10, 256, 1, 1\), needs \(1000, 256, 1, 1\)"):
        load(ARCH, file)
    with pytest.raises(WeightsError, match=r"fc\.weight is \(10, "):
        vertebra.create_model(ARCH, checkpoint_path=file)


# --- what was asked to differ -----------------------------------------------------------------------------------------


def test_new_classes_get_a_fresh_head(file: Path, state: State) -> None:
    model = load(ARCH, file, overlay={"num_classes": 10}, num_classes=7)
    assert model.fc.weight.shape == (7, 256, 1, 1)
    assert set(model.load_report.reinitialised) == {"fc.weight", "fc.bias"}
    assert model.fc.weight.std() > 0
    assert model.fc.bias.abs().max() == 0
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if not k.startswith("fc."))
    assert model.pretrained_cfg["num_classes"] == 10, "the record is the checkpoint's"
    assert model.num_classes == 7


@pytest.mark.parametrize("headless", [False, True])
def test_new_classes_for_a_file_of_ones_own(headless: bool, file: Path, state: State, tmp_path: Path) -> None:
    trunk = {key: value for key, value in state.items() if not key.startswith("fc.")}
    if headless:
        file = tmp_path / "trunk.safetensors"
        save_file(trunk, file)
    model = vertebra.create_model(ARCH, checkpoint_path=file, num_classes=7)
    assert model.fc.weight.shape == (7, 256, 1, 1)
    assert set(model.load_report.reinitialised) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in trunk.items())


def test_a_file_of_ones_own_keeps_its_head_for_as_many_classes(file: Path, state: State) -> None:
    model = vertebra.create_model(ARCH, checkpoint_path=file, num_classes=10)
    assert same(model.state_dict(), state)
    assert model.load_report.reinitialised == []


def test_no_classes_drop_the_head(file: Path, state: State) -> None:
    model = load(ARCH, file, overlay={"num_classes": 10}, num_classes=0)
    assert same(model.state_dict(), {k: v for k, v in state.items() if not k.startswith("fc.")})
    assert set(model.load_report.dropped) == {"fc.weight", "fc.bias"}


def test_features_only_takes_the_trunk(file: Path, state: State) -> None:
    model = load(ARCH, file, overlay={"num_classes": 10}, features_only=True, out_indices=[1, 2])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(key.startswith(("fc.", "level3")) for key in model.state_dict())


@pytest.mark.parametrize("chans", [1, 2, 4, 6, 13])
def test_input_channels_as_the_reference(chans: int, file: Path) -> None:
    overlay = {"file": str(file), "num_classes": 10}
    options: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": overlay, "in_chans": chans}
    ours = vertebra.create_model(ARCH, num_classes=10, **options)
    theirs = timm.create_model(ARCH, num_classes=10, **options)
    assert same(ours.state_dict(), theirs.state_dict())
    assert ours.load_report.resized == ["base_layer.0.weight"]


@pytest.mark.parametrize("chans", [1, 4])
def test_input_channels_of_a_transformer_as_the_reference(chans: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"depth": 1, "in_chans": chans}
    state = random_state(vertebra.create_model(THREE, depth=1, device="meta").state_dict())
    save_file(state, tmp_path / "a.safetensors")
    overlay = {"file": str(tmp_path / "a.safetensors")}
    ours = vertebra.create_model(THREE, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    theirs = timm.create_model(THREE, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    assert same(ours.state_dict(), theirs.state_dict())


def test_pooling_moves_the_final_norm_as_the_reference(tmp_path: Path) -> None:
    state = random_state(vertebra.create_model(THREE, depth=1, device="meta").state_dict())
    save_file(state, tmp_path / "a.safetensors")
    options: dict[str, Any] = {"depth": 1, "global_pool": "avg", "pretrained": True}
    options["pretrained_cfg_overlay"] = {"file": str(tmp_path / "a.safetensors")}
    ours = vertebra.create_model(THREE, **options)
    assert torch.equal(ours.fc_norm.weight, state["norm.weight"])
    assert "norm.weight" not in ours.state_dict()


# --- on meta, and nothing twice ---------------------------------------------------------------------------------------

INITIALISERS = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]


@pytest.fixture
def initialised(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every tensor with storage that an initialiser fills, from here on."""
    filled = list[Tensor]()

    def watch(name: str) -> None:
        original = getattr(nn.init, name)

        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not tensor.is_meta:
                filled.append(tensor)
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(nn.init, name, call)

    for name in INITIALISERS:
        watch(name)
    return filled


def test_what_the_file_fills_is_never_initialised(file: Path, initialised: list[Tensor]) -> None:
    load(ARCH, file, overlay={"num_classes": 10})
    assert not initialised
    model = load(ARCH, file, overlay={"num_classes": 10}, num_classes=7)
    assert {t.data_ptr() for t in initialised} == {model.fc.weight.data_ptr(), model.fc.bias.data_ptr()}


def test_without_weights_everything_is_initialised(initialised: list[Tensor]) -> None:
    model = vertebra.create_model(ARCH)
    touched = {t.data_ptr() for t in initialised}
    assert {name for name, p in model.named_parameters() if p.data_ptr() not in touched} == set()
    assert all(t.isfinite().all() for t in model.state_dict().values())


@pytest.mark.parametrize("arch", [ARCH, "deit_tiny_patch16_224", DISTILLED, THREE])
def test_fresh_weights_have_the_references_spread(arch: str) -> None:
    """Each tensor's mean and deviation as timm's: training from scratch starts alike."""
    torch.manual_seed(0)
    options = {} if arch == ARCH else {"depth": 2}
    ours, theirs = vertebra.create_model(arch, **options), timm.create_model(arch, **options)
    for name, a in ours.state_dict().items():
        b = theirs.state_dict()[name]
        if a.ndim < 2 or a.numel() < 1000:
            continue
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.1, abs=1e-7), name
        assert a.mean().item() == pytest.approx(b.mean().item(), abs=float(b.std()) * 0.15 + 1e-7), name


def test_on_meta_nothing_is_read_into_memory() -> None:
    model = vertebra.create_model("deit3_huge_patch14_224", device="meta")
    assert all(t.is_meta for t in model.state_dict().values())
    assert sum(p.numel() for p in model.parameters()) == 632_126_440


def test_dtype(file: Path, state: State) -> None:
    model = load(ARCH, file, overlay={"num_classes": 10}, dtype=torch.bfloat16, device="cpu").eval()
    assert torch.equal(model.fc.weight, state["fc.weight"].bfloat16())
    assert model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_half_precision_files_fill_float_models(state: State, tmp_path: Path) -> None:
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "a.safetensors")
    model = vertebra.create_model(ARCH, checkpoint_path=tmp_path / "a.safetensors", num_classes=10)
    assert model.fc.weight.dtype == torch.float32
    assert torch.equal(model.fc.weight, state["fc.weight"].half().float())


def test_options_that_mean_the_default() -> None:
    model = vertebra.create_model(ARCH, num_classes=None, in_chans=None, global_pool=None, device="meta", img_size=None)
    assert model.num_classes == 1000


def test_real_weights_from_a_file(shared_data: Path) -> None:
    model = load("deit_tiny_patch16_224", shared_data / "weights" / "deit_tiny_patch16_224.safetensors")
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert not model.load_report.reinitialised


def test_a_saved_model_has_the_rights_of_any_new_file_and_nothing_is_left_beside_it(file: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    saved = vertebra.save_model(vertebra.load_model(ARCH, weights=file), tmp_path / "model.safetensors")
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "plain"]


def test_a_model_that_finds_no_room_leaves_the_file_that_was_there(file: Path, tmp_path: Path) -> None:
    model = vertebra.load_model(ARCH, weights=file)
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"what was there")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WeightsError, match=r"cannot write .*: File too large; nothing was changed$"):
            vertebra.save_model(model, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert target.read_bytes() == b"what was there"
