"""What every benchmark needs: interleaved timing, the ratio of medians, and a description of the machine."""

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Ours and the peer's models share one process here: more kernels than oneDNN keeps (1024), though each alone fits.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import timm
import torch

import vertebra

RESULTS = Path(__file__).resolve().parent.parent / "results"
SHARED = Path(os.environ.get("VERTEBRA_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
"""Weights, photos and training sets: `../shared/data`, or in the folder that VERTEBRA_SHARED names."""

SETTLING = 0.05
"""Seconds. One call was too short for models of 2 ms: torch's idle threads still spun beside it, and it took twice."""


def machine() -> dict[str, str]:
    """Processor, cores, instruction sets that matter here, and versions."""
    name, flags = platform.processor(), ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {k.strip(): v.strip() for k, v in lines.items()}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni")
    return {
        "processor": name,
        "cores": str(os.cpu_count()),
        "flags": " ".join(f for f in wanted if f in flags.split()) or "none of " + " ".join(wanted),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def interleave(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1, settle: bool = False
) -> dict[str, list[float]]:
    """Seconds of each call, the contestants in turn, so that a drift of the machine's speed meets all alike.

    `settle` is for contestants of different runtimes: the idle threads of the one before spin on the cores for a while,
    and its weights fill the caches. Each is called unmeasured for `SETTLING` seconds, once at least, before it is
    measured, in an order shuffled anew.
    """
    order, dice = list(contestants), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(warmup + rounds):
        if settle:
            dice.shuffle(order)
        for name in order:
            call = contestants[name]
            if settle:
                settled = time.perf_counter() + SETTLING
                call()
                while time.perf_counter() < settled:
                    call()
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if round_ >= warmup:
                times[name].append(elapsed)
    return times


def twins(name: str, images: torch.Tensor | None = None) -> tuple[Any, Any]:
    """Ours and timm's model, in evaluation mode, with the same random weights and their statistics of `images` (noise).

    With statistics drawn at random, too, a deep network's answers grow beyond what 8 bits can tell apart. And where a
    ReLU cuts half of what comes to it, rounding errors grow from layer to layer as they do not in trained networks
    (arXiv:1902.08129; in bf16, dla102 answers noise with a cosine of 0.985 to 0.987 by whichever library): hence the
    biases of 1, which let most of it pass.
    """
    theirs = timm.create_model(name).train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of what was seen
            torch.nn.init.ones_(module.bias)
    with torch.no_grad():
        theirs(torch.randn(4, *theirs.default_cfg["input_size"]) if images is None else images)
    state = theirs.eval().state_dict()
    ours = vertebra.create_model(name, device="meta").eval()
    ours.load_state_dict({k: v.clone() for k, v in state.items()}, strict=True, assign=True)
    return ours, theirs


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def geometric_mean(values: list[float]) -> float:
    """The geometric mean."""
    return statistics.geometric_mean(values)


def keep(name: str, lines: list[str], figures: object) -> None:
    """Print a result, and keep it with the machine's description in `results/<name>.{txt,json}`."""
    described = machine()
    text = "\n".join([f"# {name}", *(f"# {k}: {v}" for k, v in described.items()), *lines])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.txt").write_text(text + "\n")
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": described, "figures": figures}, indent=1) + "\n")
