"""RandAugment, AugMix, AutoAugment, 3-Augment and TrivialAugment, by the configuration strings of the field.

Each takes an RGB PIL image or a uint8 tensor (3, h, w) and gives back the same kind. Random numbers come from the
generator given, or from torch's default one; never from Python's or numpy's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

from vertebra.data.augment.kernels import Pixels
from vertebra.data.augment.ops import DRAWS, Op, Surroundings, as_pixels
from vertebra.data.augment.tables import AUGMIX, POLICIES, RAND, RAND_3A, RAND_3A_WEIGHTS, RAND_INCREASING
from vertebra.data.draws import dirichlet, uniforms
from vertebra.spec.errors import VertebraError, did_you_mean

KINDS = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a", "trivial")


class RandAugment(nn.Module):
    """`layers` operations a picture, each drawn evenly, or by `weights` and then never twice (arXiv:1909.13719)."""

    def __init__(
        self,
        ops: Sequence[Op],
        layers: int = 2,
        weights: Sequence[float] | None = None,
        around: Surroundings | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.ops = tuple(ops)
        self.layers = layers
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self.around = around or Surroundings()
        self.generator = generator

    def forward(self, image: Any) -> Any:
        draws = uniforms(self.layers * DRAWS, self.generator)
        if self.weights is None:
            chosen = [int(draws[i * DRAWS] * len(self.ops)) for i in range(self.layers)]
        else:
            chosen = torch.multinomial(self.weights, self.layers, generator=self.generator).tolist()
        steps = [(self.ops[op], draws[i * DRAWS : (i + 1) * DRAWS]) for i, op in enumerate(chosen)]
        if not any(numbers[1] < op.p for op, numbers in steps):
            as_pixels(image)  # what cannot be augmented is refused even when nothing would have been done
            return image
        pixels, back = as_pixels(image)
        for op, numbers in steps:
            pixels = op(pixels, self.around, numbers)
        return back(pixels)

    def extra_repr(self) -> str:
        names = " ".join(op.name for op in self.ops)
        return f"layers={self.layers}, ops={names}"


class AutoAugment(nn.Module):
    """One of the policy's lines a picture, all of its operations (arXiv:1805.09501); 3-Augment is one (2204.07118)."""

    def __init__(
        self,
        policy: Sequence[Sequence[Op]],
        around: Surroundings | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.policy = tuple(tuple(line) for line in policy)
        self.longest = max(len(line) for line in self.policy)
        self.around = around or Surroundings()
        self.generator = generator

    def forward(self, image: Any) -> Any:
        draws = uniforms(self.longest * DRAWS, self.generator)
        line = self.policy[int(draws[0] * len(self.policy))]
        pixels, back = as_pixels(image)
        for i, op in enumerate(line):
            pixels = op(pixels, self.around, draws[i * DRAWS : (i + 1) * DRAWS])
        return back(pixels)


class AugMix(nn.Module):
    """`width` chains of operations, averaged by random weights, then blended with the picture (arXiv:1912.02781).

    `depth`: operations a chain; -1 draws 1 to 3 for each. `alpha`: the concentration of both draws.
    """

    def __init__(
        self,
        ops: Sequence[Op],
        alpha: float = 1.0,
        width: int = 3,
        depth: int = -1,
        around: Surroundings | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.ops = tuple(ops)
        self.alpha = alpha
        self.width = width
        self.depth = depth
        self.around = around or Surroundings()
        self.generator = generator

    def forward(self, image: Any) -> Any:
        pixels, back = as_pixels(image)
        weights = dirichlet(self.alpha, self.width, self.generator)
        keep = float(dirichlet(self.alpha, 2, self.generator)[0])
        mixed = np.zeros(pixels.shape, np.float32)
        for weight in weights.tolist():
            mixed += np.float32(weight) * self._chain(pixels)
        mixed = np.float32(keep) * mixed + np.float32(1 - keep) * pixels
        return back(np.clip(mixed, 0, 255).astype(np.uint8))

    def _chain(self, pixels: Pixels) -> Pixels:
        most = max(self.depth, 3)
        draws = uniforms(1 + most * DRAWS, self.generator)
        for i in range(self.depth if self.depth > 0 else 1 + int(draws[-1] * 3)):
            numbers = draws[i * DRAWS : (i + 1) * DRAWS]
            pixels = self.ops[int(numbers[0] * len(self.ops))](pixels, self.around, numbers)
        return pixels


def auto_augment(
    config: str, around: Surroundings | None = None, generator: torch.Generator | None = None
) -> nn.Module:
    """The augmentation that a string names: `rand-m9-mstd0.5-inc1`, `augmix-m5-w4-d2`, `original`, `3a`, `trivial`.

    RandAugment: `m` magnitude 0..10 (10), `mstd` its noise (0; above 100 the level is drawn evenly from 0 to m), `mmax`
    the level's bound (10), `n` operations a picture (2), `p` probability of each (0.5), `inc1` severity grows with m,
    `t3a` the operations of 3-Augment, `t3aw` weighted. AugMix: `m` (3), `w` width (3), `d` depth (-1), `a` alpha (1),
    `mstd` (even). AutoAugment (`original`, `originalr`, `v0`, `v0r`) and `3a`: `mstd` (0).
    """
    kind, *parts = config.split("-")
    surroundings = around or Surroundings()
    match kind:
        case "rand":
            return _rand(config, parts, surroundings, generator)
        case "augmix":
            return _augmix(config, parts, surroundings, generator)
        case "trivial" if not parts:
            if generator is not None:
                raise VertebraError("'trivial' draws from torch's default generator: give none")
            return v2.TrivialAugmentWide(
                interpolation=v2.InterpolationMode.BILINEAR, fill=list(map(float, surroundings.fill))
            )
        case _ if kind in POLICIES:
            noise = _noise(_sections(config, parts, {"mstd": float}).get("mstd", 0.0))
            policy = [[Op(name, p, m, noise) for name, p, m in line] for line in POLICIES[kind]]
            return AutoAugment(policy, surroundings, generator)
        case _:
            hint = did_you_mean(kind, KINDS) or f"; allowed: {', '.join(KINDS)}"
            raise VertebraError(f"unknown augmentation {config!r}{hint}")


def _rand(config: str, parts: list[str], around: Surroundings, generator: torch.Generator | None) -> RandAugment:
    kinds: dict[str, Callable[[str], Any]] = {
        "m": float, "mstd": float, "mmax": float, "n": int, "p": float, "inc": int, "t": str,
    }  # fmt: skip
    given = _sections(config, parts, kinds)
    table: dict[str | None, tuple[tuple[str, ...], tuple[float, ...] | None]] = {
        None: (RAND_INCREASING if given.get("inc") else RAND, None),
        "3a": (RAND_3A, None),
        "3aw": (tuple(RAND_3A_WEIGHTS), tuple(RAND_3A_WEIGHTS.values())),
    }
    if given.get("t") not in table:
        raise VertebraError(f"augmentation {config!r}: unknown set of operations 't{given['t']}'; allowed: t3a, t3aw")
    names, weights = table[given.get("t")]
    magnitude, p, layers = given.get("m", 10.0), given.get("p", 0.5), given.get("n", 2)
    if not 0 <= p <= 1 or layers < 1 or magnitude < 0:
        raise VertebraError(f"augmentation {config!r}: p lies in 0..1, n is at least 1, m at least 0")
    if weights is not None and layers > len(names):
        raise VertebraError(
            f"augmentation {config!r}: weighted operations happen once each, so n is at most {len(names)}"
        )
    noise = _noise(given.get("mstd", 0.0))
    ops = [Op(name, p, magnitude, noise, given.get("mmax", 10.0)) for name in names]
    return RandAugment(ops, layers, weights, around, generator)


def _augmix(config: str, parts: list[str], around: Surroundings, generator: torch.Generator | None) -> AugMix:
    given = _sections(config, parts, {"m": float, "mstd": float, "w": int, "d": int, "a": float})
    width, depth, alpha = given.get("w", 3), given.get("d", -1), given.get("a", 1.0)
    if width < 1 or depth == 0 or alpha <= 0:
        raise VertebraError(f"augmentation {config!r}: w is at least 1, d at least 1, a above 0")
    noise = _noise(given.get("mstd", math.inf))
    ops = [Op(name, 1.0, given.get("m", 3.0), noise) for name in AUGMIX]
    smaller = Surroundings(around.fill, around.resampling, translate=0.3)
    return AugMix(ops, alpha, width, depth, smaller, generator)


def _noise(value: float) -> float:
    return math.inf if value > 100 else value


def _sections(config: str, parts: list[str], kinds: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for part in parts:
        found = re.fullmatch(r"(t|[a-z]+)(.*)", part) if not part.startswith("t") else re.fullmatch(r"(t)(.+)", part)
        key, value = found.groups() if found else (part, "")
        allowed = ", ".join(kinds)
        if key not in kinds:
            raise VertebraError(
                f"augmentation {config!r}: unknown section {part!r}; allowed: {allowed}, each with a value"
            )
        if key in out:
            raise VertebraError(f"augmentation {config!r}: section {key!r} is given twice; keep one")
        try:
            out[key] = kinds[key](value)
        except ValueError as error:
            raise VertebraError(
                f"augmentation {config!r}: {part!r} needs a number behind {key!r}, as {key}5"
            ) from error
    return out
