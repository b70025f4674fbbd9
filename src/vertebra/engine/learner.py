"""The model that a run trains: where it starts, what it says of itself, and what of it changes from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor

from vertebra.data import resolve_model_data_config
from vertebra.engine.config import RunConfig
from vertebra.hub.factory import create_model, from_record, load_model
from vertebra.hub.options import make_config
from vertebra.hub.registry import REGISTRY
from vertebra.models.backbone import Backbone
from vertebra.models.groups import layer_groups
from vertebra.spec import ModelConfig, SettingError

Size = tuple[int, int, int]
"""(channels, height, width)"""

LOUD = 0.05
"""Standard deviation above which the weights of a classifier start too large."""

GROWN_BY = 2 / 3
"""Share of the epochs after which growing images have their full size."""

GROWS_BY = 32
"""Pixels: what backbones reduce by, so that no size leaves odd maps (a DLA loses a tenth of its accuracy on those)."""


def architecture(config: RunConfig) -> ModelConfig:
    """The model's own config, as the run's options have it. Raises `UnknownNameError` for an option it lacks."""
    arch = REGISTRY.split(config.model.name)[0]
    return make_config(arch, REGISTRY.variant(arch), _options(config))


def _options(config: RunConfig) -> dict[str, Any]:
    chosen, size = config.model, config.data.image_size
    options: dict[str, Any] = {"drop_rate": chosen.drop_rate, **chosen.options}
    if chosen.drop_path_rate is not None:
        options["drop_path_rate"] = chosen.drop_path_rate
    variant = REGISTRY.variant(REGISTRY.split(chosen.name)[0])
    if size and "img_size" in {f.name for f in fields(variant.config)}:
        options["img_size"] = size
    return options


def make_model(
    config: RunConfig,
    classes: Sequence[str],
    *,
    multi_label: bool = False,
    saved: Mapping[str, Any] | None = None,
) -> tuple[Backbone, Size]:
    """The architecture with its start weights, a classifier for `classes`, and a record that names them; and the size
    of image that it is trained at, which the record does not say: it has that of validation.

    `saved`, from a checkpoint: both as they were then, but for the weights, which it holds, too.
    """
    chosen = config.model
    if saved is not None:
        model = from_record(saved["record"])
        model.set_grad_checkpointing(chosen.grad_checkpointing)
        return model, saved["size"]
    options: dict[str, Any] = {"num_classes": len(classes), **_options(config)}
    model: Backbone
    if chosen.weights is not None:
        model = load_model(chosen.name, weights=chosen.weights, **options)
    else:
        model = create_model(chosen.name, pretrained=chosen.pretrained, **options)
    starts = chosen.pretrained or chosen.weights is not None
    reset = starts and model.pretrained_cfg.get("label_names") not in (None, tuple(classes))
    if reset:  # as many classes, but others
        model.reset_classifier(len(classes))
        model.load_report.reinitialised.append("its classifier")
    if not starts or reset or model.load_report.reinitialised:
        _quiet(model)
    model.set_grad_checkpointing(chosen.grad_checkpointing)
    size = _trained_at(model, config)
    _record(model, config, classes, starts)
    if multi_label:
        model.pretrained_cfg["multi_label"] = True
    return model, size


def _trained_at(model: Backbone, config: RunConfig) -> Size:
    own = cast("Size", tuple(cast("Sequence[int]", resolve_model_data_config(model)["input_size"])))
    side = config.data.image_size
    return own if side is None else (own[0], side, side)


@torch.no_grad()
def _quiet(model: Backbone) -> None:
    """A fresh classifier whose start grows as classes get fewer (as DLA's) would begin with wild answers."""
    layers = model.get_classifier()
    for layer in layers if isinstance(layers, tuple) else (layers,):
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.std() > LOUD:
            weight.mul_(LOUD / weight.std())


def _record(model: Backbone, config: RunConfig, classes: Sequence[str], starts: bool) -> None:
    """What the saved model says of itself: its classes and preprocessing, and no longer where the start came from."""
    gone = (
        "url",
        "hf_hub_id",
        "hf_hub_filename",
        "file",
        "source",
        "tag",
        "test_input_size",
        "test_crop_pct",
        "label_descriptions",
    )
    record = {key: value for key, value in model.pretrained_cfg.items() if key not in gone}
    if not starts:
        record = {k: v for k, v in record.items() if k not in ("license", "origin_url", "paper_ids", "description")}
    size = config.data.eval_size or config.data.image_size
    if size:
        record["input_size"] = (model.in_chans, size, size)
    if config.data.crop_pct:
        record["crop_pct"] = config.data.crop_pct
    if config.data.crop_mode:
        record["crop_mode"] = config.data.crop_mode
    record |= {"num_classes": len(classes), "label_names": tuple(classes)}
    model.pretrained_cfg = model.default_cfg = record


def frozen_depth(config: RunConfig, model: Backbone, epoch: int) -> int:
    """Groups nearest the image that do not learn in this epoch: a pure function of it."""
    groups = len(layer_groups(model, coarse=True))
    if not -1 <= config.freeze.depth < groups:
        raise SettingError(
            f"freeze.depth={config.freeze.depth}: {config.model.name} has {groups} groups; give 0 (none) to "
            f"{groups - 1}, or -1 for all but the head"
        )
    depth = groups - 1 if config.freeze.depth < 0 else config.freeze.depth
    thawed = 0 if config.freeze.thaw_every is None else int(epoch / config.freeze.thaw_every)
    return max(0, depth - thawed)


def side(config: RunConfig, epoch: int) -> int | None:
    """Of the images in this epoch, where they grow: a pure function of it. None where they do not."""
    first, last = config.data.start_size, config.data.image_size
    if first is None or last is None:
        return None
    share = epoch / max(1, config.epochs * GROWN_BY)
    if share >= 1:  # whatever is left beyond whole steps
        return last
    return first + round(share * (last - first)) // GROWS_BY * GROWS_BY
