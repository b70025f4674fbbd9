"""Packages that `import timm` get vertebra: `vertebra.compat.timm.install()` before they are imported.

A finder in front of Python's own answers for `timm` and its submodules with views: modules whose names are vertebra's
own, loaded when they are first used. It answers for the distribution's metadata, too, since some packages ask for a
version before they import anything. What vertebra does not have is not there: importing it is an error that says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import vertebra
from vertebra.spec import VertebraError, did_you_mean

NAME = "timm"
API_VERSION = "1.0.31"
"""The release whose behaviour the tests compare with."""
VERSION = f"{API_VERSION}+vertebra.{vertebra.__version__.replace('.dev', '.')}"
"""What packages see: it satisfies `timm>=...` and shows in a bug report whose code ran."""


def _names(home: str, *names: str) -> dict[str, str]:
    return {name: f"{home}:{name}" for name in names}


_REGISTRY = _names(
    "vertebra",
    "get_pretrained_cfg_value",
    "is_model",
    "is_model_pretrained",
    "list_models",
    "list_modules",
    "list_pretrained",
    "model_entrypoint",
)
_HUB = _REGISTRY | _names("vertebra", "create_model", "get_pretrained_cfg")
_NAMES = {
    **_names(
        "vertebra.hub.listing",
        "get_arch_name",
        "get_arch_pretrained_cfgs",
        "get_deprecated_models",
        "is_model_in_modules",
        "split_model_name_tag",
    ),
    **_names("vertebra.compat.names", "parse_model_name", "safe_model_name"),
}
_FEATURES = _names(
    "vertebra.models.features",
    "FeatureDictNet",
    "FeatureGraphNet",
    "FeatureHookNet",
    "FeatureInfo",
    "FeatureListNet",
)
_CONSTANTS = _names(
    "vertebra.data",
    "DEFAULT_CROP_MODE",
    "DEFAULT_CROP_PCT",
    "IMAGENET_DEFAULT_MEAN",
    "IMAGENET_DEFAULT_STD",
    "IMAGENET_DPN_MEAN",
    "IMAGENET_DPN_STD",
    "IMAGENET_INCEPTION_MEAN",
    "IMAGENET_INCEPTION_STD",
    "OPENAI_CLIP_MEAN",
    "OPENAI_CLIP_STD",
)
_CONFIG = _names("vertebra.data", "resolve_data_config", "resolve_model_data_config")
_CREATE = _names("vertebra.data", "create_transform")
_TRANSFORMS = _CREATE | _names(
    "vertebra.data", "transforms_imagenet_eval", "transforms_imagenet_train", "transforms_noaug_train"
)
_LABELS = _names("vertebra.compat.parts", "ImageNetInfo", "infer_imagenet_subset")
_LAYERS = {
    **_names(
        "vertebra.compat.parts",
        "DropPath",
        "LayerScale",
        "Mlp",
        "PatchEmbed",
        "SelectAdaptivePool2d",
        "drop_path",
        "make_divisible",
        "to_2tuple",
        "to_3tuple",
        "to_4tuple",
        "to_ntuple",
    ),
    "trunc_normal_": "torch.nn.init:trunc_normal_",
}
_OLD_LAYERS = {name: home for name, home in _LAYERS.items() if name != "LayerScale"}
_HELPERS = {name: home for name, home in _LAYERS.items() if name.startswith(("to_", "make_"))}
_FREEZING = _names("vertebra.compat.parts", "freeze_batch_norm_2d", "unfreeze_batch_norm_2d")

VIEWS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "timm": _HUB,
        "timm.data": {**_CONSTANTS, **_CONFIG, **_CREATE, **_LABELS},
        "timm.data.config": _CONFIG,
        "timm.data.constants": _CONSTANTS,
        "timm.data.transforms_factory": _TRANSFORMS,
        "timm.layers": _LAYERS,
        "timm.layers.activations": {"Swish": "torch.nn:SiLU"},
        "timm.layers.helpers": _HELPERS,
        "timm.models": _HUB | _NAMES | _FEATURES,
        "timm.models.efficientnet": {},
        "timm.models.layers": _OLD_LAYERS,
        "timm.models.registry": _REGISTRY,
        "timm.models.resnet": {},
        "timm.models.sknet": {},
        "timm.utils": {},
        "timm.utils.model": _FREEZING,
    }
)
"""Module -> {its public name: `module:name` of what stands behind it}."""

ABSENT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "timm.models.efficientnet": ("EfficientNet", "decode_arch_def", "round_channels"),
        "timm.models.resnet": ("ResNet",),
        "timm.models.sknet": ("SelectiveKernelBasic", "SelectiveKernelBottleneck"),
    }
)
"""Names that packages import whether or not they are ever used (segmentation_models_pytorch derives its encoders from
them). They exist so that such an import succeeds, and raise as soon as they are called or instantiated."""


def install() -> None:
    """Answer for `timm` from now on. A second call changes nothing; `VertebraError` where timm is already imported."""
    if _FINDER in sys.meta_path:
        return
    loaded = [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]
    if loaded:
        where = getattr(sys.modules[loaded[0]], "__file__", None) or "an unknown place"
        raise VertebraError(
            f"timm is already imported, from {where}; call vertebra.compat.timm.install() before anything imports timm"
        )
    sys.meta_path.insert(0, _FINDER)


def uninstall() -> None:
    """Undo `install`. Packages that were imported meanwhile keep what they took."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _View)]:
            del sys.modules[name]


