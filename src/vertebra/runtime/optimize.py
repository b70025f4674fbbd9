"""`optimize`: a model -> the same answers, sooner.

b batch, c channels, h w height and width in pixels, k classes.
"""

# pyright: reportPrivateUsage=false

import copy
import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vertebra.data import labels_for, resolve_model_data_config
from vertebra.models.backbone import Backbone
from vertebra.runtime import cache, choose, machine
from vertebra.runtime.backend import Backend, BackendError, Job, Program
from vertebra.runtime.compare import Figures
from vertebra.runtime.eager import Eager
from vertebra.runtime.verify import VerificationError, answers, check, made_up_images
from vertebra.spec import VertebraError

SIZES = 4
"""Image sizes, beside the model's own, that a program is compared at or compiled for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """What `optimize` did."""

    backend: str
    dtype: str
    device: str
    figures: Figures
    """How near its answers lie to eager f32's."""
    seconds: float
    cached: bool
    """Whether the compiled artefact was there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The arguments of `optimize`, as they were given."""

    backend: str = "auto"
    dtype: str = "auto"
    device: str | None = None
    sample: Tensor | None = None
    batch: int | None = None
    calibrate: bool = False
    cache_dir: str | None = None


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

    `backend`: auto, eager, inductor, openvino, onnxruntime. 'auto' goes by device, installed packages and, where a
    `calibrate=True` timed the candidates before, by what it found on this machine. `dtype`: auto (bf16 where the
    hardware has it and the answers stay near enough, else f32), f32, bf16, int8. `device` None: where the model lies.
    `sample`: images as the model takes them (normalised), to compare the answers on; int8 is calibrated with them and
    cannot do without. Where another size is compiled for, they are resized to it. `batch`: the number of images that
    comes most; OpenVINO gives it a program of its own beside the one for any number, faster (bf16 2%, int8 up to twice)
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
    maker = _Maker(ready, Recipe(dtype=dtype, cache_dir=None if cache_dir is None else str(cache_dir)))
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
        self._maker = _Maker(_ready(model, device), recipe)
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
                self._maker.verify(self._program, self._maker.expected(x), x, name)
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


