"""What travels inside an artefact. Standard library only: the process that checks a file need not load torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypedDict, get_type_hints

from vertebra.spec import VertebraError, as_declared, check_range, parse_json, value_as

PREFIX = "vertebra."
LARGEST = 1 << 16
"""Of batches, and of multiples in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that a reader needs to run the file and to say where it came from."""

    model: dict[str, Any]
    """As config.json holds it: architecture, num_classes, pretrained_cfg, model_args."""
    labels: list[str] | None
    """One a class; None where nobody named them."""
    preprocess: dict[str, Any]
    """input_size (channels, height, width), interpolation, crop_pct, crop_mode, mean, std."""
    license: str | None
    weights_sha256: str
    """Of the model's own tensors, by name: the same for any file that they were read from."""
    format: str
    dtype: str
    with_preprocess: bool
    """False: float32 (b, c, h, w) normalised -> logits. True: uint8 (b, h, w, 3) of any size -> probabilities."""
    batch: int | None
    """None: any."""
    size_multiple: int | None
    """Height and width may be any multiple of this, from two times it on; None: only `preprocess`' size."""
    opset: int | None
    """Of an ONNX file."""
    versions: dict[str, str]
    """Of what wrote the file."""

    def to_strings(self) -> dict[str, str]:
        """One entry a field, its value as JSON."""
        return {f"{PREFIX}{key}": json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def entries(cls) -> list[str]:
        """The names of the entries."""
        return [f"{PREFIX}{f.name}" for f in fields(cls)]

    @classmethod
    def from_strings(cls, entries: Mapping[str, str], *, where: str) -> Self:
        """The inverse; other entries are ignored. Raises `VertebraError` for a file that is none of ours."""
        missing = [name for name in cls.entries() if name not in entries]
        if missing:
            raise VertebraError(
                f"{where} holds no record of vertebra's ({missing[0]} is missing), so its preprocessing and"
                " labels are unknown; write it with `vertebra export`"
            )
        values = {
            name.removeprefix(PREFIX): parse_json(entries[name], f"{where}: its record's {name}")
            for name in cls.entries()
        }
        found = cls(**as_declared(values, get_type_hints(cls), f"{where}: its record"))
        for part, kinds, given in (("model", _Model, found.model), ("preprocess", _Preprocess, found.preprocess)):
            _check_part(get_type_hints(kinds), given, f"{where}: its record's {part}")
        for name, number in (("batch", found.batch), ("size_multiple", found.size_multiple)):
            if number is not None and not 1 <= number <= LARGEST:
                raise VertebraError(f"{where}: its record's {name} is no number that can be; export it anew")
        classes = found.model["num_classes"]
        if found.labels is not None and len(found.labels) != classes:
            raise VertebraError(f"{where}: its record names {len(found.labels)} of {classes} classes; export it anew")
        return found


class _Model(TypedDict):
    """What is read of `Record.model`."""

    architecture: str
    num_classes: int
    pretrained_cfg: dict[str, Any]
    multi_label: bool | None


class _Preprocess(TypedDict):
    """What is read of `Record.preprocess`."""

    input_size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _check_part(kinds: dict[str, Any], given: dict[str, Any], where: str) -> None:
    """Raise `VertebraError` where one of them lacks, is of another type, or cannot be."""
    for name, kind in kinds.items():
        check_range(name, value_as(kind, given.get(name), name, where), where)
