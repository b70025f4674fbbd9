"""What a machine can do at most, measured now: products a second for each type of number, and bytes a second.

A model's time has two floors: its arithmetic at the first rate and its traffic at the second (Williams et al.,
"Roofline", CACM 2009). `Work.floor` is the higher of them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vertebra.engine.measure import Cost
from vertebra.runtime.backend import DTYPES
from vertebra.runtime.private import int_mm

ITEM = {"f32": 4, "bf16": 2, "int8": 1}
"""Bytes of one number."""
WIDER = {"f32": ("f32",), "bf16": ("bf16", "f32"), "int8": ("int8", "bf16", "f32")}
"""In what a type may be computed: without instructions of its own, it is computed in a wider one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Peaks of one device."""

    flops: dict[str, float]
    """Operations a second (a multiply-accumulate is two) in products of large matrices, by type."""
    bandwidth: float
    """Bytes a second, read and written, of a copy larger than the caches."""

    def peak(self, dtype: str) -> float:
        """Operations a second at which numbers of this type can be multiplied here, as they are or in a wider type."""
        return max(self.flops[wider] for wider in WIDER[dtype] if wider in self.flops)


@dataclass(frozen=True, slots=True)
class Work:
    """What one call has to do at least."""

    flops: float
    bytes: float
    """Weights read once, every activation written once and read once."""

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes

    def floor(self, limits: Limits, dtype: str) -> float:
        """Seconds below which no call can end."""
        return max(self.flops / limits.peak(dtype), self.bytes / limits.bandwidth)


def work(cost: Cost, dtype: str, batch: int, *, train: bool) -> Work:
    """Of one forward pass; of a training step, three times that: forward, and both gradients."""
    channels, height, width = cost.input_size
    passed = 2 * cost.activations + channels * height * width
    times = 3 if train else 1
    return Work(times * 2.0 * cost.products * batch, times * ITEM[dtype] * float(cost.params + batch * passed))


def measure_limits(device: torch.device, dtypes: tuple[str, ...], *, seconds: float = 0.5) -> Limits:
    """The best of several products and copies; about `seconds` for each way to multiply, and for the copy."""
    large = device.type != "cpu"
    side = 8192 if large else 1024
    wanted = {wider for dtype in dtypes for wider in WIDER[dtype]}
    flops = {
        name: 2 * side**3 / min(_best(product, seconds, device) for product in _products(name, side, device))
        for name in sorted(wanted)
    }
    count = 2**30 if large else 2**26
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Limits(flops, 2 * count / _best(lambda: target.copy_(source), seconds, device))


def _products(dtype: str, side: int, device: torch.device) -> list[Callable[[], object]]:
    """Ways to do side^3 multiplications and additions: as a product of matrices, and on a processor as a convolution of
    1x1, too, which another library does there (in f32 on AMD, more than twice as fast).
    """
    if dtype == "int8":
        a, b = (torch.randint(-8, 8, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        return [lambda: int_mm(a, b)]
    number = DTYPES[dtype]
    a, b = (torch.randn(side, side, device=device).to(number) for _ in range(2))
    if device.type != "cpu":
        return [lambda: a @ b]
    channels, pixels = side // 2, math.isqrt(4 * side)
    image = torch.randn(1, channels, pixels, pixels).to(number, memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 1, 1).to(number)
    return [lambda: a @ b, lambda: torch.nn.functional.conv2d(image, weight)]


@torch.inference_mode()
def _best(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """The fastest call, warm, within a budget of time; one at least."""
    best, end, count = float("inf"), time.perf_counter() + seconds, 0
    call()
    synchronize(device)
    while count < 1 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
        count += 1
    return best


def synchronize(device: torch.device) -> None:
    """A GPU answers at once and computes later; here its work is over."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
