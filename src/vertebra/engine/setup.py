"""RunConfig -> the parts of a run: data, model, optimiser, schedule, and what is done to a batch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import InitProcessGroupKwargs, KwargsHandler, set_seed
from rich.console import Console
from torch import Tensor, nn

from vertebra.data import create_transform, resolve_model_data_config
from vertebra.data.datasets import Dataset, Part, class_counts, open_dataset
from vertebra.data.holdout import with_validation
from vertebra.data.labels import check_written
from vertebra.data.loader import Loader, Order, default_workers
from vertebra.data.memory import keep_freed_memory
from vertebra.data.mix import Mixup
from vertebra.data.tables import Columns
from vertebra.engine.config import DataConfig, RunConfig
from vertebra.engine.ema import Ema
from vertebra.engine.evaluate import eval_loader
from vertebra.engine.gradients import Gradients
from vertebra.engine.learner import Size, frozen_depth, make_model
from vertebra.engine.losses import Distillation, class_weights
from vertebra.engine.multilabel import settle
from vertebra.engine.plan import make_finish, make_loss, make_mix, make_optimizer, make_reader, make_schedule
from vertebra.engine.rules import check, on_cpu
from vertebra.engine.schedule import Schedule
from vertebra.engine.sharding import shard
from vertebra.engine.teacher import Remembered, Teacher, load_teacher
from vertebra.layers.statistics import unchanged_statistics
from vertebra.models.backbone import Backbone
from vertebra.models.groups import freeze
from vertebra.runtime.machine import cores, native_bf16
from vertebra.spec import SettingError, VertebraError

ASKING = timedelta(hours=6)
"""How long processes wait for the first one while it asks the teacher about every image: ImageNet's 1.3 million at 60 a
second. No longer: as long as that would they wait for one that hangs.
"""


@dataclass(slots=True, kw_only=True)
class Run:
    """What the loop turns. `net` is `model` as devices and processes need it."""

    config: RunConfig
    accelerator: Accelerator
    dataset: Dataset
    classes: tuple[str, ...]
    """What the classes are called, which may be more readable than the folders."""
    fingerprint: dict[str, Any]
    model: Backbone
    size: Size
    """That it is trained at; its own record has the one that it is validated at."""
    net: nn.Module
    layout: torch.memory_format
    """Of the images that `net` takes."""
    ema: Ema | None
    optimizer: Any
    schedule: Schedule
    loss: nn.Module
    gradients: Gradients
    """Of the images that `net` takes, targets and, where there is one, the teacher's answers."""
    teacher: Teacher | Remembered | None
    finish: Callable[[Tensor], Tensor]
    """The loader's uint8 batch -> normalised, erased."""
    mix: Mixup | None
    train: Loader
    val: Loader
    finish_val: Callable[[Tensor], Tensor]
    updates: int
    """An epoch's."""

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def sharded(self) -> bool:
        return self.config.sharding != "none"

    @property
    def input(self) -> str:
        """What the model takes, in words."""
        validated: Size = self.model.pretrained_cfg["input_size"]
        apart = "" if validated[-2:] == self.size[-2:] else f", validated at {' x '.join(map(str, validated[-2:]))}"
        return " x ".join(map(str, self.size)) + apart


