"""From a photo to its best labels. Whatever predicts (command, evaluation, server) calls `Predictor`.

b batch, c channels, h w height and width in pixels, k classes.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, TypeVar, cast

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from vertebra.data import DEFAULT_MAX_PIXELS, DecodeError, decode, labels_for, resolve_model_data_config
from vertebra.models.backbone import Backbone
from vertebra.spec import VertebraError

Source = bytes | str | os.PathLike[str] | BinaryIO | Image.Image
"""An encoded image (its bytes, its path, a binary file) or a decoded one."""
AnySource = TypeVar("AnySource", bound=Source)
Transform = Callable[[Image.Image], Tensor]

_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest classes of one image, best first; the three tuples run in parallel."""

    labels: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]
    """Softmax over all classes, not only over these."""


class Predictor:
    """The one way from an image to a `Prediction`: decode, transform, batch, model, softmax in float32.

    Its steps are methods, for those who schedule them otherwise: `prepare` (needs no model, may run on any thread),
    `answer` (one batch), and `run`, the callable that gives a batch's logits.
    """

    run: Callable[[Tensor], Tensor]
    """(b, c, h, w) -> (b, k) logits: the model, or something faster that answers alike."""

    def __init__(
        self,
        model: Backbone,
        *,
        transform: Transform | None = None,
        labels: Sequence[str] | None = None,
        top: int = 5,
        batch_size: int = 16,
        device: torch.device | str | None = None,
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
    ) -> None:
        """Put the model into eval mode, and onto `device` where one is named.

        `transform` and `labels` default to what the model's checkpoint says; classes that nobody named are called
        `class 17`. `top` is the number of classes to name (all of them, where the model has fewer). `max_pixels`
        (width x height) bounds what is decoded; None: no bound. Raises `VertebraError`.
        """
        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise VertebraError(f"{name}={value}: give a whole number from 1 on")
        if model.num_classes < 1:
            raise VertebraError(
                "this model has no classifier (num_classes=0), so it names no classes; call it directly"
            )
        self.model = model.eval() if device is None else model.to(device).eval()
        self.run = self.model
        self.transform = transform or _default_transform(model)
        self.labels = _class_names(model, labels)
        self.top = min(top, len(self.labels))
        self.batch_size = batch_size
        self.max_pixels = max_pixels

    def __call__(self, source: Source) -> Prediction:
        """One image. Raises `DecodeError` where it cannot be read."""
        return self.answer(self.prepare(source).unsqueeze(0))[0]

    def stream(self, sources: Iterable[AnySource]) -> Iterator[tuple[AnySource, Prediction | VertebraError]]:
        """Each source with its prediction, or the error that names why there is none; in order, a batch at a time.

        Memory does not grow with the number of sources: no more than one batch of them is read ahead.
        """
        waiting = iter(sources)
        while chunk := list(islice(waiting, self.batch_size)):
            inputs = [self._prepare_or_error(source) for source in chunk]
            good = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
            answers = iter(self.answer(torch.stack(good)) if good else [])
            for source, tensor in zip(chunk, inputs, strict=True):
                yield source, next(answers) if isinstance(tensor, Tensor) else tensor

    def prepare(self, source: Source) -> Float[Tensor, "c h w"]:
        """Decode and transform one image. Raises `DecodeError`."""
        if isinstance(source, Image.Image):
            return self.transform(_upright_rgb(source, self.max_pixels))
        return self.transform(decode(source, max_pixels=self.max_pixels))

    @torch.inference_mode()
    def answer(self, batch: Float[Tensor, "b c h w"]) -> list[Prediction]:
        """The predictions of a batch of transformed images."""
        like = next(self.model.parameters())
        logits = self.run(batch.to(like.device, like.dtype))
        best = logits.float().softmax(-1).topk(self.top)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Prediction(tuple(self.labels[i] for i in where), tuple(where), tuple(p)) for where, p in rows]

    def _prepare_or_error(self, source: Source) -> Tensor | VertebraError:
        try:
            return self.prepare(source)
        except VertebraError as error:
            return error


def _default_transform(model: Backbone) -> Transform:
    from vertebra.data import create_transform  # torchvision: half a second that an own transform need not pay

    if model.in_chans != 3:
        raise VertebraError(
            f"photos are read as RGB, but this model takes {model.in_chans} channels; give a transform that makes them"
        )
    config = cast("dict[str, Any]", resolve_model_data_config(model))
    return create_transform(**config, is_training=False)


def _class_names(model: Backbone, labels: Sequence[str] | None) -> tuple[str, ...]:
    if labels is None:
        known = labels_for(model.num_classes, model.pretrained_cfg)
        return known or tuple(f"class {i}" for i in range(model.num_classes))
    if len(labels) != model.num_classes:
        raise VertebraError(f"{len(labels)} labels for a model of {model.num_classes} classes; give one a class")
    return tuple(labels)


def _upright_rgb(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """A decoded image as `decode` would give it: through a file in memory, unless it is plain RGB already."""
    name = getattr(image, "filename", "") or "<image>"
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "RGB" and not upright.has_transparency_data:
            return upright
        buffer = io.BytesIO()
        upright.save(buffer, "PNG" if upright.mode in _PNG_MODES else "TIFF")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{name}: cannot be read: {error}") from error
    return decode(buffer.getvalue(), max_pixels=max_pixels)
