"""The questions about names, answered as timm answers them (restricted to the families that are here)."""

from typing import Any

import pytest
import timm

import vertebra
from vertebra.hub import listing
from vertebra.hub.registry import REGISTRY, Registry
from vertebra.models import FAMILIES

OURS = set(REGISTRY.archs)


def rows_of_timm(arch: str) -> set[str]:
    return {name for name in timm.list_models(f"{arch}.*", include_tags=True) if name.partition(".")[0] == arch}


TRAINED_BY_US = {name for arch in OURS for name, row in REGISTRY.weights(arch).items() if row.file is not None}

# timm lists further checkpoints of some architectures (RegNet): those lists cannot be equal, the others must be.
COMMON = {arch for arch in OURS if rows_of_timm(arch) == set(REGISTRY.weights(arch)) - TRAINED_BY_US}


def common(names: list[str]) -> list[str]:
    return [name for name in names if name.partition(".")[0] in COMMON and name not in TRAINED_BY_US]


FILTERS = ["", "*", "dla*", "*in1k", "deit*distilled*", "deit3_*", "dla34", "deit_tiny*.fb*", "dla4?_c", "no_such*"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"pretrained": True},
    {"exclude_filters": "*384*"},
    {"exclude_filters": ["*3*", "*x*"], "pretrained": True},
    {"include_tags": True},
    {"include_tags": False, "pretrained": True},
    {"name_matches_cfg": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("pattern", [*FILTERS, ["dla*", "*tiny*"]], ids=str)
def test_list_models(pattern: Any, options: dict[str, Any]) -> None:
    assert common(vertebra.list_models(pattern, **options)) == common(timm.list_models(pattern, **options))


def test_every_name_without_a_tag() -> None:
    assert vertebra.list_models() == [name for name in timm.list_models() if name in OURS]


def test_what_can_be_compared_is_most() -> None:
    assert {arch for arch in OURS if arch.startswith(("dla", "deit", "dpn"))} <= COMMON


@pytest.mark.parametrize("pattern", FILTERS)
def test_list_pretrained(pattern: str) -> None:
    assert common(vertebra.list_pretrained(pattern)) == common(timm.list_pretrained(pattern))


MODULES = [
    "",
    None,
    "dla",
    "deit",
    "vision_transformer",
    ("dla", "dpn"),
    ["dla", "unknown"],
    "unknown",
    "DLA",
    "d*",
    [],
]


@pytest.mark.parametrize("module", MODULES, ids=str)
@pytest.mark.parametrize("pattern", ["", None, "*34*"])
def test_list_models_of_modules(module: Any, pattern: Any) -> None:
    found = common(vertebra.list_models(pattern, module))
    assert found == common(timm.list_models(pattern, module))
    assert bool(found) or pattern == "*34*" or module in ("unknown", "DLA", "d*")


def test_no_filter_can_be_none() -> None:
    assert common(vertebra.list_models(exclude_filters=None)) == common(timm.list_models(exclude_filters=None))
    assert common(vertebra.list_pretrained("dla*", None)) == common(timm.list_pretrained("dla*", None))


def test_modules_are_the_families() -> None:
    assert vertebra.list_modules() == sorted(family.name for family in FAMILIES)
    assert sorted(name for m in vertebra.list_modules() for name in vertebra.list_models(module=m)) == sorted(OURS)


@pytest.mark.parametrize("name", ["dla34", "dla34.in1k", "deit3_huge_patch14_224", "foo", "", "dla34.nope"])
def test_is_model(name: str) -> None:
    assert vertebra.is_model(name) == timm.is_model(name)


@pytest.mark.parametrize("name", ["dla34", "dla34.in1k", "foo"])
def test_is_model_pretrained(name: str) -> None:
    assert vertebra.is_model_pretrained(name) == timm.is_model_pretrained(name)


@pytest.mark.parametrize("name", ["dla102", "dla102.in1k", "deit3_small_patch16_224.fb_in22k_ft_in1k"])
def test_pretrained_cfg(name: str) -> None:
    ours, expected = vertebra.get_pretrained_cfg(name), timm.get_pretrained_cfg(name)
    for field in ("hf_hub_id", "architecture", "tag", "mean", "std", "crop_pct", "interpolation", "input_size"):
        assert getattr(ours, field) == getattr(expected, field)
        assert vertebra.get_pretrained_cfg_value(name, field) == timm.get_pretrained_cfg_value(name, field)
    assert ours.has_weights


def test_every_record_is_the_references() -> None:
    more = {"url", "origin_url", "paper_ids"}  # ours names what there is; timm leaves some empty
    names = [name for name in vertebra.list_models(include_tags=True) if name in timm.list_models(include_tags=True)]
    assert len(names) > 100
    for name in names:
        ours, theirs = (library.get_pretrained_cfg(name).to_dict() for library in (vertebra, timm))
        assert {k: v for k, v in ours.items() if k not in more} == {k: v for k, v in theirs.items() if k not in more}
        assert theirs.get("url") in ("", ours["url"])


def test_pretrained_cfg_of_an_unknown_name() -> None:
    assert vertebra.get_pretrained_cfg("foo") is None
    with pytest.raises(vertebra.UnknownNameError, match="foo"):
        vertebra.get_pretrained_cfg("foo", allow_unregistered=False)


@pytest.mark.parametrize(
    "name", ["dla34", "dla34.in1k", "dla34.", "dla34.a.b", "", "no_such", "hf-hub:timm/dla34.in1k"]
)
def test_names_are_taken_apart_as_the_reference_does(name: str) -> None:
    theirs = timm.models
    assert listing.get_arch_name(name) == theirs.get_arch_name(name)
    assert listing.split_model_name_tag(name) == theirs.split_model_name_tag(name)
    assert listing.split_model_name_tag(name, "none") == theirs.split_model_name_tag(name, "none")
    for modules in ("dla", ["dpn", "dla"], "dpn", "unknown", ()):
        assert listing.is_model_in_modules(name, modules) == theirs.is_model_in_modules(name, modules)
    records = listing.get_arch_pretrained_cfgs(name)
    expected = theirs.get_arch_pretrained_cfgs(name)
    assert [(key, cfg.tag, cfg.hf_hub_id) for key, cfg in records.items()] == [
        (key, cfg.tag, cfg.hf_hub_id) for key, cfg in expected.items()
    ]


def test_a_field_that_a_record_lacks_is_none_and_a_model_that_does_not_exist_raises() -> None:
    assert vertebra.get_pretrained_cfg_value("dla34", "no_such") is timm.get_pretrained_cfg_value("dla34", "no_such")
    for library in (timm, vertebra):
        with pytest.raises(RuntimeError):
            library.get_pretrained_cfg_value("no_such", "mean")


@pytest.mark.parametrize("module", ["dla", "", None, "dpn", "no_such"])
def test_entrypoint_of_a_module(module: str | None) -> None:
    if module not in ("dpn", "no_such"):
        assert vertebra.model_entrypoint("dla34", module).__name__ == timm.model_entrypoint("dla34", module).__name__
        return
    with pytest.raises(RuntimeError):
        timm.model_entrypoint("dla34", module)
    with pytest.raises(vertebra.UnknownNameError, match=f"no model 'dla34' in module '{module}'; it is one of 'dla'"):
        vertebra.model_entrypoint("dla34", module_filter=module)


def test_entrypoint() -> None:
    entry = vertebra.model_entrypoint("dla46_c")
    assert entry.__name__ == timm.model_entrypoint("dla46_c").__name__
    assert entry(num_classes=3, device="meta").num_classes == 3
    with pytest.raises(vertebra.UnknownNameError):
        vertebra.model_entrypoint("foo")


def test_two_families_cannot_claim_one_name() -> None:
    with pytest.raises(vertebra.VertebraError, match="is declared by"):
        Registry((FAMILIES[0], FAMILIES[0]))


def test_the_registry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        REGISTRY.weights("dla34")["dla34.mine"] = None  # type: ignore[index]
