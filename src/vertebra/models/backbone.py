"""What every model promises, written once.

A family says how an image enters (`embed`), which callables follow each other (`steps`), what map a stage's state
shows (`as_map`), what ends the trunk (`finish`) and how the head answers (`forward_head`). All else is here.

b batch, c channels, h w height and width in pixels, n tokens, d embedding, k classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, TypedDict, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vertebra.layers.statistics import unchanged_statistics
from vertebra.models.hub_methods import HubMethods
from vertebra.spec import ModelConfig, UnknownStageError, VertebraError

Indices = int | Sequence[int] | None
Stage = Callable[[Any], Any]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class FeatureStage(TypedDict):
    """One stage whose output can be asked for."""

    num_chs: int
    """Channels."""
    reduction: int
    """Input pixels that one output pixel covers, a side."""
    module: str
    """Dotted name of the module whose output it is."""


def resolve_indices(indices: Indices, count: int) -> list[int]:
    """Stage numbers: None all, an int the last that many, a sequence (negative: from the end) as named."""
    if indices is None:
        return list(range(count))
    if not isinstance(indices, int) and not len(indices):
        raise VertebraError(f"no stage is named; this model has {count}: 0 to {count - 1}, or None for all")
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise UnknownStageError(f"indices={indices} asks for the last {indices} stages; this model has {count}")
        return list(range(count - indices, count))
    resolved = [i + count if i < 0 else i for i in indices]
    wrong = [i for i, r in zip(indices, resolved, strict=True) if not 0 <= r < count]
    if wrong:
        raise UnknownStageError(
            f"stage {wrong[0]} does not exist; this model has {count}: 0 to {count - 1}, or -{count} to -1"
        )
    return resolved


@dataclass(frozen=True, slots=True)
class Intermediates:
    """What a walk saw: the trunk's answer (None: not asked for), and (map, prefix tokens) of each stage asked for."""

    features: Tensor | None
    maps: list[tuple[Tensor, Tensor | None]]


