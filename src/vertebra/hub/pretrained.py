"""A checkpoint's record as the dict that code in this field reads (`model.pretrained_cfg`)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from vertebra.hub.state import read_metadata
from vertebra.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelConfig,
    Weights,
    WeightsError,
    as_declared,
    check_range,
    parse_object,
    unknown_name,
)

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
    custom_load: bool | str = False
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
    first_conv: str | tuple[str, ...] | None = None
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
        common = replace(common, file=str(path), label_names=tuple(own_record(path)["label_names"]))
    p = row.preprocess
    return replace(
        common,
        url=row.url or "",
        hf_hub_id=row.hub,
        custom_load=bool(row.url and row.url.endswith(".npz")),
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
    """`cfg` with some fields replaced; lists (as JSON holds them) become tuples. Raises `UnknownNameError` for an
    unknown field, `WeightsError` for a value that a field cannot have.
    """
    kinds = get_type_hints(PretrainedCfg)
    for key in changes:
        if key not in kinds:
            raise unknown_name("option", key, sorted(kinds), where=where)
    new = replace(cfg, **as_declared(changes, kinds, where, WeightsError))
    for name in changes:
        check_range(name, getattr(new, name), where, WeightsError)
    if new.num_classes is not None and new.num_classes < 0:
        raise WeightsError(f"{where}: num_classes is {new.num_classes}; it must be 0 (no classifier) or more")
    return new


def own_record(path: Path) -> dict[str, Any]:
    """What a safetensors file of ours says of itself; {} of another's."""
    return record_in(read_metadata(path), path)


def record_in(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The same, of its metadata. Raises `WeightsError`."""
    return parse_object(metadata.get(METADATA_KEY, "{}"), f"{path}: its record", WeightsError)
