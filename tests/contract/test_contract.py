"""Every promise of a model, kept by every model: none is left out, and a limitation is an error that says so.

Here those in which values are at stake; the models are the sample's, and small (tests/zoo.py). test_shapes.py has the
others.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn

import vertebra
from tests.contract.subject import SAME, Subject, is_distilled, on_meta, promised, shapes, with_state
from tests.zoo import is_transformer, relative, small_options
from vertebra.layers.drop_path import DropPath
from vertebra.models import backbone as backbone_module

# --- training ---------------------------------------------------------------------------------------------------------


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    model(x).square().mean().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_every_parameter_gets_a_gradient_and_checkpointing_gives_the_same(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = subject.own().train()
    plain = gradients(model, subject.x)
    missing = [name for name, g in plain.items() if g is None or not g.isfinite().all() or not g.any()]
    assert not missing
    calls = list[Any]()
    original: Callable[..., Any] = backbone_module.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return original(*args, **kwargs)

    monkeypatch.setattr(backbone_module, "checkpoint", counted)
    model.set_grad_checkpointing()
    recomputed = gradients(model, subject.x)
    assert calls, "nothing was checkpointed"
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    model.set_grad_checkpointing(False)
    calls.clear()
    model(subject.x)
    assert not calls


def test_stochastic_depth_and_dropout_act_in_training_only(subject: Subject) -> None:
    model = with_state(subject.arch, subject.state, drop_path_rate=0.4, drop_rate=0.3)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.4)
    with torch.no_grad():
        assert relative(model.eval()(subject.x), subject.logits) < SAME
        model.train()
        assert not torch.equal(model(subject.x), model(subject.x))


def test_answers_are_the_same_with_and_without_gradients(subject: Subject) -> None:
    assert subject.model(subject.x).requires_grad
    assert relative(subject.model(subject.x), subject.logits) < 1e-5


def test_answers_follow_the_weights(subject: Subject) -> None:
    model = subject.own()
    other = {key: value * 0.9 if value.is_floating_point() else value for key, value in subject.state.items()}
    fresh = with_state(subject.arch, other)
    with torch.no_grad():
        assert relative(model(subject.x), subject.logits) < SAME
        model.load_state_dict(other)
        assert relative(model(subject.x), fresh(subject.x)) < SAME
        assert relative(model(subject.x), subject.logits) > 1e-3


def test_parameters_sort_into_depth_groups(subject: Subject) -> None:
    """timm's own optimiser factory is the client: layer-wise learning rates and weight decay as for its own model."""
    with torch.device("meta"):
        theirs = timm.create_model(subject.arch, num_classes=10, **small_options(subject.arch))

    def groups(model: nn.Module) -> list[Any]:
        made = timm.optim.create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.7)
        names = {id(p): name for name, p in model.named_parameters()}
        return [
            (g["lr_scale"], g["weight_decay"], sorted(names[id(p)] for p in g["params"])) for g in made.param_groups
        ]

    assert groups(subject.model) == groups(theirs)


def test_group_patterns_cover_every_parameter(subject: Subject) -> None:
    """But the head's, to which timm counts a RegNetZ's last convolution."""
    heads = tuple(f"{name}." for name in (*subject.model.config.classifiers, "final_conv"))
    for coarse in (False, True):
        patterns = list[str]()
        for rule in subject.model.group_matcher(coarse).values():
            patterns += [rule] if isinstance(rule, str) else [pattern for pattern, _ in rule]
        names = [name for name, _ in subject.model.named_parameters() if not name.startswith(heads)]
        assert not [name for name in names if not any(re.match(p, name) for p in patterns)]


def test_weight_decay_spares_parameters_that_exist(subject: Subject) -> None:
    assert subject.model.no_weight_decay() <= {name for name, _ in subject.model.named_parameters()}


# --- heads ------------------------------------------------------------------------------------------------------------


def classifiers(model: Any) -> tuple[nn.Module, ...]:
    found = model.get_classifier()
    return found if isinstance(found, tuple) else (found,)


@torch.no_grad()
def test_forward_is_features_then_head(subject: Subject) -> None:
    model = subject.model
    assert torch.equal(model(subject.x), subject.logits)
    assert subject.logits.shape == (2, 10)
    embedding = model.forward_head(subject.features, pre_logits=True)
    assert embedding.shape == (2, model.head_hidden_size)
    assert [tuple(p.shape)[:2] for c in classifiers(model) for p in list(c.parameters())[:1]] == [
        (10, model.num_features)
    ] * len(classifiers(model))


@torch.no_grad()
def test_no_classes_gives_the_embedding(subject: Subject) -> None:
    embedding = subject.model.forward_head(subject.features, pre_logits=True)
    model = subject.own()
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert all(isinstance(c, nn.Identity) for c in classifiers(model))
    answer = model(subject.x)
    assert answer.shape == (2, model.num_features)
    assert relative(answer, embedding) < SAME
    built = on_meta(subject.arch, num_classes=0)
    assert list(built.state_dict()) == list(model.state_dict())


