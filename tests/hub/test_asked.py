"""What `create_model` is asked for: empty and foreign records, what is not there, wrong numbers, names of old."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vertebra
from tests.hub.conftest import ARCH
from vertebra import UnknownNameError
from vertebra.cli import app
from vertebra.hub import listing
from vertebra.models import FAMILIES


@pytest.mark.parametrize("record", ["", {}, None])
def test_an_empty_record_is_none(record: Any) -> None:
    for create in (timm.create_model, vertebra.create_model):
        assert create("dla46_c", pretrained_cfg=record).pretrained_cfg["tag"] == "in1k"


def test_a_record_of_the_references_own_kind() -> None:
    record = timm.get_pretrained_cfg("dla46_c")
    assert vertebra.create_model("dla46_c", pretrained_cfg=record, device="meta").pretrained_cfg["tag"] == "in1k"
    with pytest.raises(vertebra.VertebraError, match="pretrained_cfg is a int; give a tag"):
        vertebra.create_model("dla46_c", pretrained_cfg=5)


def test_what_is_not_there_is_a_file_not_found_as_in_the_reference(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere.pth")
    for create in (timm.create_model, vertebra.create_model):
        for name, options in (
            (ARCH, {"checkpoint_path": nowhere}),
            (ARCH, {"pretrained": True, "pretrained_cfg_overlay": {"file": nowhere}}),
            (f"local-dir:{tmp_path / 'nowhere'}", {"pretrained": True}),
            (f"local-dir:{tmp_path}", {"pretrained": True}),
        ):
            with pytest.raises(FileNotFoundError):
                create(name, **options)
    with pytest.raises(vertebra.WeightsError, match="no checkpoint at"):
        vertebra.create_model(ARCH, checkpoint_path=nowhere)


WRONG = [
    {"num_classes": -1},
    {"num_classes": "10"},
    {"num_classes": 2.0},
    {"in_chans": 0},
    {"drop_rate": 2.0},
    {"drop_path_rate": -0.1},
    {"drop_rate": "0.1"},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_numbers_that_no_model_can_have(options: dict[str, Any]) -> None:
    (option, value) = next(iter(options.items()))
    with pytest.raises(vertebra.VertebraError, match=rf"^{option}={value!r}: (give a whole number|a rate is a number)"):
        vertebra.create_model(ARCH, **options)


def test_a_whole_number_may_be_numpys() -> None:
    assert vertebra.create_model(ARCH, num_classes=np.int64(3), device="meta").num_classes == 3
    with pytest.raises(UnknownNameError, match="model_name is a NoneType"):
        vertebra.create_model(None)


# --- names of old -----------------------------------------------------------------------------------------------------


def test_names_of_old_are_those_of_the_reference() -> None:
    theirs = {old: new for old, new in timm.models.get_deprecated_models().items() if vertebra.is_model(new or "")}
    ours = listing.get_deprecated_models()
    assert list(ours) == [old for family in FAMILIES for old in family.renamed]
    assert set(ours) == set(theirs)
    assert {
        old for old in ours if ours[old] != theirs[old] and theirs[old] in timm.list_models(include_tags=True)
    } == set()
    assert listing.get_deprecated_models("dla") == {}
    assert set(listing.get_deprecated_models("deit")) == {old for old in theirs if old.startswith("deit")}
    for old, new in ours.items():
        assert new in vertebra.list_models(include_tags=True)
        assert vertebra.is_model(old)
        assert old not in vertebra.list_models()


@pytest.mark.parametrize("tag", ["", ".dino", ".nope"])
def test_a_name_of_old_makes_the_model_of_today_with_a_warning(tag: str) -> None:
    old = "vit_small_patch16_224_dino"
    if tag == ".nope":
        with pytest.warns(UserWarning, match="is called"), pytest.raises(UnknownNameError, match="unknown tag 'nope'"):
            vertebra.create_model(old + tag, depth=1)
        return
    with pytest.warns(UserWarning, match=f"model '{old}{tag}' is called 'vit_small_patch16_224.dino' now") as told:
        ours = vertebra.create_model(old + tag, depth=1)
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match="deprecated"):
        theirs = timm.create_model(old + tag, depth=1)
    assert ours.pretrained_cfg["tag"] == theirs.pretrained_cfg["tag"] == "dino"
    assert ours.num_classes == theirs.num_classes == 0
    with pytest.warns(UserWarning, match="is called"):
        assert vertebra.model_entrypoint(old)(depth=1).pretrained_cfg["tag"] == "dino"


@pytest.mark.filterwarnings("always")  # as the command shows them
def test_a_name_of_old_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old = "vit_small_patch16_224_dino"
    with pytest.raises(SystemExit):
        app(["info", old])
    assert "vit_small_patch16_224.dino" in capsys.readouterr().out
    weights = tmp_path / "a.pth"
    torch.save(vertebra.create_model("vit_small_patch16_224.dino", device="cpu").state_dict(), weights)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        app(["classify", "--model", old, "--weights", str(weights), str(tmp_path / "a.png")])
    assert capsys.readouterr().err.count("is called 'vit_small_patch16_224.dino' now") == 1
