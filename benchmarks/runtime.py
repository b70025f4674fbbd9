"""Optimised models beside timm's, eager and compiled by the user; from a folder to answers; the second start.

    python benchmarks/runtime.py [--quick] [--models dla34,deit_tiny] [--parts speed,csp,int8,folder,start]
                                 [--device cuda] [--no-compile]

Same random weights on both sides, with their statistics of photos, which are what they are asked, too; contestants in
turn, medians. Bars (2 cores): against timm eager f32, geometric mean: f32 >= 1.9x, default >= 3.8x where the processor
has bf16, int8 >= 5.5x; against the best of {timm + torch.compile frozen, timm -> OpenVINO, timm -> ONNX Runtime} at the
same type >= 1.0x; share of the matrix-product peak at batch 8, default type, >= 70 % for dla34, dla102, cspdarknet53;
cspdarknet53 / darknet53 <= 0.76; folder >= 3x; second start <= 2 s beyond eager. GPU: >= 2x eager, >= 1.15x
torch.compile (bf16). `--no-compile` leaves out torch.compile, whose compilations take minutes.
`benchmarks/runtime_folder.py` holds the two parts that start processes.
"""

import argparse
import copy
import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, geometric_mean, interleave, keep, median, twins
from runtime_folder import folder, second_start

import vertebra
from vertebra.data import create_transform, decode, resolve_model_data_config
from vertebra.engine.limits import measure_limits
from vertebra.engine.measure import measure
from vertebra.runtime import machine
from vertebra.runtime.choose import pick_dtype

MODELS = {
    "dla34": "dla34",
    "dla46x_c": "dla46x_c",
    "dla102": "dla102",
    "cspdarknet53": "cspdarknet53",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_base_distilled": "deit_base_distilled_patch16_224",
    "dpn92": "dpn92",
}
NEAR_PEAK = ("dla34", "dla102", "cspdarknet53")
Call = Callable[[torch.Tensor], Any]


def photos(name: str, step: int) -> torch.Tensor:
    """Every `step`-th of the photos, (b, 3, h, w) as the model takes them."""
    data = resolve_model_data_config(vertebra.create_model(name, device="meta"))
    transform = create_transform(**data, is_training=False)
    return torch.stack([transform(decode(path)) for path in sorted((SHARED / "photos").glob("*.JPEG"))[::step]])


def trio(name: str, device: str) -> tuple[Any, Any, torch.Tensor]:
    """Ours and timm's on `device`, and the photos that they have their statistics of."""
    sample = photos(name, 3)
    ours, theirs = twins(name, sample)
    return ours.to(device), theirs.to(device), sample.to(device)


def compiled_peer(theirs: Any, dtype: str, device: str) -> Call:
    """Timm + torch.compile: frozen on a CPU, with CUDA graphs on a GPU. Channels-last, one shape a compilation.

    Not max-autotune: on an H100 it takes 10 to 20 seconds for each convolution, once.
    """
    torch.compiler.reset()  # else the eighth model counts as one too many recompilations, and runs eagerly
    number = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = copy.deepcopy(theirs).to(number).to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"options": {"freezing": True}} if device == "cpu" else {"mode": "reduce-overhead"}
    run = torch.compile(model, dynamic=False, **options)
    return lambda x: run(x.to(number, memory_format=torch.channels_last))


