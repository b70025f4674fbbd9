"""Recipes: functions that return a `RunConfig`. One file each; its docstring says what to expect."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import cleandoc
from types import ModuleType

from vertebra.engine.config import RunConfig
from vertebra.spec import unknown_name

RECIPES = ("finetune", "linear-probe", "small", "dla", "ra", "deit", "deit-distilled", "deit3", "dpn")
"""By name, those for one's own data first."""


def recipe(name: str) -> RunConfig:
    """The recipe's config, data and (mostly) model yet to be named. Raises `UnknownNameError`."""
    make: Callable[[], RunConfig] = vars(_module(name))["config"]
    return make()


def about(name: str) -> str:
    """What the recipe is for and what to expect of it; the first line says it in short."""
    return cleandoc(_module(name).__doc__ or "")


def _module(name: str) -> ModuleType:
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return import_module(f"vertebra.engine.recipes.{name.replace('-', '_')}")