def _missing(name: str) -> str:
    parent, _, last = name.rpartition(".")
    hint = did_you_mean(last, _public(parent)) if parent in VIEWS else ""
    return f"{name} is not in vertebra, which stands in for timm here{hint or '; docs/timm.md lists what is'}"


def _public(view: str) -> list[str]:
    below = [name.rpartition(".")[2] for name in VIEWS if name.rpartition(".")[0] == view]
    return sorted({*VIEWS[view], *ABSENT.get(view, ()), *below})


class _View(ModuleType):
    """A module of `VIEWS`."""

    def __getattr__(self, name: str) -> Any:
        value = self._find(name)
        setattr(self, name, value)
        return value

    def _find(self, name: str) -> Any:
        view, full = self.__name__, f"{self.__name__}.{name}"
        if name in VIEWS[view]:
            home, _, own = VIEWS[view][name].partition(":")
            return getattr(import_module(home), own)
        if name in ABSENT.get(view, ()):
            return _absent(full)
        if full in VIEWS:
            return import_module(full)
        if view == "timm.models" and vertebra.is_model(name):
            return vertebra.model_entrypoint(name)
        raise AttributeError(_missing(full), name=name, obj=self)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *_public(self.__name__)]


def _absent(full: str) -> type:
    """A class to import and derive from, not to use."""
    from vertebra.compat.parts import Absent

    module, _, name = full.rpartition(".")
    return type(name, (Absent,), {"__module__": module, "stands_for": full})


class _Record(Distribution):
    """What `importlib.metadata` shows of the installed package."""

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n"
        return f"{NAME}\n" if filename == "top_level.txt" else None

    def locate_file(self, path: Any) -> Path:
        return Path(__file__).parent / path


class _Finder(DistributionFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in VIEWS:
            return ModuleSpec(fullname, self, origin=__name__, is_package=True)
        if fullname.startswith(f"{NAME}."):
            # Every view is a package, so that `from timm.layers import Nothing` comes by here as well. Without `name=`:
            # Python would take its own submodule's absence for normal, and put its own message in place of this one.
            raise ModuleNotFoundError(_missing(fullname))
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _View(spec.name, f"Vertebra under the name {spec.name}.")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__all__"] = _public(module.__name__)
        if module.__name__ == NAME:
            module.__dict__["__version__"] = VERSION

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterable[Distribution]:
        """Only for those who ask by name: lists of what is installed stay true."""
        asked = context.name if context is not None else None
        return [_Record()] if asked is not None and asked.lower() == NAME else []


_FINDER = _Finder()