@torch.no_grad()
def test_reset_classifier_gives_a_fresh_one(subject: Subject) -> None:
    model = subject.own()
    model.reset_classifier(7)
    assert model.num_classes == 7
    answer = model.forward_head(subject.features)
    assert answer.shape == (2, 7)
    assert answer.isfinite().all()
    assert list(model.state_dict()) == list(subject.state)
    heads = tuple(model.config.classifiers)
    assert all(torch.equal(v, subject.state[k]) for k, v in model.state_dict().items() if not k.startswith(heads))


# --- features ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_only_values_are_the_intermediates(subject: Subject) -> None:
    model = on_meta(subject.arch, features_only=True, out_indices=[-1, 0]).eval()
    state = {k: v for k, v in subject.state.items() if not k.startswith(subject.model.config.classifiers)}
    keys = {k.removeprefix("model.") for k, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert keys <= set(state)
    model.load_state_dict({k: v for k, v in state.items() if k in keys}, assign=True)
    again = on_meta(subject.arch, features_only=True, out_indices=[-1, 0])
    again.load_state_dict(model.state_dict(), assign=True)
    last, first = model(subject.x)
    assert relative(last, subject.maps[-1]) < 1e-5
    assert relative(first, subject.maps[0]) < 1e-5


def test_feature_info_is_true(subject: Subject) -> None:
    assert shapes(subject.maps) == promised(subject.arch, subject.model.feature_info)
    for stage in subject.model.feature_info:
        assert isinstance(subject.model.get_submodule(stage["module"]), nn.Module)


@torch.no_grad()
def test_intermediates_in_every_form(subject: Subject) -> None:
    model, x, maps = subject.model, subject.x, subject.maps
    count = len(maps)
    two = model.forward_intermediates(x, indices=2, intermediates_only=True)
    assert shapes(two) == shapes(maps[-2:])
    assert all(torch.equal(a, b) for a, b in zip(two, maps[-2:], strict=True))
    features, flat = model.forward_intermediates(x, indices=[0, -1], output_fmt="NLC")
    assert torch.equal(features, subject.features)
    assert torch.equal(flat[0], maps[0].flatten(2).transpose(1, 2))
    assert torch.equal(flat[1], maps[-1].flatten(2).transpose(1, 2))
    early = model.forward_intermediates(x, indices=[1, 0], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[0])
    assert torch.equal(early[1], maps[1])
    with pytest.raises(vertebra.VertebraError, match=rf"stage {count} does not exist"):
        model.forward_intermediates(x, indices=[count])
    with pytest.raises(vertebra.VertebraError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NHWC")


@torch.no_grad()
def test_intermediates_normalised_and_with_prefix_tokens(subject: Subject) -> None:
    model, x = subject.model, subject.x
    answer = model.forward_intermediates(
        x, indices=[-1], norm=True, return_prefix_tokens=True, intermediates_only=True, output_fmt="NLC"
    )
    if not is_transformer(subject.arch):
        last = subject.maps[-1].flatten(2).transpose(1, 2)
        assert torch.equal(answer[0], model.normalize(subject.maps[-1], last=True).flatten(2).transpose(1, 2))
        assert answer[0].shape == last.shape
        return
    patches, prefix = answer[0]
    assert prefix.shape == (2, 2 if is_distilled(subject.arch) else 1, model.embed_dim)
    assert torch.equal(torch.cat((prefix, patches), 1), subject.features)


@torch.no_grad()
def test_pruning_keeps_what_was_asked_for(subject: Subject) -> None:
    model = subject.own()
    keep = len(subject.maps) // 2
    assert model.prune_intermediate_layers([0, keep]) == [0, keep]
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in subject.model.parameters())
    maps = model.forward_intermediates(subject.x, indices=[0, keep], intermediates_only=True)
    assert relative(maps[0], subject.maps[0]) < SAME
    assert relative(maps[1], subject.maps[keep]) < SAME
    assert model.num_classes == 0


# --- options ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_bf16_answers_are_close(subject: Subject) -> None:
    model = subject.own().bfloat16()
    answer = model(subject.x.bfloat16())
    assert answer.dtype == torch.bfloat16
    assert relative(answer.float(), subject.logits) < 0.15


@torch.no_grad()
def test_channels_last_answers_the_same(subject: Subject) -> None:
    model = subject.own().to(memory_format=torch.channels_last)
    assert relative(model(subject.x.to(memory_format=torch.channels_last)), subject.logits) < 1e-5


# --- leaving this process ---------------------------------------------------------------------------------------------


def test_safetensors_round_trip(subject: Subject, tmp_path: Path) -> None:
    path = vertebra.save_model(subject.model, tmp_path / "whatever.safetensors")
    model = vertebra.load_model(path).eval()
    before, after = subject.model.state_dict(), model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    assert type(model) is type(subject.model)
    assert model.config == subject.model.config
    with torch.no_grad():
        assert relative(model(subject.x), subject.logits) < SAME


@torch.no_grad()
def test_copies(subject: Subject) -> None:
    copied = subject.own()
    assert relative(copied(subject.x), subject.logits) < SAME
    for parameter in copied.parameters():
        parameter.zero_()
    assert torch.equal(subject.model(subject.x), subject.logits)
