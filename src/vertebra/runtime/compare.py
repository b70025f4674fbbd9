"""How near some answers lie to others: the figures, and the bounds that they must keep. numpy only.

b batch, k classes.
"""

from dataclasses import dataclass
from math import inf, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Answers are compared with their mean over the classes taken away: a common shift says nothing; but where each
    class has a probability of its own (a sigmoid's), which it moves.
    """

    cosine: float
    """Least cosine of any row."""
    error: float = inf
    """Greatest difference, as a share of the greatest value."""
    agreement: float = 1.0
    """Least share of rows whose first class stays, of those where the model is sure of it."""
    margin: float
    """Sure: it prefers its first class to its second by more than this probability. Where each class has its own, a row
    is another one when one of them moves by more.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The worst of some rows, each an image's answer."""

    cosine: float
    error: float
    flipped: int
    """Of the sure rows, those whose first class (of `several`: some class' probability) is another one now."""
    sure: int
    images: int
    several: bool = False
    """Each class has a probability of its own, and every row is sure."""

    @property
    def agreement(self) -> float:
        """Share of the sure rows whose first class stayed."""
        return 1 - self.flipped / self.sure if self.sure else 1.0

    def within(self, bound: Bound) -> bool:
        """NaN never is."""
        near = self.cosine >= bound.cosine and self.error <= bound.error
        return near and self.agreement >= bound.agreement

    def __str__(self) -> str:
        if self.several:
            return f"cosine {self.cosine:.6f}, probabilities kept on {self.agreement:.1%} of {self.images} images"
        if not self.sure:
            return f"cosine {self.cosine:.6f}, no clear first class among {self.images} images"
        return (
            f"cosine {self.cosine:.6f}, first class kept on {self.agreement:.1%} of {self.sure} clear"
            f" among {self.images} images"
        )


def compare(expected: Array, found: Array, bound: Bound, *, classes: bool = True, several: bool = False) -> Figures:
    """(b, ...) against (b, ...), row by row; of another shape, NaN. `classes` False: embeddings have no first class.
    `several`: of any number of classes an image, each with its own probability.
    """
    if expected.shape != found.shape:
        return Figures(cosine=nan, error=nan, flipped=0, sure=0, images=len(expected))
    with np.errstate(invalid="ignore"):  # of infinities
        a, b = (_centred(rows, classes=classes and not several) for rows in (expected, found))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = (a == b).all(1)  # a row of zeros has no direction, and may still be right
        cosine = np.where(same, 1.0, (a * b).sum(1) / np.maximum(norms, 1e-30)).min()
        error = np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)
    if several:
        sure = np.ones(len(a), bool)
        other = ~(np.abs(_sigmoid(a) - _sigmoid(b)) <= bound.margin).all(1)  # NaN is another one
    else:
        sure = _sure(a, bound.margin) if classes and a.shape[1] > 1 else np.zeros(len(a), bool)
        other = a.argmax(1) != b.argmax(1)
    return Figures(
        cosine=float(cosine),
        error=float(error),
        flipped=int((sure & other).sum()),
        sure=int(sure.sum()),
        images=len(expected),
        several=several,
    )


def _sigmoid(logits: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * logits))


def _sure(logits: Array, margin: float) -> Array:
    share = np.exp(logits - logits.max(1, keepdims=True))
    best = np.sort(share / share.sum(1, keepdims=True), axis=1)[:, -2:]
    return best[:, 1] - best[:, 0] > margin


def _centred(answers: Array, *, classes: bool) -> Array:
    wide = answers.reshape(len(answers), -1).astype(np.float64)
    return wide - wide.mean(1, keepdims=True) if classes and wide.shape[1] > 2 else wide
