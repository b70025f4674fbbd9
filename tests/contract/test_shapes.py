"""The promises in which only shapes and names are at stake: the models stay on `meta`.

Features are looked at in every architecture; options that act alike on all of a family, in the sample.
"""

import pickle
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import vertebra
from tests.contract.subject import image, is_distilled, on_meta, promised, shapes
from tests.zoo import is_transformer, small_options
from vertebra.hub.registry import REGISTRY

MAP_POOLS = {"": 1, "avg": 1, "max": 1, "avgmax": 1, "catavgmax": 2}
TOKEN_POOLS = ("", "token", "avg", "max", "avgmax", "map")


@pytest.fixture(scope="module")
def trunk(sampled: str) -> Tensor:
    return on_meta(sampled).forward_features(image(sampled, device="meta"))


@pytest.mark.parametrize("pool", sorted({*MAP_POOLS, *TOKEN_POOLS}))
def test_global_pools(sampled: str, pool: str, trunk: Tensor) -> None:
    """Created with, and changed to: both answer alike, or both refuse and say what is possible."""
    possible = TOKEN_POOLS if is_transformer(sampled) else tuple(MAP_POOLS)
    possible = ("token",) if is_distilled(sampled) else possible
    model = on_meta(sampled, num_classes=10)
    if pool not in possible:
        for act in (lambda: on_meta(sampled, global_pool=pool), lambda: model.reset_classifier(10, pool)):
            with pytest.raises(vertebra.VertebraError, match="global_pool"):
                act()
        return
    model.reset_classifier(10, pool)
    where = {"fc_norm": model.config.fc_norm} if is_transformer(sampled) else {}  # a norm stays where it is
    created = on_meta(sampled, num_classes=10, global_pool=pool, **where)
    assert {k: v.shape for k, v in created.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    expected: tuple[int, ...] = (2, 10)
    if pool == "":
        expected = (*trunk.shape[:2], 10) if is_transformer(sampled) else (2, 10, *trunk.shape[2:])
    assert created.forward_head(trunk).shape == model.forward_head(trunk).shape == expected
    width = created.num_features * MAP_POOLS.get(pool, 1)
    assert created.head_hidden_size == model.head_hidden_size == width
    if pool:
        assert created.forward_head(trunk, pre_logits=True).shape == (2, width)


def test_features_only_shapes(arch: str) -> None:
    """By default and for any choice of stages, in the order asked for; feature_info says what comes."""
    x, count = image(arch, device="meta"), len(on_meta(arch).feature_info)
    for chosen in (None, [0], [-1, 0, count // 2]):
        options = {} if chosen is None else {"out_indices": chosen}
        model = on_meta(arch, features_only=True, **options)
        info = model.feature_info
        expected = [i % count for i in (info.out_indices if chosen is None else chosen)]
        if chosen is None:
            assert len(expected) > 1
        stages = [info[i] for i in expected]
        assert shapes(model(x)) == promised(arch, stages)
        assert info.channels() == [s["num_chs"] for s in stages]
        assert info.reduction() == [s["reduction"] for s in stages]
        assert info.module_name() == [s["module"] for s in stages]


def test_features_only_is_as_the_reference_implementations(arch: str) -> None:
    with torch.device("meta"):
        theirs: Any = timm.create_model(arch, features_only=True, **small_options(arch))
    ours, x = on_meta(arch, features_only=True), image(arch, device="meta")
    assert shapes(ours(x)) == shapes(theirs(x))
    for question in ("channels", "reduction", "module_name"):
        assert list(getattr(ours.feature_info, question)()) == list(getattr(theirs.feature_info, question)())


def test_features_only_refuses_stages_that_do_not_exist(sampled: str) -> None:
    with pytest.raises(vertebra.VertebraError, match="stage 99"):
        on_meta(sampled, features_only=True, out_indices=[99])
    with pytest.raises(vertebra.VertebraError, match="features_only"):
        on_meta(sampled, out_indices=[0])


@pytest.mark.parametrize("chans", [1, 4])
def test_input_channels(sampled: str, chans: int) -> None:
    model = on_meta(sampled, in_chans=chans, features_only=True, out_indices=[0])
    assert shapes(model(image(sampled, chans=chans, device="meta"))) == promised(sampled, [model.feature_info[0]])
    assert (
        on_meta(sampled, in_chans=chans).get_submodule(REGISTRY.variant(sampled).config.first_conv).in_channels == chans
    )


def test_device_and_dtype(sampled: str) -> None:
    model = on_meta(sampled, dtype=torch.bfloat16)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.bfloat16}
    assert all(t.is_meta for t in model.state_dict().values())


@pytest.mark.parametrize("option", [{"num_clases": 3}, {"drop_path": 0.1}, {"no_such_thing": 1}])
def test_unknown_options_are_refused(sampled: str, option: dict[str, Any]) -> None:
    name = next(iter(option))
    with pytest.raises(vertebra.UnknownNameError, match=f"unknown option '{name}'"):
        vertebra.create_model(sampled, device="meta", **option)


def test_pickles(sampled: str) -> None:
    model = on_meta(sampled)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes
    assert type(again) is type(model)
    assert list(again.state_dict()) == list(model.state_dict())
    assert again.pretrained_cfg == model.pretrained_cfg
    assert again.config == model.config
