"""What `optimize` was asked for, and the programs made for it: compiled or fetched from the cache, and compared."""

import logging
import shutil
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vertebra.data import resolve_model_data_config
from vertebra.models.backbone import Backbone
from vertebra.runtime import cache, choose, machine
from vertebra.runtime.backend import Backend, BackendError, Job, Program
from vertebra.runtime.compare import Figures
from vertebra.runtime.eager import EagerProgram
from vertebra.runtime.verify import VerificationError, answers, check, made_up_images
from vertebra.spec import VertebraError
from vertebra.spec.cache import root, tell_once

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


class Maker:
    """Holds the eager f32 model, and makes programs from it."""

    def __init__(self, model: Backbone, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        self.device = next(model.parameters()).device
        self.dtype = choose.pick_dtype(recipe.dtype, self.device, recipe.backend)
        height, width = cast("tuple[int, int, int]", resolve_model_data_config(model)["input_size"])[-2:]
        self.native = (height, width)
        self.cache = root(recipe.cache_dir)
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
        self._eager_program = EagerProgram(model, torch.float32)

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
        fused = isinstance(self.model, choose.FUSED)
        return choose.pick_backend(self.recipe.backend, self.dtype, self.device, remembered, fused=fused)

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
            figures = self.verify(program, expected, images, backend.name, again=True)
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
        try:
            with cache.building(entry) as folder:
                figures = self._build(backend, job, folder, expected, images)[1]
            return backend.load(job, entry), figures
        except cache.CacheError as error:
            tell_once(entry.parent, f"{error}; until then it is compiled each time")
        with cache.for_now() as folder:
            found = self._build(backend, job, folder, expected, images)
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return found

    def _build(
        self, backend: Backend, job: Job, folder: Path, expected: Tensor, images: Tensor
    ) -> tuple[Program, Figures]:
        backend.build(job, folder)
        program = backend.load(job, folder)
        return program, self.verify(program, expected, images, backend.name)

    def expected(self, images: Tensor) -> Tensor:
        """Eager f32's answers."""
        return answers(self.eager, images)

    def verify(self, program: Program, expected: Tensor, images: Tensor, what: str, *, again: bool = False) -> Figures:
        """`again`: the images are a few of those that it was, or comes to be, judged by."""
        about: dict[str, Any] = {"dtype": self.dtype, "classes": self.model.num_classes > 1}
        about["several"] = bool(self.model.pretrained_cfg.get("multi_label"))
        if self.recipe.batch is not None:  # it may have a program of its own; filled up with the same images
            rows = torch.arange(self.recipe.batch) % len(images)
            name = f"{what} {self.dtype}, batch {len(rows)}"
            found = program(images[rows]).detach().float().cpu()
            check(expected[rows], found, what=name, again=True, **about)
        return check(expected, answers(program, images), what=f"{what} {self.dtype}", again=again, **about)
