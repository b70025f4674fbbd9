"""Frozen declarations; standard library only."""

from vertebra.spec.errors import (
    MissingFileError,
    SettingError,
    UnknownNameError,
    UnknownOptionError,
    UnknownStageError,
    VertebraError,
    WeightsError,
    WeightsUnavailableError,
    did_you_mean,
    unknown_name,
)
from vertebra.spec.family import Family, Layer, ModelConfig, State, Variant, keep
from vertebra.spec.photo import PHOTO, is_litter
from vertebra.spec.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    DPN_MEAN,
    DPN_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    Preprocess,
)
from vertebra.spec.printable import printable
from vertebra.spec.promises import PROMISES
from vertebra.spec.record import as_declared, check_range, parse_json, parse_object, value_as
from vertebra.spec.weights import EXPORTED_SUFFIXES, WEIGHT_SUFFIXES, Accuracy, TrainedWith, Weights

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "DPN_MEAN",
    "DPN_STD",
    "EXPORTED_SUFFIXES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INCEPTION_MEAN",
    "INCEPTION_STD",
    "PHOTO",
    "PROMISES",
    "WEIGHT_SUFFIXES",
    "Accuracy",
    "Family",
    "Layer",
    "MissingFileError",
    "ModelConfig",
    "Preprocess",
    "SettingError",
    "State",
    "TrainedWith",
    "UnknownNameError",
    "UnknownOptionError",
    "UnknownStageError",
    "Variant",
    "VertebraError",
    "Weights",
    "WeightsError",
    "WeightsUnavailableError",
    "as_declared",
    "check_range",
    "did_you_mean",
    "is_litter",
    "keep",
    "parse_json",
    "parse_object",
    "printable",
    "unknown_name",
    "value_as",
]
