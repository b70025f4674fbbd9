"""From a photo to its best labels.

b batch, c channels, h w height and width in pixels, k classes.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, Protocol, TypeVar, cast, overload

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vertebra.data import DEFAULT_MAX_PIXELS, labels_for, resolve_model_data_config
from vertebra.data.eval_reader import eval_reader
from vertebra.engine.reading import Transform, batches, default_workers, split
from vertebra.engine.sources import Pixels, Source, read, several
from vertebra.engine.speed import Speed
from vertebra.hub.factory import load_model
from vertebra.models.backbone import Backbone
from vertebra.runtime.optimize import optimize as make_fast
from vertebra.spec import VertebraError

AnySource = TypeVar("AnySource", bound=Source)
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest classes of one image, best first; the three tuples run in parallel."""

    labels: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]
    """Softmax over all classes, not only over these; of a multi-label model, each class's own sigmoid."""


class Classifier(Protocol):
    """What a predictor asks of a model: a `Backbone`, one that `optimize` made fast, or a file that was exported."""

    num_classes: int
    in_chans: int
    pretrained_cfg: dict[str, Any]

    def eval(self) -> Any: ...

    def __call__(self, x: Tensor, /) -> Tensor: ...


class Predictor:
    """The one way from an image to a `Prediction`: decode, transform, batch, model, softmax (or sigmoid) in float32.

    Its steps are methods, for those who schedule them otherwise: `prepare` (needs no model, may run on any thread),
    `answer` (one batch), and `run`, the callable that gives a batch's logits.
    """

    run: Callable[[Tensor], Tensor]
    """(b, c, h, w) -> (b, k) logits: the model, or something faster that answers alike."""

    def __init__(
        self,
        model: Classifier | str | os.PathLike[str],
        *,
        transform: Transform | None = None,
        labels: Sequence[str] | None = None,
        top: int = 5,
        batch_size: int = 16,
        device: torch.device | str | None = None,
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
        exact: bool = False,
        optimize: bool | Literal["auto"] = "auto",
        workers: int | None = None,
    ) -> None:
        """Put the model into eval mode, and onto `device` where one is named. A name, a run's folder, a weights file or
        an exported file is loaded first, as `load_model` does. Of a model without classes, `embed` is what it can do.

        `transform` and `labels` default to what the model itself has, else to what its checkpoint says; classes that
        nobody named are called `class 17`. A file that was exported with its preprocessing inside is asked about one
        photo at a time, because they are of any size. `top` is the number of classes to name (all of them, where the
        model has fewer). `max_pixels` (width x height) bounds what is decoded; None: no bound.
        `exact` decodes every pixel, resizes as Pillow does and computes in the model's own type; without it, large
        JPEGs are decoded at a reduced scale, the resize may round otherwise by a level or two (probabilities within
        `eval_reader.TOLERANCE`), and an optimised model may use bf16.
        `optimize` True: before the first answer; False: never; "auto": on a CPU, as photos add up: steps are made one,
        and a long stream's are compiled. Either is made with the weights of its moment.
        `workers` threads read a stream's photos; default: one a core. Raises `VertebraError`.
        """
        self._recipe: tuple[Any, dict[str, Any]] = (
            model,
            {"transform": transform, "labels": labels, "top": top, "batch_size": batch_size},
        )
        self._recipe[1].update(device=device, max_pixels=max_pixels, exact=exact, optimize=optimize, workers=workers)
        if isinstance(model, str | os.PathLike):
            model = cast("Classifier", load_model(os.fspath(model)))
        workers = default_workers() if workers is None else workers
        transform = transform or getattr(model, "transform", None)
        batch_size = 1 if getattr(model, "with_preprocess", False) else batch_size
        for name, value in (("top", top), ("batch_size", batch_size), ("workers", workers)):
            if value < 1:
                raise VertebraError(f"{name}={value}: give a whole number from 1 on")
        self.labels = _class_names(model, labels)
        self.top = min(top, len(self.labels))
        self._told = False
        self.batch_size, self.workers, self.max_pixels = batch_size, workers, max_pixels
        dtype = "f32" if exact else "auto"
        self.run = self.model = _placed(model, device)
        self.device, self.dtype = _place(self.model)
        config = _data_config(model) if transform is None else None
        quick = None if config is None or exact else eval_reader(config, max_pixels, self.device)
        self._reader = quick or split(transform or _default_transform(config), exact=exact, max_pixels=max_pixels)
        self.multi_label = bool(model.pretrained_cfg.get("multi_label"))
        """Each class is answered by itself: probabilities do not add up to 1."""
        self._speed = None
        self._asked = 0
        if optimize is True:
            if not isinstance(model, Backbone):
                raise VertebraError(
                    f"optimize=True takes a model of vertebra's own, not {type(model).__name__}; leave it out"
                )
            self.run = make_fast(model, dtype=dtype)
        elif isinstance(model, Backbone) and optimize == "auto":
            self._speed = Speed(model, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        """As it was made: what was compiled since stays here. A model that was named goes by its name."""
        return _made_again, (type(self), *self._recipe)

    @overload
    def __call__(self, source: bytes | BinaryIO | Image.Image) -> Prediction: ...

    @overload
    def __call__(self, source: str | os.PathLike[str] | Pixels | Iterable[Source]) -> Any: ...

    def __call__(self, source: Source | Iterable[Source]) -> Any:
        """One image: its `Prediction`. A list, a folder, a zip or a batch of pixels: a list of them, in order.

        Raises `DecodeError`, or another `VertebraError`, for the first that cannot be read; `stream` goes on after it.
        """
        many = several(source)
        if many is not None:
            return list(self._each(many, self._answer_more))
        return self._one(cast("Source", source))

    def embed(self, source: Source | Iterable[Source]) -> Tensor:
        """What the model knows of an image before it names it, (d,); of several, as `__call__` takes them, (n, d).

        Raises `VertebraError` for what has no embedding: an exported or a compiled model.
        """
        many = several(source)
        if many is None:
            return self._embedded(self.prepare(cast("Source", source)).unsqueeze(0))[0]
        rows = list(self._each(many, self._embedded))
        return torch.stack(rows) if rows else torch.empty(0, getattr(self.model, "num_features", 0))

    @torch.inference_mode()
    def _embedded(self, batch: Float[Tensor, "b c h w"]) -> Tensor:
        model = self.model
        if not isinstance(model, Backbone):
            raise VertebraError(f"{type(model).__name__} gives no embeddings; give the model that it was made from")
        self._tell_of_random_weights()
        found = model.forward_head(model.forward_features(batch.to(self.device, self.dtype)), pre_logits=True)
        return cast("Tensor", found).float().cpu()

    def _each(self, sources: Iterable[Source], answer: Callable[[Tensor], Iterable[Answer]]) -> Iterator[Answer]:
        for chunk in batches(sources, self._read, size=self.batch_size, workers=self.workers):
            for _, tensor in chunk:
                if not isinstance(tensor, Tensor):
                    raise tensor
            yield from answer(self._finish(_stack([tensor for _, tensor in chunk if isinstance(tensor, Tensor)])))

    def _tell_of_random_weights(self) -> None:
        if self._told or not isinstance(self.model, Backbone):
            return
        self._told = True
        if not self.model.filled:
            warnings.warn(
                "this model's weights are random, so its answers mean nothing: nobody loaded any; create it with "
                "pretrained=True or checkpoint_path=FILE",
                stacklevel=4,
            )

    def _one(self, source: Source) -> Prediction:
        return self._answer_more(self.prepare(source).unsqueeze(0))[0]

    def _answer_more(self, batch: Float[Tensor, "b c h w"]) -> list[Prediction]:
        """`answer`, for photos that nobody counted before."""
        self._asked += len(batch)
        if self._speed is not None and self.run is self.model:
            self.run = self._speed.steps_made_one(self._asked) or self.run
        return self.answer(batch)

    def stream(self, sources: Iterable[AnySource]) -> Iterator[tuple[AnySource, Prediction | VertebraError]]:
        """Each source with its prediction, or the error that names why there is none; in order, a batch at a time. Of a
        folder or a zip, which may stand in the place of a list, the sources are its members (`name`).

        Threads read the next two batches while one is answered. Memory does not grow with the number of sources. Of a
        list, its length is taken for the number of photos to come.
        """
        sources = cast("Iterable[AnySource]", several(sources) or sources)
        expected = len(sources) if isinstance(sources, Sized) else None
        seen, start = 0, time.monotonic()
        reader = batches(sources, self._read, size=self.batch_size, workers=self.workers)
        try:
            for chunk in reader:
                self._shift(expected, seen, time.monotonic() - start)
                seen += len(chunk)
                good = [tensor for _, tensor in chunk if isinstance(tensor, Tensor)]
                answers = iter(self.answer(self._finish(_stack(good))) if good else [])
                for source, tensor in chunk:
                    yield source, next(answers) if isinstance(tensor, Tensor) else tensor
        finally:
            if self._speed is not None:
                self._speed.close()

    def _shift(self, expected: int | None, seen: int, elapsed: float) -> None:
        """Take something faster than the model, where it is ready and nobody has set `run` to something else."""
        if self._speed is None or (self.run is not self.model and self.run is not self._speed.eager):
            return
        left = seen if expected is None else expected - seen  # of an unknown number, we are likely in the middle
        seconds = left * elapsed / seen if seen else 0.0  # before the first answer, only reading has taken time
        self.run = self._speed.faster(max(expected or 0, seen), seconds) or self.run

    def prepare(self, source: Source) -> Float[Tensor, "c h w"]:
        """Decode and transform one image. Raises `DecodeError`."""
        return self._finish(self._read(source).unsqueeze(0))[0]

    def _read(self, source: Source) -> Tensor:
        """(c, h, w), finished but for what the whole batch gets at once."""
        return read(source, self._reader, self.max_pixels)

    def _finish(self, batch: Tensor) -> Tensor:
        """On the device, where what finishes a batch lies, too."""
        if self.device.type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory()  # the copy, as bytes a quarter of the way, overlaps with computing
        batch = batch.to(self.device, non_blocking=True)
        finish = self._reader.batch
        return batch if finish is None else finish(batch)

    @torch.inference_mode()
    def answer(self, batch: Float[Tensor, "b c h w"]) -> list[Prediction]:
        """The predictions of a batch of transformed images."""
        if not self.labels:
            raise VertebraError(
                "this model has no classifier (num_classes=0), so it names no classes; `embed` gives its embeddings"
            )
        self._tell_of_random_weights()
        logits = self.run(batch.to(self.device, self.dtype))
        logits = logits.float()
        best = (logits.sigmoid() if self.multi_label else logits.softmax(-1)).topk(self.top)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Prediction(tuple(self.labels[i] for i in where), tuple(where), tuple(p)) for where, p in rows]