class _Maker:
    """Holds the eager f32 model, and makes programs from it."""

    def __init__(self, model: Backbone, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        self.device = next(model.parameters()).device
        self.dtype = choose.pick_dtype(recipe.dtype, self.device, recipe.backend)
        height, width = cast("tuple[int, int, int]", resolve_model_data_config(model)["input_size"])[-2:]
        self.native = (height, width)
        self.cache = cache.root(recipe.cache_dir)
        self._hash = ""
        if self.dtype == "int8" and recipe.sample is None and self.device.type == "cpu":
            raise VertebraError(
                "int8 is calibrated with sample images; give sample= (b, c, h, w), normalised, best 100+"
            )
        if recipe.sample is not None and (recipe.sample.ndim != 4 or not len(recipe.sample)):
            raise VertebraError(f"sample of shape {tuple(recipe.sample.shape)}: give images (b, c, h, w), at least one")
        if recipe.batch is not None and recipe.batch < 1:
            raise VertebraError(f"batch={recipe.batch}: give the number of images that comes most often, from 1 on")
        if self._may_yield() and self.backend().kept and choose.remembered(self.cache, self._artefact()):
            self.dtype = "f32"
        self._eager_program = Eager().load(replace(self.job(self.native), dtype="f32"), self.cache)

    def eager(self, x: Tensor) -> Tensor:
        return self._eager_program(x)

    def job(self, size: tuple[int, int]) -> Job:
        return Job(
            model=self.model,
            dtype=self.dtype,
            device=self.device,
            example=torch.zeros(2, self.model.in_chans, *size),
            any_size=self.model.spatial,
            transformer=not self.model.spatial,
            sample=self._sample(size),
            threads=torch.get_num_threads(),
            batch=self.recipe.batch,
        )

    def _sample(self, size: tuple[int, int]) -> Tensor | None:
        """The sample at (height, width), where one was given: float32, on the CPU."""
        if self.recipe.sample is None:
            return None
        sample = self.recipe.sample.detach().to("cpu", torch.float32)
        fits = (sample.shape[2], sample.shape[3]) == size
        return sample if fits else interpolate(sample, size, mode="bilinear", antialias=True)

    def entry(self, backend: Backend, job: Job) -> Path:
        """Where the artefact lies: by all that decides what is in it."""
        self._hash = self._hash or cache.weights_hash(self.model)
        sample = cache.tensor_hash(job.sample) if job.sample is not None and job.dtype == "int8" else ""
        name = cache.key(
            weights=self._hash,
            config=repr(self.model.config),
            classes=self.model.num_classes,
            backend=backend.name,
            dtype=job.dtype,
            size=tuple(job.example.shape),
            sample=sample,
            threads=job.threads,
            batch=job.batch,
            machine=machine.fingerprint(job.device),
        )
        return cache.compiled(self.cache) / name

    def choice_key(self) -> str:
        arch = self.model.pretrained_cfg.get("architecture", type(self.model).__name__)
        return f"{arch} {self.dtype} {torch.get_num_threads()} threads {machine.fingerprint(self.device)}"

    def backend(self) -> Backend:
        remembered = choose.remembered(self.cache, self.choice_key())
        return choose.pick_backend(self.recipe.backend, self.dtype, self.device, remembered)

    def make(self, size: tuple[int, int] | None = None) -> tuple[Program, Report]:
        """A program for images of `size` (default: the model's own), compared with eager f32."""
        if self.recipe.calibrate and self.recipe.backend == "auto" and size is None:
            self._calibrate()
        try:
            return self._make(self.backend(), size or self.native)
        except VerificationError as error:
            if not self._may_yield() or size is not None:
                raise
            _log.warning("float32 is taken: %s", error)
            if self.backend().kept:  # else it would be compiled each time to be refused
                with suppress(OSError):
                    choose.remember(self.cache, self._artefact(), "f32")
            self.dtype = "f32"
            return self._make(self.backend(), self.native)

    def _may_yield(self) -> bool:
        """Whether the type of number is nobody's wish but ours."""
        return self.recipe.dtype == "auto" and self.dtype != "f32"

    def _artefact(self) -> str:
        """What the cache calls the model's own size."""
        return self.entry(self.backend(), self.job(self.native)).name

    def _calibrate(self) -> None:
        """Time all candidates, unless an earlier process did. Those that fail their check do not take part."""
        if choose.remembered(self.cache, self.choice_key()):
            return
        programs = dict[str, Program]()
        for backend in choose.candidates(self.dtype, self.device):
            try:
                programs[backend.name] = self._make(backend, self.native)[0]
            except (VerificationError, BackendError, RuntimeError):
                continue
        images = made_up_images(1, self.model.in_chans, *self.native).to(self.device)
        times = choose.fastest(programs, images)
        if times:
            choose.remember(self.cache, self.choice_key(), min(times, key=lambda name: times[name]))

    def _make(self, backend: Backend, size: tuple[int, int]) -> tuple[Program, Report]:
        start = time.perf_counter()
        job = self.job(size)
        images = made_up_images(4, self.model.in_chans, *size) if job.sample is None else job.sample
        images = images.to(self.device)
        entry = self.entry(backend, job) if backend.kept else self.cache
        cached = backend.kept and cache.whole(entry)
        found = self._from_cache(backend, job, entry, images) if cached else None
        if found is None:
            cached = False
            found = self._anew(backend, job, entry, images)
        program, figures = found
        report = Report(backend.name, job.dtype, str(self.device), figures, time.perf_counter() - start, cached)
        return program, report

    def _from_cache(self, backend: Backend, job: Job, entry: Path, images: Tensor) -> tuple[Program, Figures] | None:
        """What lies in the cache; None where it is damaged in any way, so that it is made anew."""
        images = images[:2]  # all were compared when it was made; two tell whether it is still what it was
        expected = self.expected(images)  # before the rest: what is wrong with the images is no damage
        try:
            program = backend.load(job, entry)
            figures = self.verify(program, expected, images, backend.name)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError, VerificationError):
            shutil.rmtree(entry, ignore_errors=True)
            return None
        cache.used(entry)
        return program, figures

    def _anew(self, backend: Backend, job: Job, entry: Path, images: Tensor) -> tuple[Program, Figures]:
        expected = self.expected(images)
        if not backend.kept:
            program = backend.load(job, entry)
            return program, self.verify(program, expected, images, backend.name)
        with cache.building(entry) as folder:
            backend.build(job, folder)
            program = backend.load(job, folder)
            figures = self.verify(program, expected, images, backend.name)
        return backend.load(job, entry), figures

    def expected(self, images: Tensor) -> Tensor:
        """Eager f32's answers."""
        return answers(self.eager, images)

    def verify(self, program: Program, expected: Tensor, images: Tensor, what: str) -> Figures:
        about: dict[str, Any] = {"dtype": self.dtype, "classes": self.model.num_classes > 1}
        if self.recipe.batch is not None:  # it may have a program of its own; filled up with the same images
            rows = torch.arange(self.recipe.batch) % len(images)
            check(expected[rows], program(images[rows]), what=f"{what} {self.dtype}, batch {len(rows)}", **about)
        return check(expected, answers(program, images), what=f"{what} {self.dtype}", **about)
