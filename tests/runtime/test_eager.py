"""Eager mode with steps made one: the model's answers, with the weights of when it was made."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vertebra
from tests.zoo import ARCHS, random_state, relative, small_model, small_size
from vertebra.hub.registry import REGISTRY
from vertebra.models.backbone import Backbone
from vertebra.runtime import eager
from vertebra.runtime.eager import EagerProgram, fused
from vertebra.runtime.passes.onednn import OneDnnConv
from vertebra.runtime.passes.trace import trace
from vertebra.spec import VertebraError

FAMILIES = [
    min((a for a in ARCHS if REGISTRY.family(a).name == family), key=lambda a: REGISTRY.variant(a).params)
    for family in sorted({REGISTRY.family(a).name for a in ARCHS})
]
CNNS = [a for a in FAMILIES if REGISTRY.family(a).name not in ("vit", "deit")] + ["dla60_res2next", "regnety_002"]


def program(model: nn.Module) -> EagerProgram:
    found = fused(model)
    assert found is not None
    return found


def convolutions(found: EagerProgram) -> list[OneDnnConv]:
    assert found.steps is not None
    return [m for step in found.steps for m in step.modules() if isinstance(m, OneDnnConv)]


@torch.no_grad()
@pytest.mark.parametrize("arch", CNNS)
def test_every_family_answers_as_it_does(arch: str) -> None:
    """At any batch and size, in either format, and in bfloat16; no normalisation behind a convolution is left."""
    model = small_model(arch, num_classes=10).eval()
    model.load_state_dict(random_state(model.state_dict()))
    fast = program(model)
    for shape in ((2, 3, *small_size(arch)), (1, 3, 45, 71), (3, 3, 96, 33)):
        x = torch.randn(shape)
        assert relative(fast(x), model(x)) < 1e-5
        assert relative(fast(x.contiguous(memory_format=torch.channels_last)), model(x)) < 1e-5
    left = [m for step in fast.steps or () for m in step.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not left or REGISTRY.family(arch).name == "dpn"  # whose norms come before convolutions
    half = copy.deepcopy(model).bfloat16()
    answer = program(half)(x.bfloat16())
    assert answer.dtype == torch.float32
    assert relative(answer, model(x)) < 0.1


def test_transformers_have_nothing_to_gain(vit: Backbone) -> None:
    assert fused(vit) is None


@torch.no_grad()
def test_the_weights_are_those_of_when_it_was_made(cnn: Backbone) -> None:
    """Each of them, edited through `.data`: neither a folded one nor one that stayed as it was changes an answer."""
    x = torch.randn(2, 3, 64, 64)
    fast = program(cnn)
    before, narrow = fast(x), program(cnn)(x[..., :48])
    for tensor in (*cnn.parameters(), *cnn.buffers()):
        if tensor.is_floating_point():
            tensor.data.mul_(1.5)
    assert torch.equal(fast(x), before)
    assert torch.equal(fast(x[..., :48]), narrow), "a size that came later"
    assert not torch.equal(program(cnn)(x), before)


@torch.no_grad()
def test_hooks_and_modes_see_the_models_own_steps(cnn: Backbone) -> None:
    x, seen = torch.randn(2, 3, 64, 64), list[torch.Size]()
    fast = program(cnn)
    handle = cnn.get_submodule("level3.tree1.tree1.bn1").register_forward_hook(
        lambda _m, _i, out: seen.append(out.shape)
    )
    assert torch.equal(fast(x), cnn(x.contiguous(memory_format=torch.channels_last)))
    assert len(seen) == 2
    assert fused(cnn) is None, "traced, the hook would be lost"
    handle.remove()
    with FlopCounterMode(display=False) as counted:
        fast(x)
    with FlopCounterMode(display=False) as wanted:
        cnn(x)
    assert counted.get_total_flops() == wanted.get_total_flops() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(fast(x), cnn.float()(x).float()) < 0.1
        assert relative(fast(x), fast(x)) == 0


class Doubled(nn.Module):
    """Somebody's head: draws at random, looks at values, keeps count."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) * (2.0 if bool((x >= 0).all()) or True else 1.0) + 0 * torch.rand(())