def _made_again(kind: type[Predictor], model: Any, options: dict[str, Any]) -> Predictor:
    return kind(model, **options)


def _stack(images: list[Tensor]) -> Tensor:
    """(b, c, h, w). In this thread alone: torch's others would spin on, beside those that read."""
    if images[0].device.type != "cpu":
        return torch.stack(images)
    return torch.from_numpy(np.stack([image.numpy() for image in images]))


def _placed(model: Classifier, device: torch.device | str | None) -> Classifier:
    if device is not None and isinstance(model, torch.nn.Module):
        model = cast("Classifier", model.to(device))
    return cast("Classifier", model.eval())


def _place(model: Classifier) -> tuple[torch.device, torch.dtype]:
    """Where and as what a model wants its images."""
    like = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    own = getattr(model, "device", "cpu")  # an optimised model has no parameters of its own
    return (torch.device(own), torch.float32) if like is None else (like.device, like.dtype)


def _data_config(model: Classifier) -> dict[str, Any]:
    if model.in_chans != 3:
        raise VertebraError(
            f"photos are read as RGB, but this model takes {model.in_chans} channels; give a transform that makes them"
        )
    return cast("dict[str, Any]", resolve_model_data_config(model))


def _default_transform(config: dict[str, Any] | None) -> Transform:
    from vertebra.data import create_transform  # torchvision: a second that the quick way need not pay

    return create_transform(**(config or {}), is_training=False)


def known_classes(model: Classifier) -> tuple[str, ...] | None:
    """What a model or an exported file calls its classes."""
    own: Sequence[str] | None = getattr(model, "labels", None)
    return tuple(own) if own is not None else labels_for(model.num_classes, model.pretrained_cfg)


def _class_names(model: Classifier, labels: Sequence[str] | None) -> tuple[str, ...]:
    if labels is None:
        return known_classes(model) or tuple(f"class {i}" for i in range(model.num_classes))
    if len(labels) != model.num_classes:
        raise VertebraError(f"{len(labels)} labels for a model of {model.num_classes} classes; give one a class")
    return tuple(labels)
