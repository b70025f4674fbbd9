"""Image-classification backbones and the road around them; `import vertebra as timm` runs code written for timm.

Names load on first use: importing the package costs nothing but this file.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vertebra import data as data
    from vertebra import layers as layers
    from vertebra import models as models
    from vertebra.engine.predict import Prediction as Prediction
    from vertebra.engine.predict import Predictor as Predictor
    from vertebra.hub.factory import create_model as create_model
    from vertebra.hub.factory import load_model as load_model
    from vertebra.hub.listing import get_pretrained_cfg as get_pretrained_cfg
    from vertebra.hub.listing import get_pretrained_cfg_value as get_pretrained_cfg_value
    from vertebra.hub.listing import is_model as is_model
    from vertebra.hub.listing import is_model_pretrained as is_model_pretrained
    from vertebra.hub.listing import list_models as list_models
    from vertebra.hub.listing import list_modules as list_modules
    from vertebra.hub.listing import list_pretrained as list_pretrained
    from vertebra.hub.listing import model_entrypoint as model_entrypoint
    from vertebra.hub.save import save_model as save_model
    from vertebra.models.aggregate import aggregate as aggregate
    from vertebra.models.groups import freeze as freeze
    from vertebra.models.groups import layer_groups as layer_groups
    from vertebra.runtime.optimize import Optimized as Optimized
    from vertebra.runtime.optimize import optimize as optimize
    from vertebra.spec import UnknownNameError as UnknownNameError
    from vertebra.spec import UnknownOptionError as UnknownOptionError
    from vertebra.spec import VertebraError as VertebraError
    from vertebra.spec import WeightsError as WeightsError
    from vertebra.spec import WeightsUnavailableError as WeightsUnavailableError

__version__ = "0.1.0.dev0"

_HOMES = {
    "vertebra.engine.predict": ("Prediction", "Predictor"),
    "vertebra.hub.factory": ("create_model", "load_model"),
    "vertebra.hub.listing": (
        "get_pretrained_cfg",
        "get_pretrained_cfg_value",
        "is_model",
        "is_model_pretrained",
        "list_models",
        "list_modules",
        "list_pretrained",
        "model_entrypoint",
    ),
    "vertebra.hub.save": ("save_model",),
    "vertebra.models.aggregate": ("aggregate",),
    "vertebra.models.groups": ("freeze", "layer_groups"),
    "vertebra.runtime.optimize": ("Optimized", "optimize"),
    "vertebra.spec": (
        "UnknownNameError",
        "UnknownOptionError",
        "VertebraError",
        "WeightsError",
        "WeightsUnavailableError",
    ),
}
_OWNER = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = ("compat", "data", "engine", "export", "hub", "layers", "models", "runtime", "spec")

__all__ = [
    "Optimized",
    "Prediction",
    "Predictor",
    "UnknownNameError",
    "UnknownOptionError",
    "VertebraError",
    "WeightsError",
    "WeightsUnavailableError",
    "__version__",
    "aggregate",
    "create_model",
    "data",
    "freeze",
    "get_pretrained_cfg",
    "get_pretrained_cfg_value",
    "is_model",
    "is_model_pretrained",
    "layer_groups",
    "layers",
    "list_models",
    "list_modules",
    "list_pretrained",
    "load_model",
    "model_entrypoint",
    "models",
    "optimize",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _OWNER:
        value = getattr(import_module(_OWNER[name]), name)
    elif name in _ROOMS:
        value = import_module(f"vertebra.{name}")
    else:
        raise AttributeError(f"module 'vertebra' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
