"""Eager inference against timm's, same weights, one run: the plain model, and its steps made one (backend `eager`).

    python benchmarks/eager.py [--quick] [f32] [bf16]

Bars: plain, no case slower than 1.02 of timm's latency; with steps made one, geometric mean <= 0.85 where the processor
has AVX-512, else 0.888. Before timing, all must answer alike.
"""

import itertools
import sys
from collections.abc import Callable

import torch
from common import geometric_mean, interleave, keep, median, twins

from vertebra.runtime import machine
from vertebra.runtime.eager import fused

MODELS = ("dla34", "dla102", "dpn92", "cspdarknet53", "deit_base_distilled_patch16_224")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
"""Where a processor has no bf16 arithmetic the peer emulates it, a hundred times slower: name `f32` alone there."""
TOLERANCE = {"f32": 1e-4, "bf16": 0.1}


def chosen_dtypes() -> dict[str, torch.dtype]:
    """Those named on the command line; all where none is."""
    return {k: v for k, v in DTYPES.items() if k in sys.argv} or DTYPES


def contestants(name: str, dtype: torch.dtype) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The same weights in both libraries, channels-last; ours with its steps made one, too."""
    ours, theirs = twins(name)
    for model in (ours, theirs):
        model.to(dtype=dtype, memory_format=torch.channels_last)
    return {"plain": ours, "fused": fused(ours) or ours, "timm": theirs}


def assert_alike(models: dict[str, Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor, bound: float) -> float:
    """The largest difference to timm's answer, as a share of its largest value."""
    wanted = models["timm"](x).float()
    error = max(float((run(x).float() - wanted).abs().max() / wanted.abs().max()) for run in models.values())
    assert error < bound, f"answers differ by {error:.1e}"
    return error


def main() -> None:
    """Run, print, keep."""
    torch.manual_seed(0)
    rounds = 3 if "--quick" in sys.argv else 9
    lines, ratios = list[str](), dict[str, dict[str, float]]()
    for name, (label, dtype) in itertools.product(MODELS, chosen_dtypes().items()):
        models = contestants(name, dtype)
        size = models["timm"].default_cfg["input_size"][-1]  # type: ignore[attr-defined]
        for batch in (1, 8):
            x = torch.randn(batch, 3, size, size).to(dtype=dtype, memory_format=torch.channels_last)
            with torch.inference_mode():
                error = assert_alike(models, x, TOLERANCE[label])
                fewer = rounds if label == "f32" or batch == 1 else max(3, rounds // 3)
                times = interleave({k: lambda m=m: m(x) for k, m in models.items()}, rounds=fewer)  # noqa: B023
            t = {k: median(taken) for k, taken in times.items()}
            case = {k: t[k] / t["timm"] for k in ("plain", "fused")}
            ratios[f"{name} {label} batch {batch}"] = case
            shown = "  ".join(f"{k} {v * 1e3:7.1f} ms" for k, v in t.items())
            lines.append(
                f"{name:<32} {label:<4} batch {batch}  {shown}  plain/timm {case['plain']:.2f}"
                f"  fused/timm {case['fused']:.2f}  (answers within {error:.0e})"
            )
            print(lines[-1], flush=True)
    worst = max(ratios, key=lambda k: ratios[k]["plain"])
    mean = geometric_mean([case["fused"] for case in ratios.values()])
    bar = 0.85 if "avx512_f" in machine.flags() else 0.888
    lines.append(f"plain/timm: slowest {worst}: {ratios[worst]['plain']:.2f} (bar 1.02)")
    lines.append(f"fused/timm: geometric mean {mean:.3f} (bar {bar})")
    keep("eager-" + "-".join(chosen_dtypes()), lines, {"ratios": ratios, "fused_geometric_mean": mean})


if __name__ == "__main__":
    main()
