"""What people do to a model beyond calling it, done to the reference implementation's and to ours: same answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vertebra
from vertebra import VertebraError

CNNS = ("dla46_c", "cspdarknet53", "dpn48b", "regnetx_002")
VIT = "deit_tiny_patch16_224"


def both(name: str, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    theirs = timm.create_model(name, **options).eval()
    ours = vertebra.create_model(name, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs


def image(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*CNNS, VIT])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # much used all the same
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes are compared, and are then those traced
def test_it_can_be_traced(name: str, grad: bool, unchecked_shapes: None) -> None:
    model = vertebra.create_model(name, **({"img_size": 64} if name == VIT else {})).eval()
    with torch.set_grad_enabled(grad):
        traced: Any = torch.jit.trace(model, image())
        torch.testing.assert_close(traced(image()), model(image()), rtol=1e-4, atol=1e-4)


def _own_pool(model: Any) -> None:
    model.global_pool = nn.AdaptiveAvgPool2d(1)


def _own_fc(model: Any) -> None:
    model.head.fc = nn.Identity()


def _no_head(model: Any) -> None:
    model.head = nn.Identity()


def _neither(model: Any) -> None:
    model.global_pool, model.classifier = nn.Identity(), nn.Identity()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dla46_c", _own_pool),
        ("dpn48b", _own_pool),
        ("dpn48b", _neither),
        ("cspdarknet53", _own_fc),
        ("cspdarknet53", _no_head),
        ("regnetx_002", _no_head),
        (VIT, _no_head),
    ],
)
def test_parts_behind_the_trunk_can_be_put_in_place_of_ours(name: str, change: Callable[[Any], None]) -> None:
    ours, theirs = both(name, **({"img_size": 64} if name == VIT else {}))
    change(ours)
    change(theirs)
    with torch.no_grad():
        torch.testing.assert_close(ours(image()), theirs(image()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["dla46_c", "cspdarknet53", "dpn48b"])
@pytest.mark.parametrize("pool", ["fast", "fastavg", "fastmax"])
def test_older_names_of_poolings(name: str, pool: str) -> None:
    ours, theirs = both(name, global_pool=pool)
    with torch.no_grad():
        torch.testing.assert_close(ours(image()), theirs(image()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3, [0, 2]])
@pytest.mark.parametrize("reshape", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_intermediate_layers_of_a_transformer(n: Any, reshape: bool, norm: bool) -> None:
    ours, theirs = both(VIT, img_size=64)
    for prefix in (True, False):
        with torch.no_grad():
            mine, reference = (
                m.get_intermediate_layers(image(), n=n, reshape=reshape, return_prefix_tokens=prefix, norm=norm)
                for m in (ours, theirs)
            )
        torch.testing.assert_close([*mine], [*reference], rtol=1e-3, atol=1e-4)


def test_an_attention_map_is_the_references() -> None:
    ours, theirs = both(VIT, img_size=64)
    seen = list[Tensor]()
    for model in (ours, theirs):
        attention: Any = model.get_submodule("blocks.11.attn")
        attention.fused_attn = False
        attention.attn_drop.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        assert (attention.scale, attention.head_dim) == (64**-0.5, 64)
        with torch.no_grad():
            model(image())
    torch.testing.assert_close(*seen, rtol=1e-3, atol=1e-5)


def test_options_of_every_model_may_be_said() -> None:
    for name in ("dla46_c", VIT):
        assert vertebra.create_model(name, scriptable=False, exportable=True, no_jit=True).num_classes == 1000
    with pytest.raises(
        VertebraError, match=r"scriptable=True: torch.jit.script takes none of the models; use torch.jit"
    ):
        vertebra.create_model("dla46_c", scriptable=True)


@pytest.mark.parametrize("name", ["nope", "dla34.nope", "dla34", "dla34.in1k", "deit_tiny_patch16_224.fb_in1k"])
def test_whether_weights_are_published_is_answered(name: str) -> None:
    assert vertebra.is_model_pretrained(name) == timm.is_model_pretrained(name)


def test_what_code_for_the_reference_catches_is_raised() -> None:
    for library in (timm, vertebra):
        with pytest.raises(RuntimeError):
            library.create_model("nope")
    with pytest.raises(RuntimeError):
        vertebra.create_model("dla46_c", checkpoint_path=__file__)
