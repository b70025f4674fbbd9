"""FSDP2 on two gloo processes: the same curve, one file, and on from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vertebra
from tests.engine.conftest import environment, equal, launcher, make_photos, on_two, table, tensors, tiny_run
from vertebra.data.loader import Batch
from vertebra.engine import checkpoint, sharding
from vertebra.engine.config import RunConfig
from vertebra.engine.rules import check
from vertebra.engine.setup import build
from vertebra.engine.sharding import in_step, units
from vertebra.engine.train import train
from vertebra.spec import VertebraError

PLAIN = ("augment.mixup=0", "augment.cutmix=0", "augment.re_prob=0", "model.drop_rate=0", "model.drop_path_rate=0")
SETTINGS = (*PLAIN, "data.batch_size=2", "optim.accumulate=3", "optim.clip_norm=0.5", "model.grad_checkpointing=true")
"""Three validation images, two a step: in the last one, a process has none."""


GRADIENTS = """
import copy
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from vertebra.engine.sharding import accumulate, share_buffers, shard, validating, whole
from vertebra.hub.factory import create_model
dist.init_process_group("gloo")
torch.manual_seed(0)
model = create_model("dla46_c", num_classes=3).double().train()
plain = copy.deepcopy(model)
shard(model, torch.device("cpu"))
torch.manual_seed(dist.get_rank() + 1)
images, labels = torch.randn(2, 4, 3, 64, 64).double(), torch.randint(0, 3, (4,))
for number in range(2):
    accumulate(model, number == 1)
    for net in (model, plain):
        cross_entropy(net(images[number]), labels).backward()
for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
    dist.all_reduce(theirs.grad)
    torch.testing.assert_close(mine.grad.full_tensor(), theirs.grad / 2, msg=name)
share_buffers(model)
for buffer in plain.buffers():
    dist.broadcast(buffer, 0)
with torch.inference_mode(), validating():
    torch.testing.assert_close(model.eval()(images[0]), plain.eval()(images[0]), rtol=1e-4, atol=1e-4)
state = whole(model)
if dist.get_rank() == 0:
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-5)
else:
    assert not state
dist.destroy_process_group()
"""


def test_gradients_and_statistics_of_a_cnn_are_those_of_ddp(tmp_path: Path) -> None:
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    call = [sys.executable, *launcher(), str(script)]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "view tensor" not in done.stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"), each=6)


@pytest.fixture(scope="module")
def config(photos: Path) -> RunConfig:
    return tiny_run(photos, *SETTINGS)


@pytest.fixture(scope="module")
def alone(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, tmp_path_factory.mktemp("alone") / "run").out


@pytest.fixture(scope="module")
def sharded(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharded") / "run"
    on_two(replace(config, sharding="fsdp2"), out)
    return out


def test_it_learns_as_one_process_does_and_leaves_an_ordinary_model(alone: Path, sharded: Path, photos: Path) -> None:
    for one, two in zip(table(alone), table(sharded), strict=True):
        for key in ("train_loss", "val_loss", "val_top1"):
            assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-3), key
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (sharded, alone))
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in theirs.items()}
    model = vertebra.load_model(sharded)
    assert vertebra.Predictor(model, optimize=False)(photos / "class0" / "00.png").labels
    saved = tensors(checkpoint.all_in(sharded)[-1])
    for key, value in tensors(checkpoint.all_in(alone)[-1])["ema"].items():
        torch.testing.assert_close(saved["ema"][key], value, rtol=1e-2, atol=1e-3)


def test_it_goes_on_sharded_to_the_same_bits_and_unsharded_all_but(
    config: RunConfig, sharded: Path, tmp_path: Path
) -> None:
    final = checkpoint.all_in(sharded)[-1]
    for name in ("two", "one"):
        out = shutil.copytree(sharded, tmp_path / name)
        checkpoint.all_in(out)[-1].unlink()
        assert [path.name for path in checkpoint.all_in(out)] == ["step-000000002.pt"]
    on_two(replace(config, sharding="fsdp2"), tmp_path / "two")
    train(config, tmp_path / "one", resume=True)
    two, one = (tensors(tmp_path / name / "checkpoints" / final.name) for name in ("two", "one"))
    assert equal(two, tensors(final))
    assert one["optimizer"]["state"].keys() == two["optimizer"]["state"].keys()
    for key, value in one["ema"].items():
        torch.testing.assert_close(two["ema"][key], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "some", "others"),
    [
        ("deit_tiny_distilled_patch16_224", {"blocks.0", "blocks.11"}, {"norm", "head"}),
        ("dla102", {"level2", "level3.tree1", "level3"}, {"level0", "fc"}),
        ("cspresnet50", {"stages.0", "stages.0.blocks.1"}, {"stem.conv1"}),
        ("dpn68", {"features.conv3_1", "features.conv5_3"}, {"features", "classifier"}),
        ("regnetx_002", {"s1.b1", "s4.b7"}, {"stem", "head"}),
    ],
)
def test_what_is_gathered_together_are_the_models_own_blocks(name: str, some: set[str], others: set[str]) -> None:
    model = vertebra.create_model(name, device="meta")
    found = units(model)
    assert some <= set(found)
    assert not others & set(found)
    for number, outer in enumerate(found):  # what lies within another comes before it
        assert not any(inner.startswith(f"{outer}.") for inner in found[number:])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("compile=true", "set compile=false"),
        ("precision=fp16", "set precision=bf16 or fp32"),
        ("device=mps", "mps has one"),
        ("freeze={depth: 1, thaw_every: 1}", "leave freeze.thaw_every out"),
    ],
)
def test_what_cannot_be_spread_is_refused(photos: Path, setting: str, message: str) -> None:
    more = ("device=auto", "model.pretrained=true", "sharding=fsdp2")
    with pytest.raises(VertebraError, match=message):
        check(tiny_run(photos, *more, setting))


def test_one_process_has_nobody_to_share_with(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(VertebraError, match=r"this is the only one; start it with `torchrun"):
        build(tiny_run(photos, "sharding=fsdp2"), tmp_path / "run")


def test_a_process_without_images_still_takes_its_step() -> None:
    none, seen = torch.empty(0), list[torch.Tensor]()
    full = Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.zeros(2), [])
    empty = Batch(none, none, none, [])

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images

    image = torch.ones(1, 3, 4, 4)
    assert list(in_step([full, empty], forward, image)) == [full, empty]
    assert seen == [image]


def test_what_two_branches_call_alike_is_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vertebra.create_model("dla34")
    branches = [name for name, _ in model.named_parameters() if name.startswith(("level2.tree1.", "level2.tree2."))]
    alike = [f"level2.{tree}.{conv}.weight" for tree in ("tree1", "tree2") for conv in ("conv1", "conv2")]
    assert set(alike) < set(branches)
    monkeypatch.setattr(sharding, "layer_groups", lambda *_: [alike, branches])
    assert units(model) == []