def build(
    config: RunConfig,
    out: Path,
    console: Console | None = None,
    *,
    accelerator: Accelerator | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Run:
    """Everything, on its device. Raises `VertebraError` for what cannot be.

    `accelerator`: of a config that was checked; None: it is checked, and gets one. `saved`: the checkpoint that will be
    put into it, which says what the model is; what that started from may be gone.
    """
    if accelerator is None:
        check(config)
        accelerator = make_accelerator(config, out)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    dataset = _dataset(config)
    classes = readable(dataset.classes, config.data.names)
    set_seed(config.seed)
    start = None if saved is None else saved["start"]
    model, size = make_model(config, classes, multi_label=dataset.multi_label, saved=start)
    data = cast("dict[str, Any]", resolve_model_data_config(model))
    train, val, finish_val = _loaders(config, dataset, data, size, accelerator)
    updates = _updates(config, train)
    if train.order.share == 1:
        check_lone(config, model, size)
    device = accelerator.device
    model.to(device)
    # Convolutions are faster with channels last, but for a ViT's only one, which is then twice as slow.
    layout = torch.channels_last if model.spatial and device.type in ("cpu", "cuda") else torch.contiguous_format
    if config.sharding == "none":  # what is spread must be contiguous
        model.to(memory_format=layout)
    ema = Ema(model, config.ema.decay, warmup=config.ema.warmup) if config.ema.decay is not None else None
    net, optimizer = _prepared(config, model, ema, accelerator)
    teacher = _teacher(config, classes, data, dataset.part("train"), accelerator, console)
    loss = _loss(config, dataset, model, taught=teacher is not None).to(device)
    return Run(
        config=config,
        accelerator=accelerator,
        dataset=dataset,
        classes=classes,
        fingerprint=dataset.fingerprint(),
        model=model,
        size=size,
        net=net,
        layout=layout,
        ema=ema,
        optimizer=optimizer,
        schedule=make_schedule(config, updates),
        loss=loss,
        gradients=_gradients(config, net, model, loss, accelerator),
        teacher=teacher,
        finish=make_finish(config, data["mean"], data["std"]).to(device),
        mix=make_mix(config, len(classes)),
        train=train,
        val=val,
        finish_val=finish_val,
        updates=updates,
    )


def _teacher(
    config: RunConfig,
    classes: Sequence[str],
    student: dict[str, Any],
    part: Part,
    accelerator: Accelerator,
    console: Console | None,
) -> Teacher | Remembered | None:
    teacher = load_teacher(config.distill, classes, student, accelerator.device)
    if teacher is None or config.distill.cache is None:
        return teacher
    workers = _workers(config)
    with accelerator.main_process_first():  # it asks; the others read what it wrote
        shown = console if accelerator.is_main_process else None
        return Remembered(teacher, part, Path(config.distill.cache), workers=workers, console=shown)


def _prepared(config: RunConfig, model: Backbone, ema: Ema | None, accelerator: Accelerator) -> tuple[nn.Module, Any]:
    """(what is called in training, the optimiser)"""
    if config.sharding != "none":
        for part in (model, *([] if ema is None else [cast("Backbone", ema.module)])):
            shard(part, accelerator.device)
    optimizer = make_optimizer(config, model)
    frozen = frozen_depth(config, model, 0)
    if config.freeze.thaw_every is None:  # DDP looks once, when it wraps, at what learns
        freeze(model, frozen)
    if config.sharding != "none":
        return accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(optimizer)  # no DDP
    return accelerator.prepare(torch.compile(model) if config.compile else model, optimizer)


def _gradients(
    config: RunConfig, net: nn.Module, model: Backbone, loss_of: nn.Module, accelerator: Accelerator
) -> Gradients:
    def compute(images: Tensor, *targets: Tensor, parts: Tensor | float = 1, **weight: Tensor) -> Tensor:
        loss = loss_of(net(images), *targets, **weight)
        accelerator.backward(loss / parts)
        return loss.detach()

    # A graph's gradients are overwritten, not added to; a scaler and a checkpoint look at what they computed.
    plain = config.optim.accumulate == 1 and accelerator.scaler is None and not config.model.grad_checkpointing
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cuda"
    return Gradients(compute, model, record=config.cuda_graphs and plain and alone)


def columns_of(config: DataConfig) -> Columns:
    """What is what in a table."""
    return Columns(config.path_column, config.label_columns or (), config.split_column, config.label_separator)


def _dataset(config: RunConfig) -> Dataset:
    c = config.data
    listed = open_dataset(c.source, columns_of(c))
    return with_validation(settle(config, listed), c.val_share, config.seed)


def _updates(config: RunConfig, train: Loader) -> int:
    """An epoch's."""
    updates = train.order.steps // config.optim.accumulate
    if updates < 1:
        raise SettingError(
            f"optim.accumulate={config.optim.accumulate} steps make no update: an epoch has {train.order.steps} "
            f"(of {len(train.part)} images, {train.order.batch_size} a step)"
        )
    return updates


def check_lone(config: RunConfig, model: Backbone, size: Size) -> None:
    """Raise where every step has one image, and a norm of the model would see one value a channel of it."""
    side = config.data.start_size or size[-1]
    with unchanged_statistics(model.train()), torch.no_grad(), torch.random.fork_rng():
        try:
            model(torch.zeros(1, size[0], side, side))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise SettingError(
                f"data.batch_size={config.data.batch_size} gives a process one image a step, of which BatchNorm in "
                f"{config.model.name} sees one value a channel at {side} x {side} pixels; give 2 images or more, "
                "larger ones (data.image_size), or a model without BatchNorm, as a ViT"
            ) from error


def make_accelerator(config: RunConfig, out: Path) -> Accelerator:
    # accelerate keeps the first accelerator's settings for the whole process; a second run has its own.
    AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]
    GradientState._reset_state()  # pyright: ignore[reportPrivateUsage]
    thaws = config.freeze.thaw_every is not None
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(find_unused_parameters=thaws)]
    if config.distill.cache is not None:
        handlers.append(InitProcessGroupKwargs(timeout=ASKING))
    accelerator = Accelerator(
        cpu=on_cpu(config),
        mixed_precision=_precision(config),
        log_with=list(config.trackers) or None,
        project_dir=out,
        kwargs_handlers=handlers,
    )
    if config.sharding != "none" and accelerator.num_processes == 1:
        raise SettingError(
            f"sharding={config.sharding} spreads the model over processes, and this is the only one; start it with "
            "`torchrun --nproc-per-node 2 -m vertebra train ...`, or set sharding=none"
        )
    if config.data.batch_size % accelerator.num_processes:
        raise SettingError(
            f"data.batch_size={config.data.batch_size} is that of all {accelerator.num_processes} processes together; "
            "give a multiple of them"
        )
    return accelerator