@torch.no_grad()
def test_a_layer_of_somebody_elses_is_called_as_it_is(cnn: Backbone) -> None:
    x = torch.randn(2, 3, 64, 64)
    expected = 2 * cnn(x)
    cnn.fc = Doubled(cnn.fc).eval()
    fast = program(cnn)
    assert cnn.fc.calls == 0, "its code was traced, and what it draws at random is one number for ever"
    for _ in range(2):
        assert relative(fast(x), expected) < 1e-5
    assert cnn.fc.calls == 2


def looks(self: Any, x: Tensor) -> Tensor:
    return type(self).forward_head(self, x) + torch.rand(10)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a method put in its place": lambda m: setattr(m, "forward", lambda x: x.flatten(1)),
    "another method of its own": lambda m: setattr(m, "forward_head", looks.__get__(m)),
    "a subclass": lambda m: setattr(m, "__class__", type("Mine", (type(m),), {})),
    "no convolution's norm": lambda m: m.apply(
        lambda k: [setattr(k, n, nn.Identity()) for n, c in list(k.named_children()) if isinstance(c, nn.BatchNorm2d)]
    ),
    "training": lambda m: m.train(),
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_followed_stays_as_it_is(cnn: Backbone, change: str) -> None:
    CHANGES[change](cnn)
    assert fused(cnn) is None


def test_a_model_that_is_trained_on_is_refused(cnn: Backbone) -> None:
    fast = program(cnn)
    cnn.train()
    with pytest.raises(VertebraError, match="is in training mode"):
        fast(torch.randn(1, 3, 64, 64))


@torch.no_grad()
def test_images_that_do_not_fit_meet_the_models_own_error(cnn: Backbone) -> None:
    fast = program(cnn)
    for wrong in (torch.randn(1, 4, 64, 64), torch.randn(2, 3, 0, 5)):
        with pytest.raises(RuntimeError) as own:
            cnn(wrong)
        with pytest.raises(RuntimeError) as found:
            fast(wrong)
        assert str(found.value) == str(own.value)
    assert fast(torch.randn(0, 3, 64, 64)).shape == (0, 10)


def test_gradients_are_nobodys_and_maps_may_be_viewed(cnn: Backbone) -> None:
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    assert not program(cnn)(x).requires_grad
    cnn.reset_classifier(0, "")
    assert program(cnn.eval())(x).view(2, -1).shape == (2, 8 * 2 * 2)


def test_other_threads_go_on_while_a_model_is_traced(cnn: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.fx patches `nn.Module` for everybody; a module that is none of the traced model's is called as ever."""
    layer, x, stop, wrong = (
        nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        torch.randn(2, 3),
        threading.Event(),
        list[object](),
    )
    with torch.no_grad():
        expected = layer(x)

    def call() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    if not torch.equal(layer(x), expected):
                        wrong.append("another answer")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
                wrong.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    traced = [trace(cnn) for _ in range(5)]
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(t is not None for t in traced)


@torch.no_grad()
def test_optimize_compares_it_with_the_plain_model(cnn: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 64, 64)
    fast = vertebra.optimize(cnn, "eager", "f32")
    assert relative(fast(x), cnn(x)) < 1e-5
    assert isinstance(fast._program, EagerProgram)
    assert fast._program.steps
    wrong = eager.run_steps
    monkeypatch.setattr(eager, "run_steps", lambda steps, image: wrong(steps, image).flip(1))
    with pytest.raises(VertebraError, match="does not answer as eager f32"):
        vertebra.optimize(cnn, "eager", "f32")


def test_code_of_ours_that_asks_for_values_stays_as_it_is(cnn: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(cnn), "forward_head", lambda _, x: x if float(x.sum()) > 0 else -x)
    assert fused(cnn) is None


def test_weights_made_in_inference_mode_do_as_well() -> None:
    with torch.inference_mode():
        model = small_model("dla46_c", num_classes=3).eval()
        x = torch.randn(2, 3, 64, 64)
        assert relative(program(model)(x), model(x)) < 1e-5
