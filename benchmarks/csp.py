"""What a cross-stage-partial model costs beside its plain parent, ours and timm's in one run.

    python benchmarks/csp.py [f32] [bf16]

cspdarknet53 / darknet53 at 256 px, channels-last, plain eager, same weights. Bar: ours <= 0.95 in all four cases (the
ratio of their multiply-accumulates is 0.70).
"""

import torch
from common import interleave, keep, median
from eager import TOLERANCE, chosen_dtypes, pair


def main() -> None:
    """Run, print, keep."""
    torch.manual_seed(0)
    lines, figures = list[str](), dict[str, dict[str, float]]()
    for label, dtype in chosen_dtypes().items():
        csp, plain = pair("cspdarknet53", dtype), pair("darknet53", dtype)
        for batch in (1, 8):
            x = torch.randn(batch, 3, 256, 256).to(dtype=dtype, memory_format=torch.channels_last)
            calls = {"ours csp": csp[0], "ours plain": plain[0], "timm csp": csp[1], "timm plain": plain[1]}
            with torch.inference_mode():
                for ours, theirs in (csp, plain):
                    a, b = ours(x).float(), theirs(x).float()
                    assert (a - b).abs().max() < TOLERANCE[label] * b.abs().max()
                rounds = 9 if label == "f32" else 3
                times = interleave({k: lambda m=m: m(x) for k, m in calls.items()}, rounds=rounds)  # noqa: B023
            t = {k: median(v) for k, v in times.items()}
            ratios = {"ours": t["ours csp"] / t["ours plain"], "timm": t["timm csp"] / t["timm plain"]}
            figures[f"{label} batch {batch}"] = ratios
            shown = "  ".join(f"{k} {v * 1e3:.1f} ms" for k, v in t.items())
            lines.append(
                f"{label:<5} batch {batch}  csp/plain: ours {ratios['ours']:.2f}  timm {ratios['timm']:.2f}   ({shown})"
            )
            print(lines[-1], flush=True)
    worst = max(r["ours"] for r in figures.values())
    lines.append(f"ours at most {worst:.2f} (bar 0.95)")
    keep("csp-" + "-".join(chosen_dtypes()), lines, figures)


if __name__ == "__main__":
    main()
