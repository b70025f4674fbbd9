"""`optimize`: a model -> the same answers, sooner.

b batch, c channels, h w height and width in pixels, k classes.
"""

import copy
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vertebra.data import labels_for
from vertebra.models.backbone import Backbone
from vertebra.runtime import cache
from vertebra.runtime.backend import BackendError
from vertebra.runtime.maker import Maker, Recipe, Report
from vertebra.runtime.verify import VerificationError
from vertebra.spec import VertebraError

SIZES = 4
"""Image sizes, beside the model's own, that a program is compared at or compiled for."""

_log = logging.getLogger(__name__)


def optimize(
    model: nn.Module,
    backend: str = "auto",
    dtype: str = "auto",
    device: torch.device | str | None = None,
    *,
    sample: Float[Tensor, "b c h w"] | None = None,
    batch: int | None = None,
    calibrate: bool = False,
    cache_dir: str | Path | None = None,
) -> "Optimized":
    """A callable with the model's signature and answers, for inference only.

    `backend`: auto, eager, inductor, cudagraphs, openvino, onnxruntime. 'auto' goes by device, model, what is installed
    and, where a `calibrate=True` timed the candidates before, by what it found on this machine. `dtype`: auto (bf16
    where the hardware has it and the answers stay near enough, else f32), f32, bf16, int8. `device` None: where the
    model lies.
    `sample`: images as the model takes them (normalised), to compare the answers on; int8 is calibrated with them and
    cannot do without. Where another size is compiled for, they are resized to it. `batch`: the number of images that
    comes most; OpenVINO gives it a program of its own beside the one for any number, faster (bf16 4%, int8 up to twice)
    and as large again in memory. Compiled artefacts are kept under `cache_dir`, by default $VERTEBRA_CACHE or the
    user's cache.

    The model is put into eval mode, and its weights must not change afterwards: optimise anew when they have.
    Raises `BackendError` where it cannot be done here, `VerificationError` where the answers would differ too much.
    """
    if not isinstance(model, Backbone):
        raise VertebraError(f"optimize takes a vertebra model that answers logits, not a {type(model).__name__}")
    recipe = Recipe(
        backend=backend,
        dtype=dtype,
        device=None if device is None else str(device),
        sample=sample,
        batch=batch,
        calibrate=calibrate,
        cache_dir=None if cache_dir is None else str(cache_dir),
    )
    return Optimized(model, recipe)


def is_cached(model: Backbone, *, dtype: str = "auto", cache_dir: str | Path | None = None) -> bool:
    """Whether `optimize(model, dtype=dtype)` would find its artefact compiled already; compiles nothing."""
    ready = _ready(model, next(model.parameters()).device)
    maker = Maker(ready, Recipe(dtype=dtype, cache_dir=None if cache_dir is None else str(cache_dir)))
    backend = maker.backend()
    return not backend.kept or cache.whole(maker.entry(backend, maker.job(maker.native)))


