"""How far an artefact's answers may lie from the model's, and the comparison itself. numpy only.

b batch, k classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Bound:
    """Both answers are compared as logits with their mean over the classes taken away: a shift says nothing."""

    cosine: float
    """Least cosine of any row."""
    error: float
    """Greatest difference, as a share of the greatest value."""
    margin: float
    """Where the model prefers its first class to its second by more than this probability, the first must stay so."""


BOUNDS = {
    "f32": Bound(cosine=0.99999, error=1e-3, margin=1e-3),
    "bf16": Bound(cosine=0.995, error=0.15, margin=0.05),
    "int8": Bound(cosine=0.9, error=0.5, margin=0.3),
}
PHOTO_BOUND = Bound(cosine=0.999, error=0.05, margin=0.02)
"""f32 with preprocessing: where Pillow's fixed-point arithmetic rounds a level otherwise, answers differ a little."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The worst of some rows."""

    cosine: float
    error: float
    flipped: int
    """Rows whose clear first class is another one now."""
    rows: int

    def within(self, bound: Bound) -> bool:
        return self.cosine >= bound.cosine and self.error <= bound.error and self.flipped == 0


def compare(expected: Array, found: Array, bound: Bound) -> Figures:
    """(b, k) logits against (b, k) logits. NaN is never within a bound."""
    assert expected.shape == found.shape, (expected.shape, found.shape)
    a, b = _centred(expected), _centred(found)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = float(((a * b).sum(1) / np.maximum(norms, 1e-30)).min())
    error = float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))
    return Figures(cosine, error, _flipped(a, b, bound.margin), len(a))


def _flipped(a: Array, b: Array, margin: float) -> int:
    if a.shape[1] < 2:
        return 0
    share = np.exp(a - a.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    best = np.sort(share, axis=1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > margin
    return int((clear & (a.argmax(1) != b.argmax(1))).sum())


def _centred(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    return wide - wide.mean(1, keepdims=True) if wide.shape[1] > 2 else wide
