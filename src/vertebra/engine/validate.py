"""Any classifier over any data: which split, which classes, and the same `evaluate` that training calls.

b batch, k classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vertebra.data import create_transform, resolve_model_data_config
from vertebra.data.datasets import Dataset, Part, any_number, one_each, open_dataset
from vertebra.data.holdout import with_validation
from vertebra.data.labels import places
from vertebra.data.splits import split_named
from vertebra.data.tables import Columns, is_table
from vertebra.engine import multilabel
from vertebra.engine.config import RunConfig
from vertebra.engine.evaluate import Evaluation, eval_loader, evaluate
from vertebra.engine.multilabel import MultiEvaluation, evaluate_rows
from vertebra.engine.outdir import CONFIG, MODEL
from vertebra.engine.predict import Classifier
from vertebra.engine.reading import Transform
from vertebra.engine.settings import with_file
from vertebra.engine.setup import columns_of, readable
from vertebra.engine.speed import SOME
from vertebra.hub.pretrained import own_record
from vertebra.models.backbone import Backbone
from vertebra.runtime.eager import fused
from vertebra.runtime.optimize import optimize as make_fast
from vertebra.spec import VertebraError, did_you_mean, value_as

_PARTS = dict[str, dict[str, int | str | None]]


@dataclass(frozen=True, slots=True)
class Trained:
    """How the run that left a model read its data."""

    config: RunConfig
    parts: Mapping[str, Any]
    """Each split's number of images and hash, as `Dataset.fingerprint` has them."""


@dataclass(frozen=True, slots=True)
class Split:
    """What is measured on."""

    name: str
    """train, val or test; "all" where DATA has neither of the latter two and nobody chose."""
    part: Part
    held_out: bool = False
    """Whether the run, and not DATA, says which images these are."""
    note: str = ""
    """`Dataset.note`: what to say of the data."""


def trained(model: str | Path) -> Trained | None:
    """What a run's folder says of its data; None where `model` is no such folder."""
    folder = Path(model).expanduser()
    if not ((folder / CONFIG).is_file() and (folder / MODEL).is_file()):
        return None
    record = own_record(folder / MODEL)
    told = record.get("training")
    parts = cast("Mapping[str, Any]", told).get("data") if isinstance(told, Mapping) else None
    where = f"{folder / MODEL}: training"
    return Trained(
        with_file(RunConfig(), folder / CONFIG), value_as(_PARTS, {} if parts is None else parts, "data", where)
    )


def validation_split(
    source: str | Path,
    known: Sequence[str] | None,
    num_classes: int,
    *,
    split: str | None,
    names: str | None,
    multi_label: bool = False,
    columns: Columns | None = None,
    run: Trained | None = None,
) -> Split:
    """What to validate on, its labels as the model counts classes; sets of them for a `multi_label` model.

    `split` None: "val", else "test", else all there is. `known`: what the model calls its classes; class folders are
    matched with them by name (through the table `names`, where one is given), or, where the model has no names, in
    order. `columns`: as `open_dataset` takes them. `run`, which the model is from: its table of names, its columns of a
    table, and, where DATA are the very images that it shared out, its splits. Raises `VertebraError`.
    """
    columns = _columns(source, columns, run)
    listed = open_dataset(source, columns)
    shared_out = None if run is None else _shared_out(listed, run)
    dataset = one_each(shared_out or listed)
    if dataset.multi_label and not multi_label:
        raise VertebraError(
            f"{source} gives images several classes or none, and the model expects exactly one class per image; "
            "give one that was trained on such data, with loss.kind=bce"
        )
    name = split_named(split) if split else _default_split(dataset)
    part = dataset.part("train" if name == "all" else name)
    if multi_label:
        part = any_number(part, len(dataset.classes))
    if run is not None:
        own = run.config.data
        names = own.names if names is None and not set(dataset.classes) <= set(known or ()) else names
    part = _counted_as(part, readable(dataset.classes, names), known, num_classes, str(source), columns.separator)
    return Split(name, part, shared_out is not None and name == "val", dataset.note)


