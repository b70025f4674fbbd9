"""A checkpoint file -> tensors: every wrapping that training scripts use, and nothing but tensors."""

import io
import os
import pickle
import shutil
import struct
import tracemalloc
import zlib
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from vertebra import WeightsError
from vertebra.hub.convert import convert
from vertebra.hub.state import read_file, unwrap
from vertebra.spec import VertebraError

WEIGHT = torch.arange(6.0).reshape(2, 3)
OTHER = torch.ones(2, 3)


WRAPPED: list[tuple[Any, str]] = [
    ({"fc.weight": WEIGHT}, ""),
    ({"model": {"fc.weight": WEIGHT}}, "model"),
    ({"state_dict": {"fc.weight": WEIGHT}, "epoch": 3, "arch": "dla34"}, "state_dict"),
    ({"state_dict": {"module.fc.weight": WEIGHT}}, "state_dict"),
    ({"module.module.fc.weight": WEIGHT}, ""),
    ({"state_dict": {"_orig_mod.fc.weight": WEIGHT}}, "state_dict"),
    ({"module._orig_mod.fc.weight": WEIGHT}, ""),
    ({"model": {"state_dict": {"fc.weight": WEIGHT}}}, "model.state_dict"),
    ({"model_state_dict": {"fc.weight": WEIGHT}, "optimizer_state_dict": {"state": {}}}, "model_state_dict"),
    ({"n_averaged": torch.tensor(3), "module.fc.weight": WEIGHT}, ""),
    ({"fc._orig_mod.weight": WEIGHT}, ""),
    ({"state_dict": {"model._orig_mod.fc.weight": WEIGHT}, "pytorch-lightning_version": "2.5"}, "state_dict"),
    ({"net.fc.weight": WEIGHT}, ""),
    ({"model_state_dict": {"net.fc.weight": WEIGHT}, "optimizer_state_dict": {"state": {}}}, "model_state_dict"),
    ({"net": {"module.fc.weight": WEIGHT}, "acc": 0.9}, "net"),
    ({"timm_model.fc.weight": WEIGHT}, ""),
    ({"model": {"fc.weight": OTHER}, "model_ema": {"fc.weight": WEIGHT}, "optimizer": {"state": {}}}, "model_ema"),
    ({"state_dict": {"fc.weight": OTHER}, "state_dict_ema": {"module.fc.weight": WEIGHT}}, "state_dict_ema"),
]