class Backbone(HubMethods, nn.Module, ABC):
    """Base of all models. `feature_info[i]` describes stage i."""

    spatial: ClassVar[bool] = True
    """True where the trunk's state is a feature map (CNN), False where it is tokens."""
    config: ModelConfig
    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]
    _drawn: Mapping[str, tuple[int, int]] = MappingProxyType({})
    """What `_writes` was once all weights had been drawn; empty where they were not."""
    load_report: Any
    """What loading changed (`hub.fit.LoadReport`)."""
    feature_info: list[FeatureStage]
    num_features: int
    head_hidden_size: int

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.in_chans = config.in_chans
        self.grad_checkpointing = False
        self.frozen_modules: tuple[nn.Module, ...] = ()
        self.pretrained_cfg = self.default_cfg = {}

    # What a family provides.

    @abstractmethod
    def embed(self, x: Tensor) -> Any:
        """(b, c, h, w) image -> the first stage's input."""

    @abstractmethod
    def steps(self) -> list[Stage]:
        """The callables that follow each other; stage i's output is feature i."""

    def as_map(self, state: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """A stage's state -> its (b, c, h, w) map and, where there are any, its (b, p, d) prefix tokens.

        `size` is the image's (height, width) in pixels.
        """
        return state, None

    def as_tokens(self, state: Any) -> tuple[Tensor, Tensor | None]:
        """The same as (b, n, c): a map's pixels, or patches, in rows."""
        return state.flatten(2).transpose(1, 2), None

    def normalize(self, state: Any, *, last: bool) -> Any:
        """The trunk's last normalisation, where it has one, on a stage's state: the `last` one's, or another's."""
        return state

    def finish(self, state: Any) -> Tensor:
        """The last stage's state -> what `forward_features` returns."""
        return self.normalize(state, last=True)

    def leave(self, state: Any, stage: int) -> Tensor:
        """The same where the trunk ends early, behind another `stage`."""
        return self.normalize(state, last=False)

    @abstractmethod
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """`forward_features`' answer -> (b, k) logits; the (b, d) embedding on `pre_logits` or without classes."""

    @abstractmethod
    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """The layer (DeiT distilled: both layers) that turns the embedding into logits."""

    @abstractmethod
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier; 0 classes: none. `global_pool` None leaves the pooling as it is."""

    @abstractmethod
    def drop_stages(self, keep: int) -> None:
        """Delete every stage from number `keep` on."""

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into stem and depth groups, for layer-wise learning rates."""

    def no_weight_decay(self) -> set[str]:
        """Parameters, beside norms and biases, that weight decay harms."""
        return set()

    @abstractmethod
    def init_module(self, module: nn.Module, name: str) -> None:
        """Fill the parameters and buffers that `module` itself owns (not its children's) as training starts."""

    # What follows from that.

    def declare_head(self, num_classes: int, global_pool: str) -> None:
        """Keep what the model says of itself true: saving, exporting and compiled artefacts go by it.

        The classes of a new head have no names until somebody gives them.
        """
        self.num_classes = num_classes
        named = ("label_names", "label_descriptions")
        self.pretrained_cfg = self.default_cfg = {k: v for k, v in self.pretrained_cfg.items() if k not in named}
        self.config = replace(self.config, num_classes=num_classes, global_pool=global_pool)

    def place(self, layer: AnyModule, at: str = "") -> AnyModule:
        """A new layer, `at` a name, initialised, where this model's parameters lie, in their type and its mode."""
        like = next(self.parameters(), None)
        if like is None:
            return layer.train(self.training)
        layer = layer.to(device=like.device, dtype=like.dtype)
        if not like.is_meta:
            with torch.no_grad():
                for name, module in layer.named_modules(prefix=at):
                    self.init_module(module, name)
        return layer.train(self.training)

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """The trunk: (b, c, h, w) image -> last map (CNN) or normalised tokens (ViT)."""
        return self._through(x, self.steps())

    def _through(self, x: Tensor, stages: Sequence[Stage]) -> Tensor:
        state = self.embed(x)
        for stage in stages:
            state = self._run(stage, state)
        return self.finish(state)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Any:
        """(b, c, h, w) image, normalised as the checkpoint asks -> (b, k) logits."""
        return self.forward_head(self.forward_features(x))

    def _run(self, stage: Stage, state: Any) -> Any:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return stage(state)
        if torch.compiler.is_compiling():  # a compiler recomputes answers alone
            return checkpoint(stage, state, use_reentrant=False)
        return checkpoint(
            stage, state, use_reentrant=False, context_fn=lambda: (nullcontext(), unchanged_statistics(self))
        )

    def _walk(
        self,
        x: Tensor,
        stages: Sequence[Stage],
        indices: Indices,
        *,
        norm: bool,
        stop_early: bool,
        output_fmt: str,
        maps_only: bool,
    ) -> Intermediates:
        """One pass that keeps the stages asked for, in the order in which they follow each other."""
        if output_fmt not in ("NCHW", "NLC"):
            raise VertebraError(f"unknown output_fmt {output_fmt!r}; allowed: 'NCHW', 'NLC'")
        last = len(stages) - 1
        wanted = sorted({*resolve_indices(indices, len(stages))})
        size = (x.shape[-2], x.shape[-1])
        state = self.embed(x)
        maps: list[tuple[Tensor, Tensor | None]] = []
        end = wanted[-1] if stop_early else last
        for number, stage in enumerate(stages[: end + 1]):
            state = self._run(stage, state)
            if number in wanted:
                seen = self.normalize(state, last=number == last) if norm else state
                maps.append(self.as_tokens(seen) if output_fmt == "NLC" else self.as_map(seen, size))
        if maps_only:
            return Intermediates(None, maps)
        return Intermediates(self.finish(state) if end == last else self.leave(state, end), maps)

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c h w"],
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> Any:
        """The trunk's answer and stages' outputs: `(features, [maps])`, or `[maps]` with `intermediates_only`.

        `indices` chooses stages (see `resolve_indices`), which come in the order of the network. `norm` applies the
        final norm, where there is one: a ViT's to each, a DPN's, which fits the last stage only, to that. `stop_early`
        ends at the last stage asked for, whose state is then the trunk's answer. `output_fmt` is `NCHW` (b, c, h, w)
        or `NLC` (b, h*w, c).
        """
        seen = self._walk(
            x,
            self.steps(),
            indices,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            maps_only=intermediates_only,
        )
        maps = [level for level, _ in seen.maps]
        return maps if intermediates_only else (seen.features, maps)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Delete what lies behind the last stage that `indices` names; returns the stage numbers.

        A CNN's head goes with its last stage, whose channels it reads.
        """
        wanted = resolve_indices(indices, len(self.feature_info))
        keep = max(wanted) + 1
        narrower = self.spatial and keep < len(self.feature_info)
        self.drop_stages(keep)
        del self.feature_info[keep:]
        if narrower:
            self.num_features = self.feature_info[-1]["num_chs"]
        if prune_norm:
            self.drop_norm()
        if prune_head or narrower:
            self.drop_head()
        return wanted

    def drop_head(self) -> None:
        """No classifier and no pooling."""
        self.reset_classifier(0, "")

    def drop_norm(self) -> None:
        """Replace the trunk's last normalisation, where it has one, by an identity."""
        return

    def train(self, mode: bool = True) -> "Backbone":
        """Training or evaluation mode; what `freeze` holds stays in evaluation."""
        super().train(mode)
        for module in self.frozen_modules:
            module.eval()
        return self

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Ask for images of this size, (height, width) in pixels, from now on: saving and preprocessing go by that."""
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.pretrained_cfg = self.default_cfg = {**self.pretrained_cfg, "input_size": (self.in_chans, height, width)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def meta_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules that own a parameter or buffer without storage."""
        for name, module in self.named_modules():
            own: Iterable[Tensor] = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if any(t.is_meta for t in own):
                yield name, module

    @torch.no_grad()
    def materialize(self, device: torch.device | str | None = None) -> list[str]:
        """Give storage and initial values to what has none yet; returns the names of the tensors filled."""
        filled: list[str] = []
        for name, module in list(self.meta_modules()):
            own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            kept = {key: t.detach() for key, t in own.items() if not t.is_meta}  # itself, t becomes empty below
            module.to_empty(device=device or "cpu", recurse=False)
            self.init_module(module, name)
            state = cast("dict[str, Tensor]", dict(module.named_parameters(recurse=False)))
            state |= dict(module.named_buffers(recurse=False))
            for key, tensor in kept.items():
                state[key].copy_(tensor)
            prefix = f"{name}." if name else ""
            filled += [prefix + key for key in own if key not in kept]
        if len(filled) == len(self.state_dict()):
            self._drawn = self._writes()
        return filled

    def init_weights(self) -> None:
        """Every parameter and buffer as training starts."""
        with torch.no_grad():
            for name, module in self.named_modules():
                self.init_module(module, name)
        self._drawn = self._writes()

    @property
    def filled(self) -> bool:
        """False while the trunk's weights are the random ones it was built with: nobody loaded or trained any."""
        now = self._writes()
        return not self._drawn or any(now.get(name, mark) != mark for name, mark in self._drawn.items())

    def _writes(self) -> dict[str, tuple[int, int]]:
        """Which tensors the trunk's kernels are, and how often each was written in place, as torch counts.

        Optimisers and `load_state_dict` write, loading with `assign=True` puts others there, as copying and unpickling
        do. Only what no method of ours replaces: not the head, nor the position embedding.
        """
        replaced = (*self.config.classifiers, "attn_pool", "pos_embed")
        return {
            name: (id(parameter), parameter._version)
            for name, parameter in self.named_parameters()
            if parameter.ndim > 1 and not parameter.is_inference() and not name.startswith(replaced)
        }


def reset_if_able(module: nn.Module) -> None:
    """A leaf layer's own start (BatchNorm, LayerNorm, LayerScale: ones, zeros), where it has parameters at all."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