def openvino_peer(theirs: Any, dtype: str, x: torch.Tensor) -> Call:
    """Timm -> OpenVINO as its manual says, compiled for this very shape."""
    import openvino as ov

    model = ov.convert_model(theirs, example_input=x, input=[x.shape])
    hints = {"INFERENCE_PRECISION_HINT": dtype, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(model, "CPU", {**hints, "INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda x: compiled([x.numpy()])[0]


def onnx_peer(theirs: Any, x: torch.Tensor, folder: Path) -> Call:
    """Timm -> ONNX (dynamo exporter, this shape) -> ONNX Runtime."""
    import onnxruntime as ort

    path = folder / "peer.onnx"
    torch.onnx.export(theirs, (x,), str(path), dynamo=True, input_names=["x"], verbose=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]


def peers(theirs: Any, dtype: str, device: str, x: torch.Tensor, options: argparse.Namespace) -> dict[str, Call]:
    """The user's own ways to make timm's model fast, at this type."""
    found: dict[str, Call] = {}
    if device == "cuda":
        half = copy.deepcopy(theirs).to(torch.bfloat16).to(memory_format=torch.channels_last)
        found["timm eager bf16"] = lambda x: half(x.to(torch.bfloat16, memory_format=torch.channels_last))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as temporary, torch.no_grad():  # as it is timed
        warnings.simplefilter("ignore")
        if not options.no_compile:
            found["timm compile"] = compiled_peer(theirs, dtype, device)
            found["timm compile"](x)
        if device == "cpu":
            found["timm openvino"] = openvino_peer(theirs, dtype, x)
        if device == "cpu" and dtype == "f32":
            found["timm onnxruntime"] = onnx_peer(theirs, x, Path(temporary))
    return found


def timed(calls: dict[str, Call], x: torch.Tensor, quick: bool) -> dict[str, float]:
    """Median seconds of each on `x`, in turn."""

    def once(call: Call) -> None:
        call(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        bound = {name: functools.partial(once, call) for name, call in calls.items()}
        times = interleave(bound, rounds=5 if quick else 15, warmup=2, settle=True)
        return {name: median(t) for name, t in times.items()}


def speed(options: argparse.Namespace, lines: list[str], figures: dict[str, Any]) -> None:
    """Every model, type and batch."""
    default = pick_dtype("auto", torch.device(options.device))
    on_cpu = options.device == "cpu"
    for dtype in dict.fromkeys(("f32", default)) if on_cpu else (default,):
        peak = measure_limits(torch.device(options.device), (dtype,)).flops[dtype] / 1e9
        lines.append(f"-- {dtype}, matrix products reach {peak:.0f} GFLOP/s")
        cases = {}
        for label in options.models:
            cases |= one_model(label, dtype, peak, options, lines)
        eager = geometric_mean([case["eager"] for case in cases.values()])
        best = geometric_mean([case["best"] for case in cases.values() if "best" in case] or [float("nan")])
        figures[dtype] = {"against_eager": eager, "against_best_peer": best, "cases": cases}
        if not on_cpu:
            figures[dtype]["against_eager_bf16"] = geometric_mean([case["eager bf16"] for case in cases.values()])
            lines.append(f"{dtype}: geometric mean {figures[dtype]['against_eager_bf16']:.2f}x timm eager bf16")
        bars = ({"f32": 1.9, "bf16": 3.8}[dtype], 1.0) if on_cpu else (2.0, 1.15)
        lines.append(
            f"{dtype}: geometric mean {eager:.2f}x timm eager f32 (bar {bars[0]}x), {best:.2f}x the best peer"
            f" (bar {bars[1]}x)"
        )
    if on_cpu and default == "f32":
        lines.append(
            "this processor has no bf16 arithmetic: the default type is f32 here, and the bf16 bar stays untried"
        )


def one_model(
    label: str, dtype: str, peak: float, options: argparse.Namespace, lines: list[str]
) -> dict[str, dict[str, float]]:
    """A model's batches: how many times faster than timm's eager f32, than its best peer; share of the peak."""
    found = dict[str, dict[str, float]]()
    ours, theirs, sample = trio(MODELS[label], options.device)
    free, on_cpu = vertebra.optimize(ours, dtype=dtype), options.device == "cpu"
    for batch in (1, 8) if on_cpu else (1, 32, 256):
        # Its peers take this one batch alone; on a GPU each has a program anyhow.
        fast = vertebra.optimize(ours, dtype=dtype, batch=batch) if on_cpu else free
        x = sample[torch.arange(batch) % len(sample)]
        with torch.no_grad():
            near = torch.nn.functional.cosine_similarity(theirs(x), fast(x)).min().item()
        assert near > 0.999, f"{label}: cosine {near}"
        own: dict[str, Call] = {"ours": fast, **({"ours, any batch": free} if on_cpu else {})}
        t = timed({**own, "timm eager": theirs, **peers(theirs, dtype, options.device, x, options)}, x, options.quick)
        flops = 2 * measure(MODELS[label], None).macs * batch
        case = {"eager": t["timm eager"] / t["ours"], "share": flops / t["ours"] / 1e9 / peak}
        if others := [t[k] for k in t if k not in (*own, "timm eager")]:
            case |= {
                "best": min(others) / t["ours"],
                "best, any batch": min(others) / t.get("ours, any batch", t["ours"]),
            }
        if "timm eager bf16" in t:
            case["eager bf16"] = t["timm eager bf16"] / t["ours"]
        found[f"{label} batch {batch}"] = case
        bar = " (bar 70%)" if batch == 8 and label in NEAR_PEAK else ""
        shown = "  ".join(f"{k} {v * 1e3:.2f}" for k, v in t.items())
        lines.append(
            f"{label:<20} {dtype} batch {batch:<3} {fast.report.backend}: {case['eager']:.2f}x eager,"
            f" {case.get('best', float('nan')):.2f}x the best peer"
            f" ({case.get('best, any batch', float('nan')):.2f}x for any batch),"
            f" {case['share']:.0%} of peak{bar}   (ms: {shown})"
        )
        print(lines[-1], flush=True)
    return found


def csp(options: argparse.Namespace, lines: list[str], figures: dict[str, Any]) -> None:
    """cspdarknet53 / darknet53, both optimised."""
    both = {name: vertebra.optimize(trio(name, options.device)[0]) for name in ("cspdarknet53", "darknet53")}
    sample = photos("cspdarknet53", 16).to(options.device)
    for batch in (1, 8):
        t = timed(both, sample[:batch].contiguous(), options.quick)
        ratio = t["cspdarknet53"] / t["darknet53"]
        figures[f"csp batch {batch}"] = ratio
        lines.append(f"cspdarknet53 / darknet53, optimised, batch {batch}: {ratio:.2f} (bar 0.76)")
        print(lines[-1], flush=True)


def int8(options: argparse.Namespace, lines: list[str], figures: dict[str, Any]) -> None:
    """Speed against timm eager f32 (calibrated with photos), and agreement on DeiT-Tiny's real weights."""
    ratios = list[float]()
    for label in options.models:
        ours, theirs, sample = trio(MODELS[label], "cpu")
        for batch in (1, 8):
            fast = vertebra.optimize(ours, dtype="int8", sample=sample, batch=batch)
            x = sample[:batch].contiguous()
            t = timed({"ours": fast, "timm": theirs}, x, options.quick)
            ratios.append(t["timm"] / t["ours"])
            lines.append(
                f"{label:<20} int8 batch {batch}: {ratios[-1]:.2f}x timm eager f32"
                f"  ({t['ours'] * 1e3:.1f} against {t['timm'] * 1e3:.1f} ms; {fast.report.figures})"
            )
            print(lines[-1], flush=True)
    name = "deit_tiny_patch16_224"
    real = vertebra.load_model(name, weights=SHARED / "weights" / f"{name}.safetensors").eval()
    transform = create_transform(**resolve_model_data_config(real), is_training=False)
    with np.load(SHARED / "weights" / f"{name}_logits.npz") as stored:
        images = torch.stack([transform(decode(SHARED / "photos" / file)) for file in stored["files"].tolist()])
        reference = torch.tensor(stored["logits"]).argmax(1)
    fast = vertebra.optimize(real, dtype="int8", sample=images[::3])
    agreement = (torch.cat([fast(part) for part in images.split(16)]).argmax(1) == reference).double().mean().item()
    figures["int8"] = {"against_eager": geometric_mean(ratios), "agreement": agreement}
    lines.append(
        f"int8: geometric mean {geometric_mean(ratios):.2f}x timm eager f32 (bar 5.5x; instructions"
        f" {' '.join(machine.flags())}); DeiT-Tiny keeps {agreement:.1%} of {len(images)} first classes (bar 97%)"
    )


def main() -> None:
    """Run the parts asked for, print, keep."""
    parser = argparse.ArgumentParser(description="Optimised models beside timm's.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", type=lambda s: s.split(","), default=list(MODELS))
    parser.add_argument("--parts", type=lambda s: s.split(","), default=["speed", "csp", "int8", "folder", "start"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    lines, figures = list[str](), dict[str, Any]()
    parts = {"speed": speed, "csp": csp, "int8": int8, "folder": folder, "start": second_start}
    for name in options.parts:
        if options.device == "cpu" or name in ("speed", "csp"):
            parts[name](options, lines, figures)
    some = [] if options.parts == list(parts) else options.parts
    keep("-".join(["runtime", *(["gpu"] if options.device == "cuda" else []), *some]), lines, figures)


if __name__ == "__main__":
    main()
