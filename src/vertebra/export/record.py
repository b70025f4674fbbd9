"""What travels inside an artefact. Standard library only: the process that checks a file need not load torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from vertebra.spec import VertebraError

PREFIX = "vertebra."


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
        return cls(**{name.removeprefix(PREFIX): json.loads(entries[name]) for name in cls.entries()})
