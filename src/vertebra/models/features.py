"""A backbone that answers with its stages' maps: what detection and segmentation heads are built on."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.models.backbone import Backbone, FeatureStage, resolve_indices
from vertebra.spec import VertebraError, did_you_mean, unknown_name


class FeatureInfo:
    """The stages that a `FeatureExtractor` returns; iterates and indexes over all the backbone's stages."""

    def __init__(self, info: Sequence[FeatureStage], out_indices: Sequence[int]) -> None:
        self.info = [{**stage, "index": i} for i, stage in enumerate(info)]
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """The values of `key` at the chosen stages (None: those returned; an int: that one's value)."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """The chosen stages' dicts, whole or only `keys`."""
        chosen = [idx] if isinstance(idx, int) else self.out_indices if idx is None else idx
        return [{k: v for k, v in self.info[i].items() if keys is None or k in keys} for i in chosen]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of each map."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Input pixels a map's pixel covers, a side."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Dotted module names."""
        return self.get("module", idx)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.info[item]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)


class FeatureExtractor(nn.Module):
    """(b, c, h, w) image -> one (b, c_i, h_i, w_i) map for each of `out_indices`, in their order.

    Everything behind the last stage asked for is deleted. The kinds below differ in how the state dict names its keys
    and in the form of the answer; any of them loads a classification checkpoint's names, too.
    """

    prefix: ClassVar[str] = "model."
    """Of the state dict's keys."""
    flat: ClassVar[bool] = False
    """Containers of stages and their parts are one name in those keys: `stages_0` for `stages.0`, without prefix."""
    as_dict: ClassVar[bool] = False
    """Answers with a dict, keyed by the stages as they were asked for."""
    resolved: ClassVar[bool] = False
    """`feature_info.out_indices` counts stages from the first, however they were asked for."""
    raw: ClassVar[bool] = False
    """Of a transformer all tokens, (b, n, d), instead of a map."""

    def __init__(
        self, model: Backbone, out_indices: int | Sequence[int], output_fmt: str = "NCHW", norm: bool = False
    ) -> None:
        super().__init__()
        count = len(model.feature_info)
        wanted = resolve_indices(out_indices, count)
        asked = range(-len(wanted), 0) if isinstance(out_indices, int) else out_indices
        self.feature_info = FeatureInfo(list(model.feature_info), wanted if self.resolved else list(asked))
        model.prune_intermediate_layers(wanted, prune_norm=not norm)
        self.model = model
        self.out_indices = tuple(wanted)
        self.labels = tuple(str(i) for i in asked)
        self.output_fmt = output_fmt
        self.norm = norm
        behind = ("num_classes", "classifier", "global_pool")
        self.pretrained_cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in behind}
        self.default_cfg = self.pretrained_cfg
        self.register_state_dict_post_hook(_outward)
        self.register_load_state_dict_pre_hook(_inward)

    def published(self, name: str) -> str:
        """How the state dict names the model's parameter, or module, `name`."""
        containers = {stage["module"].partition(".")[0] for stage in self.feature_info if "." in stage["module"]}
        first, _, rest = name.partition(".")
        flat = self.flat and self.model.spatial and bool(containers)
        if flat and first in containers and rest:
            return f"{first}_{rest}"
        return name if flat else f"{self.prefix}{name}"

    @property
    def return_layers(self) -> dict[str, str]:
        """Module name -> label of each map returned. Assigning another dict of that kind changes which.

        Names of stages that were deleted at creation are allowed and have no map.
        """
        names = [self._stage_name(i) for i in self.out_indices]
        return dict(sorted(zip(names, self.labels, strict=True), key=lambda pair: self._number(pair[0])))

    @return_layers.setter
    def return_layers(self, layers: Mapping[str, str]) -> None:
        kept = len(self.model.feature_info)
        chosen = sorted((self._number(name), str(label)) for name, label in layers.items())
        self.out_indices = tuple(i for i, _ in chosen if i < kept)
        self.labels = tuple(label for i, label in chosen if i < kept)

    def _stage_name(self, stage: int) -> str:
        name = str(self.feature_info[stage]["module"])
        return self.published(name).removeprefix(self.prefix)

    def _number(self, name: str) -> int:
        known = {self._stage_name(i): i for i in range(len(self.feature_info))}
        known |= {str(stage["module"]): i for i, stage in enumerate(self.feature_info)}
        if name not in known:
            raise VertebraError(f"no stage {name!r}{did_you_mean(name, known) or f'; there are {list(known)}'}")
        return known[name]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Any:
        tokens = self.raw and not self.model.spatial
        seen = self.model.forward_intermediates(
            x,
            sorted(self.out_indices),
            norm=self.norm,
            stop_early=True,
            output_fmt="NLC" if tokens else self.output_fmt,
            intermediates_only=True,
            return_prefix_tokens=tokens,
        )
        maps = [torch.cat((prefix, patches), 1) for patches, prefix in seen] if tokens else seen
        of = dict(zip(sorted({*self.out_indices}), maps, strict=True))
        if self.as_dict:
            return OrderedDict((label, of[i]) for i, label in zip(self.out_indices, self.labels, strict=True))
        return [of[i] for i in self.out_indices]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `Backbone.set_grad_checkpointing`."""
        self.model.set_grad_checkpointing(enable)


class FeatureGetterNet(FeatureExtractor):
    """Any model's; keys under `model.`. What transformers get by default."""

    resolved = True