@pytest.mark.parametrize(("content", "wrapper"), WRAPPED, ids=[f"{i}-{w}" for i, (_, w) in enumerate(WRAPPED)])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old pickle"])
def test_wrappings(content: Any, wrapper: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    state, metadata = read_file(path)
    assert list(state) == ["fc.weight"]
    assert torch.equal(state["fc.weight"], WEIGHT)
    assert metadata == {"wrapper": wrapper}


def test_a_prefix_that_not_all_keys_share_stays() -> None:
    assert list(unwrap({"module.a": WEIGHT, "b": WEIGHT})) == ["module.a", "b"]


# --- wrappings by the tools that make them ----------------------------------------------------------------------------


class Trained(nn.Module):
    """As Lightning's modules hold a model, with a loss beside it that has weights of its own."""

    def __init__(self, model: nn.Module, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        if loss is not None:
            self.loss = loss


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 2)


def _compiled(model: Any) -> Any:
    model.features[0] = torch.compile(model.features[0])
    model.fc = torch.compile(model.fc)
    return model


def _checkpointed(model: Any) -> Any:
    model.fc = checkpoint_wrapper(model.fc)
    return model


WRAPPERS_OF_TORCH: list[Any] = [
    AveragedModel,
    torch.compile,
    nn.DataParallel,
    _compiled,
    _checkpointed,
    Trained,
    lambda model: AveragedModel(cast("nn.Module", torch.compile(nn.DataParallel(_compiled(model))))),
    lambda model: nn.DataParallel(Trained(AveragedModel(model))),
    lambda model: Trained(Trained(_compiled(model))),
]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("number", range(len(WRAPPERS_OF_TORCH)))
def test_a_wrapped_model_is_read_as_the_model(number: int, suffix: str, tmp_path: Path) -> None:
    model = Small()
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = WRAPPERS_OF_TORCH[number](model).state_dict()
    path = tmp_path / f"wrapped{suffix}"
    if suffix == ".pth":
        torch.save({"model_state_dict": wrapped, "epoch": 3}, path)
    else:
        save_file(wrapped, path)
    state, _ = read_file(path)
    assert sorted(state) == sorted(expected)
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_what_stands_beside_a_model_is_left_out_by_name(tmp_path: Path) -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    content = {"state_dict": Trained(nn.Linear(2, 2), loss).state_dict(), "pytorch-lightning_version": "2.5.0"}
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    with pytest.warns(UserWarning, match=r"left out what stands beside 'model' \(1\): loss\.weight"):
        state, _ = read_file(path)
    assert list(state) == ["weight", "bias"]


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    save_file({"fc.weight": WEIGHT}, tmp_path / "a.safetensors", metadata={"format": "pt", "who": "me"})
    state, metadata = read_file(tmp_path / "a.safetensors")
    assert torch.equal(state["fc.weight"], WEIGHT)
    assert metadata == {"format": "pt", "who": "me"}


DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def test_safetensors_of_every_type_and_shape_each_with_its_own_storage(tmp_path: Path) -> None:
    """Also odd numbers of bytes, after which nothing is aligned."""
    saved = {f"{dtype}".removeprefix("torch."): torch.arange(7).to(dtype) for dtype in DTYPES}
    saved |= {"scalar": torch.tensor(5), "none": torch.empty(0, 3), "map": torch.rand(2, 3, 4)}
    path = tmp_path / "a.safetensors"
    save_file(saved, path)
    content = path.read_bytes()
    state = read_file(path)[0]
    assert set(state) == set(saved)
    for key, tensor in saved.items():
        assert state[key].dtype == tensor.dtype
        assert state[key].shape == tensor.shape
        assert torch.equal(state[key], tensor)
        assert state[key].untyped_storage().nbytes() == tensor.nbytes
        state[key].zero_()
    assert path.read_bytes() == content


class Touch:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["evil.pth", "evil.bin", "evil.pt"])
@pytest.mark.parametrize("how", ["torch", "torch, old", "pickle"])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(name: str, how: str, tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / name
    content = {"fc.weight": WEIGHT, "args": Touch(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"args": Touch(trap)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(WeightsError, match=r"evil.*nothing else is unpickled"):
        read_file(path)
    assert not trap.exists()


def test_harmless_objects_are_refused_too(tmp_path: Path) -> None:
    torch.save({"model": {"a": WEIGHT}, "when": Fraction(1, 3)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="not a checkpoint of tensors alone") as caught:
        read_file(tmp_path / "a.pth")
    assert "\x1b" not in str(caught.value)  # torch colours its own message
    assert "GLOBAL fractions.Fraction" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # and advises to unpickle it nevertheless


def test_the_arguments_of_a_training_script_are_passed_over(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": WEIGHT}, "args": Namespace(lr=0.1, names=["x"])}, tmp_path / "last.pth.tar")
    assert list(read_file(tmp_path / "last.pth.tar")[0]) == ["a"]


def save(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(suffix: str, keep: float, tmp_path: Path) -> None:
    path = save({"a": torch.zeros(500), "b": torch.zeros(7)}, tmp_path / f"cut{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(WeightsError, match=r"cut"):
        read_file(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"\0" * 1000, b"<html>404</html>" * 9, b"PK\x03\x04" + b"x" * 99, b"\xff" * 64, b"version https://git-lfs"],
)
def test_files_that_are_no_checkpoint(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="junk"):
        read_file(path)


@pytest.mark.parametrize("content", [[WEIGHT], WEIGHT, {"a": 3}, {"model": {"a": "text"}}, {3: WEIGHT}, None])
def test_pickles_that_hold_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth holds"):
        read_file(tmp_path / "odd.pth")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*nowhere\.pth"):
        read_file(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="it is a folder"):
        read_file(tmp_path)


def test_a_model_stays_what_it_was_when_its_file_is_rewritten(tmp_path: Path) -> None:
    """As training scripts do, in place."""
    path = save({"a": torch.zeros(50_000)}, tmp_path / "best.pth")
    tensor: Tensor = read_file(path)[0]["a"]
    torch.save({"a": torch.ones(50_000)}, path)
    assert torch.equal(tensor, torch.zeros(50_000))
    torch.save({"a": tensor}, path)
    assert torch.equal(read_file(path)[0]["a"], torch.zeros(50_000))


def test_a_safetensors_file_that_is_rewritten_or_cut_in_place_changes_no_model(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(50_000), "b": torch.zeros(9, dtype=torch.int8)}, tmp_path / "a.safetensors")
    path = tmp_path / "a.safetensors"
    state: dict[str, Tensor] = read_file(path)[0]
    size = path.stat().st_size
    with path.open("rb+") as file:
        file.seek(size // 2)
        file.write(b"\x40" * (size - size // 2))
    assert not state["a"].any()
    assert not state["b"].any()
    os.truncate(path, 100)
    assert not state["a"].any()
    assert not state["b"].any()


def test_threads_read_checkpoints_that_hold_their_arguments(tmp_path: Path) -> None:
    """What may be unpickled is one set for the whole process, and the others' stays as they left it."""
    threads, before = 4, torch.serialization.get_safe_globals()
    for number in range(threads):
        content = {"model": {"a": torch.full((3,), float(number))}, "args": Namespace(lr=0.1)}
        torch.save(content, tmp_path / f"{number}.pth")

    def read(number: int) -> list[float]:
        return [float(read_file(tmp_path / f"{number}.pth")[0]["a"][0]) for _ in range(100)]

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(read, range(threads))) == [[float(number)] * 100 for number in range(threads)]
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_reading_leaves_the_file_as_it_is(suffix: str, tmp_path: Path) -> None:
    path = save({"a": torch.zeros(500)}, tmp_path / f"a{suffix}")
    before = path.read_bytes()
    tensor: Tensor = read_file(path)[0]["a"]
    tensor.add_(1)
    assert path.read_bytes() == before
    assert torch.equal(read_file(path)[0]["a"], torch.zeros(500))


@pytest.mark.parametrize("name", ["best.pth", "best", "best.bin"])
def test_what_is_converted_is_called_safetensors(name: str, tmp_path: Path) -> None:
    source = save({"a": torch.zeros(3)}, tmp_path / "best.pth")
    before = source.read_bytes()
    with pytest.raises(WeightsError, match=f"{name}: must end in .safetensors"):
        convert(source, "dla34", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pth"]
    assert source.read_bytes() == before


def bomb(path: Path, megabytes: int, claims: int) -> Path:
    """An array of zeros, deflated, whose zip claims so many bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (claims // 4,)})
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = packer.compress(header.getvalue()) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    data, name = start + block * megabytes + packer.flush(), b"a.npy"
    fields = struct.pack("<5H3I2H", 20, 0, 8, 0, 0, 0, len(data), claims + len(header.getvalue()), len(name), 0)
    local = b"PK\3\4" + fields + name + data
    index = struct.pack("<4sH", b"PK\1\2", 20) + fields + struct.pack("<3H2I", 0, 0, 0, 0, 0) + name
    path.write_bytes(local + index + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(index), len(local), 0))
    return path


@pytest.mark.parametrize("suffix", ["npz", "pth"])
@pytest.mark.parametrize("claims", [3000 * 2**20, 2**20])
def test_a_zip_of_weights_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, suffix: str, claims: int) -> None:
    """3 GB of zeros in 3 MB, which say so, or claim to be one megabyte."""
    path = bomb(tmp_path / f"weights.{suffix}", 3000, claims)
    assert path.stat().st_size < 4 * 2**20
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=r"unpacks to 3,145,|cannot be read"):
            read_file(path)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_an_npz_with_any_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", a=np.arange(6.0), b=np.ones((2, 3), np.float32))
    whole, path = (tmp_path / "whole.npz").read_bytes(), tmp_path / "spoiled.npz"
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            read_file(path)
        except WeightsError:
            refused += 1
    assert refused > len(whole) // 2


def test_what_is_there_is_converted_over_only_when_that_was_said_and_the_source_never(
    file: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copy(file, tmp_path / "dla46_c.safetensors"))
    before = source.read_bytes()
    for force in (False, True):
        with pytest.raises(VertebraError, match=r"dla46_c.safetensors is the file that is read; name another"):
            convert(source, None, source, half=True, force=force)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(VertebraError, match=r"out.safetensors is there already; name another file, or .*--force"):
        convert(source, None, out)
    assert (source.read_bytes(), out.read_bytes()) == (before, b"mine")
    convert(source, None, out, force=True)
    assert read_file(out)[0].keys() == read_file(source)[0].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dla46_c.safetensors", "out.safetensors"]
