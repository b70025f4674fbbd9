"""The calls of timm's model API that are crossed with their options, and how each is made of either library."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import vertebra
from tests.parity.oracle import Axes, Crossing
from tests.zoo import is_transformer, random_state, small_size

CLASSES = 10


def options_of(arch: str) -> dict[str, Any]:
    """A transformer of three blocks for a small image, which is as long as both libraries can have it."""
    return {"img_size": small_size(arch, 2, 3), "depth": 3} if is_transformer(arch) else {}


def image(arch: str) -> Tensor:
    size = small_size(arch, 2, 3) if is_transformer(arch) else (32, 64)
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


def make(library: Any, arch: str, **options: Any) -> Any:
    with torch.device("meta"):
        return library.create_model(arch, **{"num_classes": CLASSES, **options_of(arch), **options}).eval()


def fill(model: nn.Module, state: dict[str, Tensor]) -> Any:
    """The values themselves, not copies: nothing here writes to them."""
    model.load_state_dict(state, assign=True)
    return model


@dataclass
class Pair:
    """A small model of an architecture in both libraries, with the same values."""

    arch: str
    ours: Any
    theirs: Any
    state: dict[str, Tensor]
    x: Tensor
    drawn: dict[tuple[str, torch.Size], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, arch: str) -> Pair:
        theirs = make(timm, arch)
        state = random_state(theirs.state_dict())
        pair = cls(arch, fill(make(vertebra, arch), state), fill(theirs, state), state, image(arch))
        pair.drawn |= {(key, value.shape): value for key, value in state.items()}
        return pair

    def values(self, model: nn.Module) -> dict[str, Tensor]:
        """For each key of any shape always the same."""
        like = model.state_dict()
        new = {key: value for key, value in like.items() if (key, value.shape) not in self.drawn}
        self.drawn |= {(key, value.shape): value for key, value in random_state(new).items()}
        return {key: self.drawn[key, value.shape] for key, value in like.items()}

    def crossings(self) -> Iterator[Crossing]:
        """Every call, made with every combination of its options."""
        tokens = is_transformer(self.arch)
        for call, axes, singly, act in (
            ("forward_intermediates", INTERMEDIATES | (TOKENS if tokens else {}), False, self.intermediates),
            *(("features_only", axes, False, self.features) for axes in feature_axes(self.arch)),
            ("reset_classifier", RESET, False, self.reset),
            ("prune_intermediate_layers", PRUNE, False, self.prune),
            ("create_model", CREATE, True, self.create),
        ):
            crossing = Crossing(call, axes, singly)
            with torch.no_grad():
                crossing.run(partial(act, vertebra), partial(act, timm))
            yield crossing

    def _model(self, library: Any) -> Any:
        return self.theirs if library is timm else self.ours

    def intermediates(self, library: Any, **options: Any) -> Any:
        return self._model(library).forward_intermediates(self.x, **options)

    def features(self, library: Any, **options: Any) -> dict[str, Any]:
        model = make(library, self.arch, features_only=True, **options)
        keys = list(model.state_dict())
        fill(model, {key: self._value(key) for key in keys})
        info = model.feature_info
        return {
            "maps": model(self.x),
            "channels": info.channels(),
            "reduction": info.reduction(),
            "module_name": info.module_name(),
            "out_indices": list(info.out_indices),
            "state_dict": keys,
        }

    def _value(self, key: str) -> Tensor:
        """A feature network's parameter by the classifier's names."""
        names = (key, key.partition(".")[2], key.replace("_", ".", 1))
        return next(self.state[name] for name in names if name in self.state)

    def reset(self, library: Any, mode: str = "eval", **options: Any) -> dict[str, Any]:
        model = copy.deepcopy(self._model(library)).train(mode == "train")
        model.reset_classifier(**{"num_classes": 7, **options})
        return self._told(model, mode)

    def prune(self, library: Any, **options: Any) -> dict[str, Any]:
        model = copy.deepcopy(self._model(library))
        return {"kept": model.prune_intermediate_layers(**options), **self._told(model)} | {
            "maps": model.forward_intermediates(self.x, indices=[0], stop_early=True, intermediates_only=True)
        }

    def create(self, library: Any, **options: Any) -> dict[str, Any]:
        x = image(self.arch)[:, :1].repeat(1, options.get("in_chans", 3), 1, 1)
        return self._told(make(library, self.arch, **options), x=x)

    def _told(self, model: Any, mode: str = "eval", x: Tensor | None = None) -> dict[str, Any]:
        """What a model says of itself, and answers once it is filled."""
        state = self.values(model)
        told = {
            "state_dict": sorted((key, tuple(value.shape)) for key, value in state.items()),
            "num_classes": model.num_classes,
            "num_features": model.num_features,
            "head_hidden_size": model.head_hidden_size,
            "training": sorted({module.training for module in model.modules()}),
        }
        fill(model, state)
        x = self.x if x is None else x
        if mode == "train":
            return told
        features = model.forward_features(x)
        return told | {"logits": model(x), "embedding": model.forward_head(features, pre_logits=True)}


def feature_axes(arch: str) -> tuple[Axes, ...]:
    """Kinds and strides do not meet: what wraps a model does not know of its dilation. `scripts/test --all` asks."""
    if is_transformer(arch):
        return (INDICES | KINDS,)
    return (INDICES | KINDS | STRIDES,) if os.environ.get("VERTEBRA_TEST_ALL") else (INDICES | KINDS, INDICES | STRIDES)


def missing_names(ours: nn.Module, theirs: nn.Module) -> list[str]:
    """Public names of the reference's model that ours lacks; parts of the network apart."""
    parts = {name for name, _ in (*theirs.named_children(), *theirs.named_parameters(recurse=False))}
    return sorted(name for name in {*dir(theirs)} - {*dir(ours)} - parts if not name.startswith("_"))


