"""A checkpoint's record as the dict that code in this field reads (`model.pretrained_cfg`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vertebra.hub.state import read_header
from vertebra.spec import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, Weights, unknown_name

METADATA_KEY = "vertebra"
"""Where a safetensors file of ours carries its record: the JSON that a folder's config.json would hold."""

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
"""Checkpoints that come with this package."""

Size = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)  # no slots: others' code reads its __dict__
class PretrainedCfg:
    """Field names and defaults are the field's convention. `file` and `state_dict` name a local checkpoint."""

    url: str = ""
    file: str | None = None
    state_dict: Mapping[str, Any] | None = None
    hf_hub_id: str | None = None
    hf_hub_filename: str | None = None
    source: str | None = None
    architecture: str | None = None
    tag: str | None = None
    custom_load: bool = False
    input_size: Size = (3, 224, 224)
    test_input_size: Size | None = None
    min_input_size: Size | None = None
    fixed_input_size: bool = False
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    test_crop_pct: float | None = None
    crop_mode: str = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    num_classes: int | None = 1000
    label_offset: int | None = None
    label_names: tuple[str, ...] | None = None
    label_descriptions: dict[str, str] | None = None
    multi_label: bool | None = None
    """True: each class is answered by itself, so that probabilities are sigmoids. In files it stands outside of this
    record, beside `num_classes`, because others' code refuses a field that it does not know."""
    pool_size: tuple[int, int] | None = None
    test_pool_size: tuple[int, int] | None = None
    first_conv: str | None = None
    classifier: str | tuple[str, ...] | None = None
    license: str | None = None
    description: str | None = None
    origin_url: str | None = None
    paper_name: str | None = None
    paper_ids: str | tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None

    @property
    def has_weights(self) -> bool:
        """True where a checkpoint is named, wherever it lies."""
        return bool(self.url or self.file or self.state_dict is not None or self.hf_hub_id)

    def to_dict(self, remove_source: bool = False, remove_null: bool = True) -> dict[str, Any]:
        """A plain dict: without empty fields by default, without where the file lies on `remove_source`."""
        where = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")
        kept_null = ("num_classes", "pool_size", "first_conv", "classifier")
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            key: value
            for key, value in out.items()
            if not (remove_source and key in where) and not (remove_null and value is None and key not in kept_null)
        }


def from_row(name: str, row: Weights | None, config: ModelConfig) -> PretrainedCfg:
    """The record of the checkpoint `name` (`arch` or `arch.tag`) as its family declares it."""
    arch, _, tag = name.partition(".")
    common = PretrainedCfg(
        architecture=arch, tag=tag or None, first_conv=config.first_conv, classifier=config.classifier
    )
    if row is None:
        return common
    if row.file is not None:
        path = WEIGHTS / row.file
        record = json.loads(read_header(path)["__metadata__"][METADATA_KEY])
        common = replace(common, file=str(path), label_names=tuple(record["label_names"]))
    p = row.preprocess
    return replace(
        common,
        url=row.url or "",
        hf_hub_id=row.hub,
        input_size=p.input_size,
        test_input_size=p.test_input_size,
        min_input_size=p.min_input_size,
        fixed_input_size=p.fixed_input_size,
        interpolation=p.interpolation,
        crop_pct=p.crop_pct,
        test_crop_pct=p.test_crop_pct,
        crop_mode=p.crop_mode,
        mean=p.mean,
        std=p.std,
        pool_size=p.pool_size,
        num_classes=row.num_classes,
        license=row.license,
        origin_url=row.source or None,
        paper_ids=row.paper or None,
    )


def overlay(cfg: PretrainedCfg, changes: Mapping[str, Any], *, where: str) -> PretrainedCfg:
    """`cfg` with some fields replaced; lists (as JSON holds them) become tuples; an unknown field is an error."""
    names = {f.name for f in fields(PretrainedCfg)}
    for key in changes:
        if key not in names:
            raise unknown_name("option", key, sorted(names), where=where)
    return replace(cfg, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})
