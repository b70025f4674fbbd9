"""Who takes part in a benchmark, and how each is built: vertebra on a backend, or a peer's model of the same kind."""

import importlib
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vertebra.engine.limits import synchronize
from vertebra.engine.measure import Size, default_size
from vertebra.hub.factory import create_model
from vertebra.hub.resolve import find, is_name
from vertebra.models.backbone import Backbone
from vertebra.runtime.backend import DTYPES
from vertebra.runtime.eager import fused
from vertebra.runtime.optimize import optimize
from vertebra.runtime.verify import made_up_images
from vertebra.spec import VertebraError

PEERS = ("timm", "torchvision")
TORCHVISION = {
    "regnetx_004": "regnet_x_400mf",
    "regnetx_008": "regnet_x_800mf",
    "regnetx_016": "regnet_x_1_6gf",
    "regnetx_032": "regnet_x_3_2gf",
    "regnetx_080": "regnet_x_8gf",
    "regnetx_160": "regnet_x_16gf",
    "regnetx_320": "regnet_x_32gf",
    "regnety_004": "regnet_y_400mf",
    "regnety_016": "regnet_y_1_6gf",
    "regnety_032": "regnet_y_3_2gf",
    "regnety_160": "regnet_y_16gf",
    "regnety_320": "regnet_y_32gf",
    "vit_base_patch16_224": "vit_b_16",
}
"""Our name -> torchvision's, of the same architecture."""
CALIBRATION = 8
"""Made-up images that int8 is calibrated on: enough for speed, which is all that is measured here."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to run one model. `library`: vertebra, timm or torchvision; peers run eagerly."""

    library: str
    model: str
    backend: str
    dtype: str
    """f32, bf16 or int8; never auto: nobody knows then what was measured."""
    train: bool
    device: str
    img_size: int | None = None
    """Pixels a side; None: the model's own."""

    def __str__(self) -> str:
        return f"{self.library} {self.backend} {self.dtype}"


def build(who: Contestant) -> tuple[Callable[[Tensor], object], str, str]:
    """A call on a batch of float32 images, and the backend and type that it really uses.

    Weights are random: they do not change how long anything takes. Raises `VertebraError` where it cannot be run.
    """
    if who.train:
        return _training(_plain(who), who), "eager", who.dtype
    if who.library == "vertebra" and who.backend != "eager":
        model: Backbone = _plain(who).eval()
        sample = None
        if who.dtype == "int8":
            sample = made_up_images(CALIBRATION, model.in_chans, *default_size(model)[-2:])
        fast = optimize(model, who.backend, who.dtype, who.device, sample=sample)
        return _inference(fast), fast.report.backend, fast.report.dtype
    if who.dtype == "int8":
        raise VertebraError(f"{who.library} has no int8 in eager mode")
    model = _plain(who).eval().to(dtype=DTYPES[who.dtype], memory_format=torch.channels_last)
    steps = fused(model) if who.library == "vertebra" else None  # as `optimize` and `Predictor` run it
    return _inference(steps or model, DTYPES[who.dtype]), "eager", who.dtype


def input_size(who: Contestant) -> Size:
    """(channels, height, width) that all who run this model are given."""
    channels, height, width = default_size(on_meta(who))
    return (channels, height, width) if who.img_size is None else (channels, who.img_size, who.img_size)


def on_meta(who: Contestant) -> Backbone:
    """The model without its weights."""
    name, options = _named(who)
    cfg = {} if is_name(who.model) else {"input_size": find(who.model).cfg.input_size}
    return create_model(name, device="meta", pretrained_cfg_overlay=cfg, **options)


def _named(who: Contestant) -> tuple[str, dict[str, Any]]:
    """An architecture that every library knows, and the options that make it the one meant."""
    name, options = who.model, dict[str, Any]()
    if not is_name(who.model):
        found = find(who.model)
        name, options = found.arch, {**found.options, "num_classes": found.cfg.num_classes or 0}
    if who.img_size and not create_model(name, device="meta").spatial:
        options["img_size"] = who.img_size
    return name, options


def _plain(who: Contestant) -> Any:
    given, options = _named(who)
    torch.manual_seed(0)
    if who.library == "vertebra":
        return create_model(given, **options).to(who.device)
    if who.library == "timm":
        return _peer("timm").create_model(given, **options).to(who.device)
    name = TORCHVISION.get(given.partition(".")[0])
    if name is None or options.keys() - {"num_classes"}:
        raise VertebraError(f"torchvision has no {who.model}{' at this size' if name else ''}")
    return getattr(_peer("torchvision.models"), name)(**options).to(who.device)


def _peer(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise VertebraError(f"--against {module.partition('.')[0]} needs it installed: pip install {module}") from error


def _inference(model: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Callable[[Tensor], object]:
    """`dtype` None: an optimised model, which is handed plain images and lays them out itself."""

    def call(images: Tensor) -> object:
        with torch.inference_mode():
            return model(images if dtype is None else images.to(dtype=dtype, memory_format=torch.channels_last))

    return call


def _training(model: nn.Module, who: Contestant) -> Callable[[Tensor], object]:
    """Forward, cross-entropy, backward, SGD with momentum; bf16 by autocast, as training does it."""
    if who.dtype not in ("f32", "bf16") or who.backend != "eager":
        raise VertebraError(f"a training step runs eagerly in f32 or bf16, not with {who.backend} in {who.dtype}")
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    kind = torch.device(who.device).type

    def call(images: Tensor) -> object:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind, torch.bfloat16, enabled=who.dtype == "bf16"):
            logits = model(images.contiguous(memory_format=torch.channels_last))
            if isinstance(logits, tuple):  # a distilled DeiT's two heads
                logits = torch.stack(logits).mean(0)
            loss = nn.functional.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long, device=who.device))
        loss.backward()
        optimizer.step()
        return loss

    return call


def peak_memory(who: Contestant, batch: int) -> int | None:
    """Bytes at most: of the GPU's memory, or of a process that does nothing else (all of it, torch included).

    None where memory did not suffice for a second one: what was timed already shall not be lost to that.
    """
    try:
        if torch.device(who.device).type == "cuda":
            return _one_call(who, batch)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_one_call, who, batch).result()
    except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError):  # killed by the system, or told no
        return None


def _one_call(who: Contestant, batch: int) -> int:
    device, before = torch.device(who.device), 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    images = torch.randn(batch, *input_size(who), device=device)
    call = build(who)[0]
    for _ in range(2):
        call(images)
    if device.type == "cuda":
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _resident()


def _resident() -> int:
    """The most that this process ever held. Linux counts what the parent held into a new process's `ru_maxrss`."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