LEAKY = partial(nn.LeakyReLU, negative_slope=0.2)
WIDE_BATCH_NORM = partial(nn.BatchNorm2d, eps=0.1)
INTERMEDIATES: Axes = {
    "indices": (None, 1, 2, [0], [1], (-1,), [-1, 0], [0, 0], [], 0, 99, [99], [-99]),
    "norm": (False, True),
    "stop_early": (False, True),
    "output_fmt": ("NCHW", "NLC", "NHWC"),
    "intermediates_only": (False, True),
}
TOKENS: Axes = {"return_prefix_tokens": (False, True), "output_dict": (False, True)}
INDICES: Axes = {"out_indices": (None, 2, (0,), (-1, 0), 0, (99,))}
KINDS: Axes = {
    "feature_cls": (None, "list", "dict", "hook", "getter", "nope"),
}
STRIDES: Axes = {"output_stride": (32, 16, 8, 12)}
RESET: Axes = {
    "num_classes": (7, 0),
    "global_pool": (None, "", "avg", "max", "avgmax", "catavgmax", "fast", "token", "map", "nope"),
    "mode": ("eval", "train"),
}
PRUNE: Axes = {
    "indices": (1, 2, [0], [0, -1], [99]),
    "prune_norm": (False, True),
    "prune_head": (True, False),
}
_POOLS = ("", "avg", "max", "avgmax", "catavgmax", "fast", "fastmax", "token", "map", "prr", "nope")
CREATE: Axes = {
    "num_classes": (CLASSES, 0, 7),
    "in_chans": (3, 1, 4),
    "global_pool": (None, *_POOLS),
    "drop_rate": (0.0, 0.5),
    "drop_path_rate": (None, 0.1),
    "act_layer": (None, "relu", "gelu", "hard_swish", "prelu", nn.ReLU, nn.GELU, LEAKY, "nope"),
    "norm_layer": (None, "batchnorm", "layernorm2d", "layernorm", "rmsnorm", nn.BatchNorm2d, WIDE_BATCH_NORM, "nope"),
    "no_such_option": (None, 1),
    "out_indices": (None, (0,)),
    "feature_cls": (None, "list"),
    "output_dict": (None, True),
    "zero_init_last": (None, True),
    "linear_out": (None, True),
    "num_features": (None, 64),
    "stem_width": (None, 16),
    "patch_drop_rate": (None, 0.5),
    "reg_tokens": (None, 2),
    "fc_norm": (None, True, False),
    "weight_init": (None, "jax", "moco", "nope"),
    "no_embed_class": (None, True),
    "init_values": (None, 1e-3),
    "qkv_bias": (None, False),
    "dynamic_img_size": (None, True),
    "class_token": (None, False),
    "pre_norm": (None, True),
    "final_norm": (None, False),
    "qk_norm": (None, True),
    "pool_include_prefix": (None, True),
    "proj_bias": (None, False),
    "pos_embed": (None, "none"),
    "scale_mlp_norm": (None, True),
    "scale_attn_norm": (None, True),
}
