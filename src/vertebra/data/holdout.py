"""A validation split where DATA has none: a share of each class's training images, drawn by a seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vertebra.data.datasets import Dataset
from vertebra.spec.errors import VertebraError


def with_validation(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The same with a "val" split: where there is none, `share` of each class's training images, drawn by `seed`.

    Each class of two images or more gives at least one and keeps at least one. Images with several classes are drawn
    class by class, the rarest first (Sechidis et al., ECML 2011), as far as their classes' shares allow.
    """
    if "val" in dataset.parts:
        return dataset
    whole = dataset.part("train")
    by_class: dict[int, list[int]] = defaultdict(list)
    for position in range(len(whole)):
        for label in whole.classes_of(position) or (-1,):  # -1: images of no class are shared out, too
            by_class[label].append(position)
    held: set[int] = set()
    if dataset.multi_label:
        held = _spread(by_class, share, seed)
    else:
        for label, positions in sorted(by_class.items()):
            held.update(random.Random(f"{seed}/{label}").sample(positions, _count(share, positions)))
    if not held:
        raise VertebraError(f"{dataset.source}: one image a class leaves none to validate on; add images, or a split")
    train = whole.choose([i for i in range(len(whole)) if i not in held])
    return replace(dataset, parts={**dataset.parts, "train": train, "val": whole.choose(sorted(held))})


def _count(share: float, positions: Sequence[int]) -> int:
    return min(max(1, round(share * len(positions))), len(positions) - 1)


def _spread(by_class: Mapping[int, Sequence[int]], share: float, seed: int) -> set[int]:
    """Images to hold out, such that every class has its share of them and none loses its last image."""
    left = {label: len(positions) for label, positions in by_class.items()}
    own: dict[int, list[int]] = defaultdict(list)
    for label, positions in by_class.items():
        for position in positions:
            own[position].append(label)
    held, decided = set[int](), set[int]()
    for label, positions in sorted(by_class.items(), key=lambda item: (len(item[1]), item[0])):
        missing = _count(share, positions) - sum(position in held for position in positions)
        drawn = random.Random(f"{seed}/{label}").sample(positions, len(positions))
        for position in sorted(drawn, key=lambda p: p in decided):  # what rarer classes chose to keep, last
            if missing < 1 or (position in decided and any(p in held for p in positions)):
                break
            if position not in held and all(left[other] > 1 for other in own[position]):
                held.add(position)
                left.update({other: left[other] - 1 for other in own[position]})
                missing -= 1
        decided.update(positions)
    return held
