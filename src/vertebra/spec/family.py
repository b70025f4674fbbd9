"""What a model file declares: its variants, its checkpoints, and how a foreign checkpoint becomes ours.

Nothing here knows of torch: a state dict is a mapping from names to anything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from vertebra.spec.weights import Weights

State = dict[str, Any]
Layer = str | Callable[..., Any]
"""A layer to build with: its name, or what makes it when it is called (a class, a partial)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What every model can be asked for. A family's config adds its own fields to these."""

    num_classes: int = 1000
    """0: no classifier, the model answers with its embedding."""
    in_chans: int = 3
    global_pool: str = "avg"
    """`''` keeps the map (CNN) or all tokens (ViT)."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float = 0.0
    """Stochastic depth: the last block's drop probability; earlier blocks rise to it linearly."""

    first_conv: ClassVar[str]
    """Parameter prefix of the convolution that sees the image."""
    classifier: ClassVar[str | tuple[str, ...]]
    """Parameter prefix of the classifier, or of each of several."""
    default_out_indices: ClassVar[tuple[int, ...]]
    """The stages that `features_only=True` returns when none are named. Negative: from the end."""

    limits: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """A promise (see `spec.promises`) that these models do not keep -> the reason."""

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The classifier prefixes, one or several, as a tuple."""
        return (self.classifier,) if isinstance(self.classifier, str) else self.classifier


@dataclass(frozen=True, slots=True)
class Variant:
    """One architecture: its config and what it costs. The costs are re-measured by a test."""

    config: ModelConfig
    params: int
    gmacs: float | None = None
    """10^9 multiply-accumulates of one image at the architecture's own input size."""
    macts: float | None = None
    """10^6 outputs of convolutions, linear layers and attention products at that size."""


def keep(state: State, config: ModelConfig) -> State:
    """The adapter of a family whose published checkpoints already have our names."""
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """All that the hub needs to know of one model file."""

    name: str
    build: Callable[[Any], Any]
    """Config in, module out."""
    variants: Mapping[str, Variant]
    weights: Mapping[str, Weights]
    """`arch.tag` -> row. The first row of an architecture is the one meant when no tag is named."""
    adapt: Callable[[State, Any], State] = keep
    """A foreign checkpoint's layout -> our names. Pure; unknown keys pass through and are refused later."""
    unused: Mapping[str, str] = field(default_factory=dict[str, str])
    """Pattern of keys that published checkpoints hold and no forward pass reads -> why they may be dropped."""
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    """What older releases of timm called an architecture with one checkpoint -> its `arch.tag`."""
