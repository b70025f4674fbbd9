"""The reference implementation as an oracle: the same call made of both libraries on the same weights.

What differs is named by the fewest options that bring it about: one row of docs/timm.md each (test_oracle.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, product
from typing import Any

from torch import Tensor

from tests.zoo import relative

TOLERANCE = 1e-4
Options = dict[str, Any]
Axes = dict[str, Sequence[Any]]
"""Option -> its values, the default first."""


@dataclass(frozen=True)
class Refusal:
    """A call that ended in an error."""

    error: Exception

    def __str__(self) -> str:
        return f"`{type(self.error).__name__}`"


def answer(call: Callable[..., Any], options: Options) -> Any:
    """What a call gives, errors too."""
    try:
        return call(**options)
    except Exception as error:  # noqa: BLE001 - whatever the reference raises is its answer
        return Refusal(error)


def form(value: Any) -> Any:
    """A tensor's shape; of lists, tuples and dicts that of each entry; all else as it is."""
    match value:
        case Tensor():
            return tuple(value.shape)
        case dict():
            return {key: form(each) for key, each in value.items()}
        case list() | tuple():
            return [form(each) for each in value]
        case _:
            return value


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors([value[key] for key in sorted(value)])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors(each)


def compare(ours: Any, theirs: Any) -> tuple[str, str] | None:
    """(what the reference gives, what we give) in few words; None where they agree.

    Both refusing is agreeing, where the caller's `except` for the reference's error catches ours. What it only asserts
    is nobody's to catch.
    """
    if isinstance(theirs, Refusal):
        if not isinstance(ours, Refusal):
            return str(theirs), "answers"
        caught = isinstance(theirs.error, AssertionError) or isinstance(ours.error, type(theirs.error))
        return None if caught else (str(theirs), str(ours))
    if isinstance(ours, Refusal):
        return "answers", str(ours)
    if form(ours) != form(theirs):
        return "answers", _unlike(form(ours), form(theirs))
    pairs = zip(tensors(ours), tensors(theirs), strict=True)
    return None if all(_alike(a, b) for a, b in pairs) else ("answers", "other values")


def _unlike(ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return "another " + ", ".join(str(key) for key in ours if ours[key] != theirs[key])
    return "another form"


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours == theirs).all()) or relative(ours, theirs) < TOLERANCE


@dataclass
class Crossing:
    """Every combination of a call's options, made of both libraries.

    `singly`: each value by itself instead, where a product would say nothing more.
    """

    call: str
    axes: Axes
    singly: bool = False
    found: dict[frozenset[tuple[str, int]], tuple[str, str]] = field(default_factory=dict)
    calls: int = 0

    def _chosen(self) -> Iterator[frozenset[tuple[str, int]]]:
        """The places of the values that are no default."""
        if self.singly:
            yield frozenset()
            yield from (frozenset([(name, i)]) for name, values in self.axes.items() for i in range(1, len(values)))
            return
        for places in product(*(range(len(values)) for values in self.axes.values())):
            yield frozenset((name, i) for name, i in zip(self.axes, places, strict=True) if i)

    def run(self, ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
        for chosen in self._chosen():
            options = {name: self.axes[name][i] for name, i in chosen}
            self.calls += 1
            difference = compare(answer(ours, options), answer(theirs, options))
            if difference:
                self.found[chosen] = difference

    def differences(self) -> Iterator[tuple[str, str, str]]:
        """(call, the reference's answer, ours) that no smaller set of options brings about."""
        for chosen, (theirs, ours) in self.found.items():
            parts = (frozenset(part) for size in range(len(chosen)) for part in combinations(chosen, size))
            if not any(self.found.get(part) == (theirs, ours) for part in parts):
                yield self._spelled(chosen), theirs, ours

    def _spelled(self, chosen: frozenset[tuple[str, int]]) -> str:
        given = {name: self.axes[name][i] for name, i in sorted(chosen)}
        return f"{self.call}({', '.join(f'{name}={_name(value)}' for name, value in given.items())})"


def _name(value: Any) -> str:
    if isinstance(value, partial):
        return f"partial({_name(value.func)}, {', '.join(f'{k}={v!r}' for k, v in value.keywords.items())})"
    return value.__name__ if isinstance(value, type) else repr(value)