class Optimized(nn.Module):
    """A model made fast. Takes any batch and every image size that the model takes; safe from several threads.

    Pickled as its recipe: loading it optimises anew, for the machine it is loaded on.
    """

    report: Report

    def __init__(self, model: Backbone, recipe: Recipe) -> None:
        super().__init__()
        device = next(model.parameters()).device if recipe.device is None else torch.device(recipe.device)
        if device.type == "meta":
            raise VertebraError("this model has no weights yet (device='meta'); create it on a real device")
        self._maker = Maker(_ready(model, device), recipe)
        self._given = (model,)  # in a tuple: not a submodule, whose parameters would be trained, moved and saved
        self.pretrained_cfg: dict[str, Any] = model.pretrained_cfg
        self.default_cfg: dict[str, Any] = model.default_cfg
        self.num_classes, self.in_chans, self.num_features = model.num_classes, model.in_chans, model.num_features
        self.device = device
        self._sizes = threading.Lock()
        self._met, self._making = set[tuple[int, int]](), set[tuple[int, int]]()
        super().train(False)
        self._program, self.report = self._maker.make()
        self._checked = {self._maker.native}
        self._others: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {}

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes, where they have any."""
        return labels_for(self.num_classes, self.pretrained_cfg) or None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """(b, c, h, w) image, normalised as the checkpoint asks -> (b, k) logits, float32."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise VertebraError(
                f"an image batch of shape {tuple(x.shape)}: this model takes (b, {self.in_chans}, h, w)"
            )
        if x.device.type != self.device.type:
            raise VertebraError(
                f"images on {x.device.type}: this model was optimised for {self.device}; move them there"
            )
        x = x.detach().float()
        if not len(x):
            return self._maker.eager(x)
        size = (x.shape[2], x.shape[3])
        if size in self._checked:
            return self._program(x)
        return self._for(size, x)(x)

    def _for(self, size: tuple[int, int], x: Tensor) -> Callable[[Tensor], Tensor]:
        """What runs an image size other than the model's own.

        A program that takes all sizes is compared with eager mode at the first `SIZES`, and answers the rest as it is.
        Where each size needs its own program, one is compiled when a size comes a second time; beyond `SIZES` of them
        eager mode answers. It does, too, where that fails, and for other threads until it is done; there, an unfit size
        meets the model's own error. Where the answers differ too much, that is the error each time.
        """
        if size in self._others:
            return self._others[size]
        with self._sizes:
            if size in self._checked:
                return self._program
            taken = len(self._checked) + len(self._others) + len(self._making)
            if size in self._others or size in self._making:
                return self._others.get(size, self._maker.eager)
            if taken > SIZES:
                return self._uncompared if self._program.any_size else self._maker.eager
            if not self._program.any_size and size not in self._met:
                self._met.add(size)
                return self._maker.eager
            self._making.add(size)
        try:
            self._maker.eager(x[:1])  # an unfit size is no reason to compile
            return self._make_for(size, x[:1])
        finally:
            with self._sizes:
                self._making.discard(size)

    def _uncompared(self, x: Tensor) -> Tensor:
        """The program at one size more than it was compared at."""
        try:
            return self._program(x)
        except RuntimeError:
            return self._maker.eager(x)  # says what is wrong with the size, if something is

    def _make_for(self, size: tuple[int, int], x: Tensor) -> Callable[[Tensor], Tensor]:
        name = f"{self.report.backend} at {size[0]}x{size[1]} pixels"
        try:
            if self._program.any_size:
                self._maker.verify(self._program, self._maker.expected(x), x, name, again=True)
                self._checked.add(size)
                return self._program
            with torch.inference_mode(False):  # the caller's mode; nothing can be traced in it
                self._others[size] = self._maker.make(size)[0]
        except VerificationError as error:
            self._others[size] = _refusal(error)  # compiled anew, it would answer the same
            raise
        except (BackendError, RuntimeError) as error:
            _log.warning("%s: eager mode answers there: %s", name, error)
            self._others[size] = self._maker.eager
        return self._others[size]

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise VertebraError("an optimised model only answers; train the model it was made from, then optimise anew")
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if fn(torch.empty(0, device=self.device)).device.type != self.device.type:
            raise VertebraError(f"this model was optimised for {self.device}; use optimize(model, device=...)")
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Optimized":
        return self  # nothing in it ever changes

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Optimized, (self._given[0], self._maker.recipe)

    def extra_repr(self) -> str:
        r = self.report
        return f"{self.pretrained_cfg.get('architecture', '')}, {r.backend}, {r.dtype}, {r.device}; {r.figures}"


def _ready(model: Backbone, device: torch.device) -> Backbone:
    """In eval mode, float32, on `device`: the model itself where it is that already, else a copy."""
    model.eval()
    first = next(model.parameters())
    if first.dtype == torch.float32 and first.device == torch.empty(0, device=device).device:
        return model
    return copy.deepcopy(model).to(device=device, dtype=torch.float32)


def _refusal(error: VerificationError) -> Callable[[Tensor], Tensor]:
    def refuse(_: Tensor) -> Tensor:
        raise error.with_traceback(None)  # else it would grow with each time

    return refuse
