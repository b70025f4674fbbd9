"""What a cross-stage-partial model costs beside its plain parent, ours and timm's in one run.

    python benchmarks/csp.py [f32] [bf16]

cspdarknet53 / darknet53 at 256 px, channels-last, eager: the plain models, and their steps made one (backend `eager`).
Same weights. Bar: the latter <= 0.95 in all four cases (the ratio of their multiply-accumulates is 0.70).
"""

import torch
from common import interleave, keep, median
from eager import TOLERANCE, assert_alike, chosen_dtypes, contestants


def main() -> None:
    """Run, print, keep."""
    torch.manual_seed(0)
    lines, figures = list[str](), dict[str, dict[str, float]]()
    for label, dtype in chosen_dtypes().items():
        csp, dark = contestants("cspdarknet53", dtype), contestants("darknet53", dtype)
        for batch in (1, 8):
            x = torch.randn(batch, 3, 256, 256).to(dtype=dtype, memory_format=torch.channels_last)
            calls = {f"{k} {which}": models[k] for which, models in (("csp", csp), ("dark", dark)) for k in models}
            with torch.inference_mode():
                for models in (csp, dark):
                    assert_alike(models, x, TOLERANCE[label])
                rounds = 9 if label == "f32" else 3
                times = interleave({k: lambda m=m: m(x) for k, m in calls.items()}, rounds=rounds)  # noqa: B023
            t = {k: median(v) for k, v in times.items()}
            ratios = {k: t[f"{k} csp"] / t[f"{k} dark"] for k in csp}
            figures[f"{label} batch {batch}"] = ratios
            shown = "  ".join(f"{k} {v * 1e3:.1f} ms" for k, v in t.items())
            named = "  ".join(f"{k} {v:.2f}" for k, v in ratios.items())
            lines.append(f"{label:<5} batch {batch}  csp/darknet: {named}   ({shown})")
            print(lines[-1], flush=True)
    worst = max(r["fused"] for r in figures.values())
    lines.append(f"fused at most {worst:.2f} (bar 0.95)")
    keep("csp-" + "-".join(chosen_dtypes()), lines, figures)


if __name__ == "__main__":
    main()
