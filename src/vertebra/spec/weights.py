"""One row a published checkpoint: where it lies, what it needs, what it reached, what may be done with it."""

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from vertebra.spec.preprocess import Preprocess

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
"""How the names of checkpoints end."""
EXPORTED_SUFFIXES = (".onnx", ".xml", ".pt2")
"""And of exported files, which are run and not loaded."""
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """ImageNet-1k validation accuracy in per cent at a square input of `size` pixels."""

    top1: float
    top5: float
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedWith:
    """The recipe that a checkpoint's authors state."""

    learning_rate: float
    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float
    optimizer: str = "sgd"
    dropout: float = 0.0
    summary: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A checkpoint's whole record. `hub` is `owner/name`; `url` the file that its authors published; `file` one that
    comes with this package, in vertebra/weights/, and holds the names of its classes.
    """

    hub: str | None = None
    url: str | None = None
    file: str | None = None
    license: str | None = None
    """SPDX identifier in lower case; None where none is stated."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    num_classes: int = 1000
    accuracy: tuple[Accuracy, ...] = ()
    paper: str = ""
    """`arXiv:...`"""
    source: str = ""
    """Where the authors published code and weights."""
    trained_with: TrainedWith | None = None

    @property
    def available(self) -> bool:
        """False for a row that names no file anywhere (an architecture nobody published weights for)."""
        return any((self.hub, self.url, self.file))

    @property
    def top1(self) -> float | None:
        """Published at the size that its preprocessing has, in percent; None where it is so for others only."""
        side = self.preprocess.input_size[-1]
        return max((published.top1 for published in self.accuracy if published.size == side), default=None)

    @property
    def hash_prefix(self) -> str | None:
        """The first hex digits of the original file's sha256, where its name carries them."""
        found = _HASH_IN_NAME.search(urlsplit(self.url or "").path)
        return found.group(1) if found else None
