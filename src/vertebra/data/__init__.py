"""From bytes to the tensor a model reads, and from class numbers to names.

What needs torchvision is imported on first use, so that `import vertebra.data` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vertebra.data.config import (
    DEFAULT_CROP_MODE,
    DEFAULT_CROP_PCT,
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_DPN_MEAN,
    IMAGENET_DPN_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    resolve_data_config,
    resolve_model_data_config,
)

# Not lazy: importing the module `decode` later would put it in the place of the function.
from vertebra.data.decode import DEFAULT_MAX_PIXELS, DecodeError, decode
from vertebra.data.labels import imagenet1k_labels, labels_for, load_labels

if TYPE_CHECKING:
    from vertebra.data import transforms, transforms_factory
    from vertebra.data.transforms_factory import (
        create_train_reader,
        create_transform,
        transforms_imagenet_eval,
        transforms_imagenet_train,
        transforms_noaug_train,
    )

__all__ = [
    "DEFAULT_CROP_MODE",
    "DEFAULT_CROP_PCT",
    "DEFAULT_MAX_PIXELS",
    "IMAGENET_DEFAULT_MEAN",
    "IMAGENET_DEFAULT_STD",
    "IMAGENET_DPN_MEAN",
    "IMAGENET_DPN_STD",
    "IMAGENET_INCEPTION_MEAN",
    "IMAGENET_INCEPTION_STD",
    "OPENAI_CLIP_MEAN",
    "OPENAI_CLIP_STD",
    "DecodeError",
    "create_train_reader",
    "create_transform",
    "decode",
    "imagenet1k_labels",
    "labels_for",
    "load_labels",
    "resolve_data_config",
    "resolve_model_data_config",
    "transforms",
    "transforms_factory",
    "transforms_imagenet_eval",
    "transforms_imagenet_train",
    "transforms_noaug_train",
]

_LAZY_MODULES = ("transforms", "transforms_factory")
_FROM_FACTORY = (
    "create_train_reader",
    "create_transform",
    "transforms_imagenet_eval",
    "transforms_imagenet_train",
    "transforms_noaug_train",
)


def __getattr__(name: str) -> object:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"vertebra.data.{name}")
    if name in _FROM_FACTORY:
        return getattr(importlib.import_module("vertebra.data.transforms_factory"), name)
    raise AttributeError(f"module 'vertebra.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
