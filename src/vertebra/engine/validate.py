"""Any classifier over any data: which split, which classes, and the same `evaluate` that training calls.

b batch, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vertebra.data import create_transform, labels_for, resolve_model_data_config
from vertebra.data.datasets import Dataset, Part, any_number, one_each, open_dataset
from vertebra.engine.evaluate import Evaluation, eval_loader, evaluate
from vertebra.engine.multilabel import MultiEvaluation, evaluate_rows
from vertebra.engine.predict import Classifier
from vertebra.engine.reading import Transform
from vertebra.engine.setup import readable
from vertebra.runtime.optimize import optimize as make_fast
from vertebra.spec import VertebraError, did_you_mean


def validation_part(
    source: str | Path,
    known: Sequence[str] | None,
    num_classes: int,
    *,
    split: str | None,
    names: str | None,
    multi_label: bool = False,
    separator: str | None = None,
    columns: Sequence[str] = (),
) -> Part:
    """The split to validate on, its labels as the model counts classes; sets of them for a `multi_label` model.

    `split` None: "val", else "test", else all there is. `known`: what the model calls its classes; class folders are
    matched with them by name (through the table `names`, where one is given), or, where the model has no names, in
    order. `separator`, `columns`: as `open_dataset` takes them. Raises `VertebraError`.
    """
    dataset = one_each(open_dataset(source, separator=separator, columns=columns))
    if dataset.multi_label and not multi_label:
        raise VertebraError(
            f"{source} gives images several classes or none, and the model shares one answer among all of its classes; "
            "give one that was trained on such data, with loss.kind=bce"
        )
    part = dataset.part(split or _default_split(dataset))
    if multi_label:
        part = any_number(part, len(dataset.classes))
    folders = readable(dataset.classes, names)
    if known is None:
        if len(folders) != num_classes:
            raise VertebraError(
                f"the model's {num_classes} classes have no names, and {source} has {len(folders)} classes: which is "
                "which? Give a model that was saved with names"
            )
        return part
    where = {name: index for index, name in reversed(list(enumerate(known)))}
    missing = [name for name in folders if name not in where]
    if missing:
        hint = did_you_mean(missing[0], known) or "; name folders as it does, or give --names FILE.csv (folder, name)"
        if multi_label and separator is None:
            hint = "; where a label holds several classes, give --label-separator, as '|'"
        raise VertebraError(f"class {missing[0]!r} of {source} is none of the {num_classes} that the model knows{hint}")
    if multi_label:
        sets = (part.classes_of(position) for position in range(len(part)))
        return Part(part.samples, tuple(tuple(where[folders[label]] for label in own) for own in sets), num_classes)
    return Part(part.samples, tuple(where[folders[part.classes_of(i)[0]]] for i in range(len(part))))


def _default_split(dataset: Dataset) -> str:
    return next(name for name in ("val", "test", "train") if name in dataset.parts)


def known_classes(model: Classifier) -> tuple[str, ...] | None:
    """What a model or an exported file calls its classes."""
    own: Sequence[str] | None = getattr(model, "labels", None)
    return tuple(own) if own is not None else labels_for(model.num_classes, model.pretrained_cfg)


def validate(
    model: Classifier,
    part: Part,
    *,
    transform: Transform | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    exact: bool = False,
    optimize: bool = False,
    padded_to: int | None = None,
    seen: Callable[[int], None] | None = None,
) -> Evaluation | MultiEvaluation:
    """Answers and metrics of a split. `padded_to`: the one batch size that an exported file takes.

    Where the part holds any number of classes an image, each class's answer is measured by itself.

    `exact` decodes every pixel; `optimize` compiles the model first. `seen` is told the number of images so far.
    """
    config = cast("dict[str, Any]", resolve_model_data_config(model))
    transform = transform or create_transform(**config, is_training=False)
    loader, finish = eval_loader(part, transform, batch_size=batch_size, workers=workers, exact=exact)
    run: Callable[[Tensor], Tensor] = model.eval()
    if isinstance(model, nn.Module):
        model.to(device)
        run = make_fast(model, dtype="f32" if exact else "auto") if optimize else cast("nn.Module", model)
    count = 0

    def forward(images: Tensor) -> Tensor:
        nonlocal count
        answer = run(images) if padded_to is None else _in_batches(run, images, padded_to)
        count += len(images)
        if seen is not None:
            seen(count)
        return answer.float().to(device)

    try:
        worth = evaluate if part.classes is None else evaluate_rows
        return worth(forward, loader.epoch(0), model.num_classes, prepare=finish, device=device)
    finally:
        loader.close()


def _in_batches(run: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    answers: list[Tensor] = []
    for chunk in images.split(size):
        padding = chunk[-1:].expand(size - len(chunk), -1, -1, -1)
        answers.append(run(torch.cat([chunk, padding]))[: len(chunk)])
    return torch.cat(answers)
