"""Which images look the same, among very many: no pair is compared that shares nothing.

n images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

BITS = 8
"""Bits of 64 in which the hashes of two copies differ at most."""
ALIKE, DETAIL = 0.9, 0.96
"""Least correlation of two copies' thumbnails with their colours, and of what is fine in them, without. The second
tells shirts apart that lie alike on a table. Measured on 2 x 200 photos: copies of another quality, size or brightness
0.98 and more for 98% of them, cut by 1% on each side 0.94 and more; of 3,781 photos of clothes, other ones with near
hashes reach 0.946, and of 42,500 of ImageNet none reaches 0.96."""
PLAIN = 4.0
"""Contrast below which an image shows too little to be told from another: it is compared by content alone."""
BANDS = 6
WINDOW = 1024
"""Images with a band in common that one is compared with at most, next in the order of the whole hash."""
ENOUGH = 12
"""Likenesses of one image that are followed up in a band: the frames of a film hang together by fewer."""
_CHUNK = 8_192


def groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Everything that is joined by pairs, in order."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    found: dict[int, list[int]] = defaultdict(list)
    for i in sorted(parent):
        found[root(i)].append(i)
    return list(found.values())


def alike(
    hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8], contrast: NDArray[np.float32]
) -> list[tuple[int, int]]:
    """Pairs of positions that show the same picture; of many with one hash, each with the first.

    Pairs whose hashes differ in 5 bits or fewer share one of 6 bands and are all found; of those with 6 and 8 bits,
    98% and 89%. The time grows with n, as long as buckets stay below `WINDOW`, and never with its square.
    """
    clear = np.flatnonzero(contrast >= PLAIN)
    values, first, which = np.unique(hashes[clear], return_index=True, return_inverse=True)
    same = np.stack([clear[first][which], clear], 1)
    same = same[same[:, 0] != same[:, 1]]
    near = clear[first][_close(values)]
    pairs = np.unique(np.sort(np.concatenate([same, near]), axis=1), axis=0)
    return [(int(a), int(b)) for a, b in pairs[_confirmed(pairs, thumbs)]]


def _close(values: NDArray[np.uint64]) -> NDArray[np.intp]:
    """(m, 2) positions of different hashes within `BITS`."""
    found = [np.empty((0, 2), np.intp)]
    edges = np.linspace(0, 64, BANDS + 1).round().astype(np.uint64)
    for low, high in pairwise(edges):
        keys = (values >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.lexsort((values, keys))
        keys, ordered = keys[order], values[order]
        here, matches = np.arange(len(order)), np.zeros(len(order), np.intp)
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            here = here[here + step < len(order)]
            here = here[(keys[here] == keys[here + step]) & (matches[here] < ENOUGH)]
            if not len(here):
                break
            close = here[np.bitwise_count(ordered[here] ^ ordered[here + step]) <= BITS]
            matches[close] += 1
            found.append(np.stack([order[close], order[close + step]], 1))
    return np.concatenate(found)


def _confirmed(pairs: NDArray[np.intp], thumbs: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """For each pair, whether the thumbnails correlate, in the whole and in what is fine."""
    involved, which = np.unique(pairs, return_inverse=True)
    which = which.reshape(pairs.shape)
    pixels = thumbs.shape[1] * thumbs.shape[2]
    whole, fine = (np.empty((len(involved), channels * pixels), np.float16) for channels in (3, 1))
    for start in range(0, len(involved), _CHUNK):
        some = slice(start, start + _CHUNK)
        levels = thumbs[involved[some]].astype(np.float32)
        whole[some], fine[some] = _unit(levels), _unit(_fine(levels))
    out = np.zeros(len(pairs), np.bool_)
    for start in range(0, len(pairs), _CHUNK):
        a, b = which[start : start + _CHUNK].T
        out[start : start + _CHUNK] = (_dot(fine[a], fine[b]) >= DETAIL) & (_dot(whole[a], whole[b]) >= ALIKE)
    return out


def _unit(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(m, h, w, c) -> (m, h w c) of length 1, each colour about its own mean: brightness does not count."""
    flat = (levels - levels.mean((1, 2), keepdims=True)).reshape(len(levels), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _dot(a: NDArray[np.float16], b: NDArray[np.float16]) -> NDArray[np.float32]:
    return np.einsum("ij,ij->i", a.astype(np.float32), b.astype(np.float32))


def _fine(thumbs: NDArray[np.float32]) -> NDArray[np.float32]:
    """(m, h, w, c) -> (m, h, w, 1): grey levels less the mean of the 5 x 5 around them."""
    grey = thumbs.mean(3)
    around = np.pad(grey, ((0, 0), (2, 2), (2, 2)), mode="edge")
    return (grey - sliding_window_view(around, (5, 5), (1, 2)).mean((3, 4)))[..., None]