def _counted_as(
    part: Part,
    folders: Sequence[str],
    known: Sequence[str] | None,
    num_classes: int,
    source: str,
    separator: str | None,
) -> Part:
    """The same images with the model's numbers of their classes. Raises where it does not know one."""
    if known is None:
        if len(folders) != num_classes:
            raise VertebraError(
                f"the model's {num_classes} classes have no names, and {source} has {len(folders)} classes: which is "
                "which? Give a model that was saved with names"
            )
        return part
    found, missing = places(folders, known)
    if missing:
        hint = did_you_mean(missing[0], known) or "; name folders as it does, or give --names FILE.csv (folder, name)"
        if part.classes is not None and separator is None:
            hint = "; where a label holds several classes, give --label-separator, as '|'"
        raise VertebraError(f"class {missing[0]!r} of {source} is none of the {num_classes} that the model knows{hint}")
    if part.classes is not None:
        sets = (part.classes_of(position) for position in range(len(part)))
        return Part(part.samples, tuple(tuple(found[label] for label in own) for own in sets), num_classes)
    return Part(part.samples, tuple(found[part.classes_of(i)[0]] for i in range(len(part))))


def _columns(source: str | Path, given: Columns | None, run: Trained | None) -> Columns:
    """What is what in a table: as given, else as in the run's own."""
    given = given or Columns()
    if run is None or not is_table(source):
        return given
    own = columns_of(run.config.data)
    labels = given if given.labels or given.separator is not None else own
    return Columns(given.path or own.path, labels.labels, given.split or own.split, labels.separator)


def _shared_out(listed: Dataset, run: Trained) -> Dataset | None:
    """As the run shared it out; None where these are other images, or DATA itself says which are for validation."""
    old = [run.parts.get(name, {}) for name in ("train", "val")]
    count = sum(images for part in old if isinstance(images := part.get("images"), int))
    if "val" in listed.parts or "train" not in listed.parts or len(listed.part("train")) != count:
        return None
    c = run.config
    dataset = listed if c.loss.kind in multilabel.LOSSES else one_each(listed)
    dataset = with_validation(dataset, c.data.val_share, c.seed)
    new = dataset.fingerprint()["parts"]
    return dataset if [new["train"], new["val"]] == old else None


def _default_split(dataset: Dataset) -> str:
    return next((name for name in ("val", "test") if name in dataset.parts), "all")


@contextmanager
def over_processes(device: str) -> Generator[str]:
    """The device of this process. Where a launcher (torchrun) started several, they share a split out within."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    torch.distributed.init_process_group("gloo")  # all that they exchange lies on the CPU
    try:
        yield f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
    finally:
        torch.distributed.destroy_process_group()


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
    backend: str = "auto",
    seen: Callable[[int], None] | None = None,
) -> Evaluation | MultiEvaluation:
    """Answers and metrics of a split.

    Where the part holds any number of classes an image, each class's answer is measured by itself.

    `transform` defaults to the model's own, else to what its checkpoint says. A file that was exported with its
    preprocessing inside is asked about one photo at a time, because they are of any size.
    `exact` decodes every pixel; `optimize` compiles the model first, by `backend`. `seen` is told the number of images
    so far, of this process. Processes (`over_processes`) share the split out, `batch_size` images each at once.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    size, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if several else (1, 0)
    own: Transform | None = getattr(model, "transform", None)
    transform = transform or own or _published(model)
    batch_size = 1 if getattr(model, "with_preprocess", False) else batch_size
    loader, finish = eval_loader(
        part, transform, batch_size=batch_size * size, workers=workers, size=size, rank=rank, exact=exact
    )
    run: Callable[[Tensor], Tensor] = model.eval()
    if isinstance(model, nn.Module):
        model.to(device)
        if optimize:
            run = make_fast(model, backend, "f32" if exact else "auto")
        elif isinstance(model, Backbone) and len(part) >= SOME:
            run = fused(model) or run
    count = 0

    def forward(images: Tensor) -> Tensor:
        nonlocal count
        answer = run(images)
        count += len(images)
        if seen is not None:
            seen(count)
        return answer.float().to(device)

    try:
        worth = evaluate if part.classes is None else evaluate_rows
        return worth(forward, loader.epoch(0), model.num_classes, prepare=finish, device=device)
    finally:
        loader.close()


def _published(model: Classifier) -> Transform:
    config = cast("dict[str, Any]", resolve_model_data_config(model))
    return create_transform(**config, is_training=False)