class FeatureListNet(FeatureExtractor):
    """A CNN's; keys as the classification checkpoint's, containers flat. What CNNs get by default."""

    prefix = ""
    flat = True

    def __init__(
        self, model: Backbone, out_indices: int | Sequence[int], output_fmt: str = "NCHW", norm: bool = False
    ) -> None:
        if not model.spatial:
            raise VertebraError(
                f"{type(self).__name__} is for CNNs, whose stages follow each other; use feature_cls='getter' or 'hook'"
            )
        super().__init__(model, out_indices, output_fmt, norm)


class FeatureDictNet(FeatureListNet):
    """The same, with a dict for an answer."""

    as_dict = True


class FeatureHookNet(FeatureExtractor):
    """Any model's stages as they come out, a transformer's with all tokens."""

    prefix = "body."
    flat = True
    raw = True


class FeatureGraphNet(FeatureExtractor):
    """The same; keys under `graph_module.`."""

    prefix = "graph_module."
    raw = True


FEATURE_CLASSES: Mapping[str, type[FeatureExtractor]] = MappingProxyType(
    {
        "dict": FeatureDictNet,
        "fx": FeatureGraphNet,
        "getter": FeatureGetterNet,
        "hook": FeatureHookNet,
        "list": FeatureListNet,
    }
)


def feature_maker(feature_cls: str | Callable[..., Any] | None, model: Backbone) -> Callable[..., Any]:
    """What wraps a model by `feature_cls`: a name, or anything that takes `(model, out_indices=...)`."""
    if feature_cls is None:
        return FeatureListNet if model.spatial else FeatureGetterNet
    if not isinstance(feature_cls, str):
        return feature_cls
    if feature_cls not in FEATURE_CLASSES:
        raise unknown_name("feature_cls", feature_cls, FEATURE_CLASSES)
    return FEATURE_CLASSES[feature_cls]


def _outward(module: nn.Module, state: dict[str, Any], prefix: str, _local: dict[str, Any]) -> None:
    assert isinstance(module, FeatureExtractor)
    for key in [k for k in state if k.startswith(f"{prefix}model.")]:
        state[prefix + module.published(key[len(prefix) + 6 :])] = state.pop(key)


def _inward(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, FeatureExtractor)
    own = [name for name, _ in (*module.model.named_parameters(), *module.model.named_buffers())]
    for name in own:
        for known in (module.published(name), name):
            if prefix + known in state:
                state.setdefault(f"{prefix}model.{name}", state.pop(prefix + known))
