"""Plain eager inference, ours against timm's, same weights, one run.

    python benchmarks/eager.py [--quick] [f32] [bf16]

Bars: no case slower than 1.02 of timm's latency; geometric mean <= 0.85. Before timing, both must answer alike.
"""

import itertools
import sys

import torch
from common import geometric_mean, interleave, keep, median, twins

MODELS = ("dla34", "dla102", "dpn92", "cspdarknet53", "deit_base_distilled_patch16_224")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
"""Where a processor has no bf16 arithmetic the peer emulates it, a hundred times slower: name `f32` alone there."""
TOLERANCE = {"f32": 1e-4, "bf16": 0.1}


def chosen_dtypes() -> dict[str, torch.dtype]:
    """Those named on the command line; all where none is."""
    return {k: v for k, v in DTYPES.items() if k in sys.argv} or DTYPES


def pair(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same weights in both libraries, channels-last."""
    ours, theirs = twins(name)
    for model in (ours, theirs):
        model.to(dtype=dtype, memory_format=torch.channels_last)
    return ours, theirs


def main() -> None:
    """Run, print, keep."""
    torch.manual_seed(0)
    rounds = 3 if "--quick" in sys.argv else 9
    lines, ratios = list[str](), dict[str, float]()
    for name, (label, dtype) in itertools.product(MODELS, chosen_dtypes().items()):
        ours, theirs = pair(name, dtype)
        size = theirs.default_cfg["input_size"][-1]
        for batch in (1, 8):
            x = torch.randn(batch, 3, size, size).to(dtype=dtype, memory_format=torch.channels_last)
            with torch.inference_mode():
                a, b = ours(x).float(), theirs(x).float()
                error = ((a - b).abs().max() / b.abs().max()).item()
                assert error < TOLERANCE[label], f"{name} {label}: answers differ by {error:.1e}"
                fewer = rounds if label == "f32" or batch == 1 else max(3, rounds // 3)
                times = interleave({"ours": lambda: ours(x), "timm": lambda: theirs(x)}, rounds=fewer)  # noqa: B023
            mine, peer = median(times["ours"]), median(times["timm"])
            ratios[f"{name} {label} batch {batch}"] = mine / peer
            lines.append(
                f"{name:<34} {label:<5} batch {batch}  ours {mine * 1e3:8.1f} ms  timm {peer * 1e3:8.1f} ms"
                f"  ratio {mine / peer:.2f}  (answers within {error:.0e})"
            )
            print(lines[-1], flush=True)
    worst = max(ratios, key=lambda k: ratios[k])
    mean = geometric_mean(list(ratios.values()))
    lines.append(f"geometric mean {mean:.3f} (bar 0.85); slowest {worst}: {ratios[worst]:.2f} (bar 1.02)")
    keep("eager-" + "-".join(chosen_dtypes()), lines, {"ratios": ratios, "geometric_mean": mean})


if __name__ == "__main__":
    main()
