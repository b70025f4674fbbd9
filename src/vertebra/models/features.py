"""A backbone that answers with its stages' maps: what detection and segmentation heads are built on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vertebra.models.backbone import Backbone, FeatureStage, resolve_indices
from vertebra.spec import VertebraError, did_you_mean


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
    """(b, c, h, w) image -> one (b, c_i, h_i, w_i) map for each of `out_indices`.

    Everything behind the last stage asked for is deleted. A CNN's state dict keeps the classification checkpoint's
    names; a transformer's carries them under `model.`, as the field's own checkpoints do.
    """

    def __init__(
        self, model: Backbone, out_indices: int | Sequence[int], output_fmt: str = "NCHW", norm: bool = False
    ) -> None:
        super().__init__()
        wanted = resolve_indices(out_indices, len(model.feature_info))
        self.feature_info = FeatureInfo(
            list(model.feature_info), wanted if isinstance(out_indices, int) else out_indices
        )
        model.prune_intermediate_layers(wanted, prune_norm=not norm)
        self.model = model
        self.out_indices = tuple(wanted)
        self.output_fmt = output_fmt
        self.norm = norm
        behind = ("num_classes", "classifier", "global_pool")
        self.pretrained_cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in behind}
        self.default_cfg = self.pretrained_cfg
        if model.spatial:
            self.register_state_dict_post_hook(_without_prefix)
            self.register_load_state_dict_pre_hook(_with_prefix)

    @property
    def return_layers(self) -> dict[str, str]:
        """Module name -> stage number of each map returned. Assigning another dict of that kind changes which.

        Names of stages that were deleted at creation are allowed and have no map.
        """
        return {str(self.feature_info.info[i]["module"]): str(i) for i in self.out_indices}

    @return_layers.setter
    def return_layers(self, layers: Mapping[str, str]) -> None:
        number = {str(stage["module"]): i for i, stage in enumerate(self.feature_info.info)}
        for name in layers:
            if name not in number:
                raise VertebraError(f"no stage {name!r}{did_you_mean(name, number) or f'; there are {list(number)}'}")
        kept = len(self.model.feature_info)
        self.out_indices = tuple(i for i in sorted(number[name] for name in layers) if i < kept)

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        return self.model.forward_intermediates(
            x, self.out_indices, norm=self.norm, stop_early=True, output_fmt=self.output_fmt, intermediates_only=True
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `Backbone.set_grad_checkpointing`."""
        self.model.set_grad_checkpointing(enable)


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, _local: dict[str, Any]) -> None:
    for key in [k for k in state if k.startswith(f"{prefix}model.")]:
        state[prefix + key[len(prefix) + 6 :]] = state.pop(key)


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = {key for key, _ in module.named_parameters()} | {key for key, _ in module.named_buffers()}
    for key in [k for k in state if k.startswith(prefix) and f"model.{k[len(prefix) :]}" in own]:
        state[f"{prefix}model.{key[len(prefix) :]}"] = state.pop(key)