def _precision(config: RunConfig) -> str:
    if config.precision != "auto":
        return "no" if config.precision == "fp32" else config.precision
    device = torch.device("cpu" if on_cpu(config) else "cuda" if torch.cuda.is_available() else "mps")
    return "bf16" if native_bf16(device) else "no"


def _workers(config: RunConfig) -> int:
    return default_workers(cores()) if config.data.workers is None else config.data.workers


def _loaders(
    config: RunConfig, dataset: Dataset, data: dict[str, Any], trained: Size, accelerator: Accelerator
) -> tuple[Loader, Loader, Callable[[Tensor], Tensor]]:
    c = config.data
    size, rank = accelerator.num_processes, accelerator.process_index
    part = dataset.part("train")
    workers = _workers(config)
    read = make_reader(config, trained, data["mean"])
    order = Order(
        images=len(part),
        batch_size=c.batch_size,
        seed=config.seed,
        repeats=config.augment.repeats,
        size=size,
        rank=rank,
    )
    train = Loader(part, read, order, workers=workers, pin=accelerator.device.type == "cuda")
    transform = create_transform(**data, is_training=False)
    held = dataset.part("val")
    val, finish = eval_loader(held, transform, batch_size=c.batch_size, workers=workers, size=size, rank=rank)
    return train, val, finish


def _loss(config: RunConfig, dataset: Dataset, model: Backbone, *, taught: bool) -> nn.Module:
    weight = None
    if config.loss.balance:
        counts = class_counts(dataset.part("train"), dataset.classes)
        empty = next((name for name, count in counts.items() if count == 0), None)
        if empty is not None:
            raise SettingError(f"loss.balance=true: class {empty!r} has no training images; give it some, or leave it")
        weight = class_weights(torch.tensor(list(counts.values())))
    base = make_loss(config, weight)
    if not taught:
        return base
    if hasattr(model, "set_distilled_training"):
        cast("Any", model).set_distilled_training()
    return Distillation(base, config.distill.kind, config.distill.alpha, config.distill.temperature)


def readable(folders: Sequence[str], path: str | None) -> tuple[str, ...]:
    """Names for class folders from a table with a header: the column that holds them all, and its column `name`."""
    if path is None:
        return tuple(folders)
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VertebraError(f"{path}: the table of names cannot be read: {error}") from error
    columns = list(table.fieldnames or ())
    key = next((c for c in columns if set(folders) <= {row[c] for row in rows}), None)
    if key is None or "name" not in columns:
        raise VertebraError(
            f"{path}: the table of names needs a header with a column 'name', and one that holds all class folders, "
            f"as {folders[0]!r}; it has {', '.join(columns) or 'nothing'}"
        )
    named = {row[key]: (row["name"] or "").strip() for row in rows}
    nameless = next((folder for folder in folders if not named[folder]), None)
    if nameless is not None:
        raise VertebraError(f"{path}: class {nameless!r} has no name; give each class one")
    first: dict[str, str] = {}
    for folder in folders:
        if first.setdefault(named[folder], folder) != folder:
            raise VertebraError(
                f"{path}: calls both {first[named[folder]]!r} and {folder!r} {named[folder]!r}; "
                "give each class a name of its own"
            )
    check_written(str(path), named.values())
    return tuple(named[folder] for folder in folders)


def split_table(dataset: Dataset) -> str:
    """Which image is in which split, as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["split", "label", "image"])
    for name, part in dataset.parts.items():
        for position, sample in enumerate(part.samples):
            label = "|".join(dataset.classes[own] for own in part.classes_of(position))
            table.writerow([name, label, sample.name])
    return text.getvalue()
