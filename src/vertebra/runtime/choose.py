"""Which backend and type, where nobody says: by device, packages and processor, or by measurement, kept per machine."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from torch import Tensor

from vertebra.models.dla import Dla
from vertebra.runtime import cache, machine
from vertebra.runtime.backend import DTYPES, Backend, BackendError
from vertebra.runtime.cudagraphs import CudaGraphs
from vertebra.runtime.eager import Eager
from vertebra.runtime.inductor import Inductor
from vertebra.runtime.onnxruntime import OnnxRuntime
from vertebra.runtime.openvino import OpenVino
from vertebra.spec import unknown_name
from vertebra.spec.cache import NOWHERE, note, notes, root

BACKENDS: dict[str, Backend] = {b.name: b for b in (Eager(), Inductor(), CudaGraphs(), OpenVino(), OnnxRuntime())}
_ORDER = {
    # Inductor's minutes of compiling on a CPU are for those who ask for them, or for a calibration.
    "cpu": ("openvino", "onnxruntime", "eager"),
    "cuda": ("inductor", "cudagraphs", "eager"),
    "cuda, fused": ("cudagraphs", "inductor", "eager"),
}
FUSED = (Dla,)
"""Models of convolutions that take their normalisation and ReLU with them, and of nothing else: measured, a compiler
has nothing to add to them on a GPU."""
_CHOICES = "choices.json"


def pick_dtype(dtype: str, device: torch.device, backend: str = "auto") -> str:
    """'auto': bf16 where the hardware has it and the named backend runs it, else f32."""
    if dtype != "auto":
        known(dtype, DTYPES, "dtype")
        return dtype
    refused = backend in BACKENDS and BACKENDS[backend].refusal(device, "bf16")
    return "bf16" if machine.native_bf16(device) and not refused else "f32"


def known(name: str, allowed: Mapping[str, object], what: str) -> None:
    """Raise `UnknownNameError` where `name` is neither 'auto' nor among `allowed`."""
    if name != "auto" and name not in allowed:
        raise unknown_name(what, name, ("auto", *allowed))


def pick_backend(
    backend: str, dtype: str, device: torch.device, remembered: str | None, *, fused: bool = False
) -> Backend:
    """`fused`: of a model in `FUSED`. Raises `BackendError` where the named backend, or every one, refuses."""
    known(backend, BACKENDS, "backend")
    if backend != "auto":
        if reason := BACKENDS[backend].refusal(device, dtype):
            raise BackendError(f"backend {backend!r} with dtype {dtype!r}: {reason}")
        return BACKENDS[backend]
    kind = "cuda, fused" if fused and device.type == "cuda" else device.type
    order = _ORDER.get(kind, ("eager",))
    names = (remembered, *order) if remembered in BACKENDS else order
    reasons = dict[str, str]()
    for name in names:
        assert name is not None  # tells the type checker what `in BACKENDS` said
        reasons[name] = BACKENDS[name].refusal(device, dtype)
        if not reasons[name]:
            return BACKENDS[name]
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise BackendError(f"nothing here runs {dtype} on {device.type}: {listed}")


def candidates(dtype: str, device: torch.device) -> list[Backend]:
    """All that can be timed against each other here."""
    return [b for b in BACKENDS.values() if not b.refusal(device, dtype)]


def describe() -> dict[str, Any]:
    """What `vertebra info --runtime` says: the machine, each backend's types or what keeps it away, and a hint."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = pick_dtype("auto", device)
    rows = dict[str, dict[str, str]]()
    for backend in BACKENDS.values():
        refusals = {d: backend.refusal(device, d) for d in DTYPES}
        able = [d for d, reason in refusals.items() if not reason]
        rows[backend.name] = {"runs": " ".join(able)} if able else {"not here": refusals["f32"]}
    choice = dict.fromkeys(pick_backend("auto", dtype, device, None, fused=fused).name for fused in (True, False))
    absent = machine.missing("openvino", "nncf", "onnx", "onnxruntime", "onnxscript")
    folder = root()
    return {
        "processor": str(machine.processor().get("cpu_name", "unknown")),
        "instructions": list(machine.flags()),
        "device": device.type,
        "automatic choice": f"{' or '.join(choice)}, {dtype}",
        "cache": "none: there is no home folder, and VERTEBRA_CACHE names no other"
        if folder == NOWHERE
        else f"{folder} ({cache.size(folder) / 1e6:.0f} MB)",
        "to gain": f"pip install 'vertebra[fast]' brings {', '.join(absent)}: 1.5 to 3 times eager mode's speed on CPUs"
        if absent
        else "",
        "backends": rows,
    }


def fastest(programs: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor, rounds: int = 5) -> dict[str, float]:
    """Geometric mean over batches of 1 and 8 of the median seconds an image, the programs in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for batch in (1, 8):
        x = images[:1].expand(batch, *images.shape[1:]).contiguous()
        times: dict[str, list[float]] = {name: [] for name in programs}
        for number in range(rounds + 1):
            for name, program in programs.items():
                start = time.perf_counter()
                program(x).sum().item()  # a GPU answers at once and computes later
                if number:
                    times[name].append((time.perf_counter() - start) / batch)
        for name, taken in times.items():
            seconds[name].append(median(taken))
    return {name: geometric_mean(each) for name, each in seconds.items()}


def remembered(folder: Path, key: str) -> str | None:
    """What was found for this key on this machine: the fastest backend, or the type of number to take instead."""
    found = notes(folder / _CHOICES).get(key)
    return found if isinstance(found, str) else None


def remember(folder: Path, key: str, choice: str) -> None:
    """Keep such a finding, where anything can be kept."""
    note(folder / _CHOICES, **{key: choice})
