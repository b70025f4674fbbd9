"""What this machine can do, asked when somebody wants to know and never at import."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from functools import lru_cache

import torch

_NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
PACKAGES = ("vertebra", "torch", "openvino", "nncf", "onnx", "onnxscript", "onnxruntime", "torchao")
"""Whose versions decide whether a kept artefact still counts."""


@lru_cache(maxsize=1)
def processor() -> dict[str, object]:
    """Name, architecture and instruction sets of the processor."""
    found = {key: value for key, value in torch.cpu.get_capabilities().items() if value}
    return {**found, "machine": platform.machine(), "system": platform.system()}


def flags() -> tuple[str, ...]:
    """The instruction sets that decide about speed here."""
    wanted = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx_vnni", "bf16", "i8mm")
    return tuple(flag for flag in wanted if processor().get(flag) is True)


def cores() -> int:
    """Of the processor, as many as this process may use; where torchrun started several here, its share of them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware; elsewhere it is emulated, slower than f32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and any(processor().get(flag) is True for flag in _NATIVE_BF16)


def versions() -> dict[str, str]:
    """Of `PACKAGES`, those that are installed."""
    found = dict[str, str]()
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:  # a source tree on the path: its code has no number
                found[name] = "unknown"
    return found


def missing(*packages: str) -> list[str]:
    """Those of `packages` that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def compiler() -> str | None:
    """The C++ compiler that inductor would call, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def fingerprint(device: torch.device) -> str:
    """12 characters that change with the processor, the device and the versions."""
    what: dict[str, object] = {"cpu": processor(), "versions": versions(), "device": device.type}
    if device.type == "cuda":
        what["gpu"] = [torch.cuda.get_device_name(device), torch.version.cuda]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
