"""What a config decides by itself, without data or model: rates, loss, optimiser, what is done to images.

`check` makes all of it to see whether it can be made; a run makes it again with what it then knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vertebra.data import create_train_reader
from vertebra.data.augment.batch import RandomErasingBatch
from vertebra.data.augment.reader import TrainReader
from vertebra.data.mix import Mixup
from vertebra.data.normalize import NormalizeBatch
from vertebra.engine.config import RunConfig
from vertebra.engine.losses import create_loss
from vertebra.engine.optim import Group, create_optimizer
from vertebra.engine.schedule import Schedule


def global_lr(config: RunConfig) -> float:
    """The learning rate for the batch of one update, as it is asked for."""
    c = config.optim
    return c.lr if c.lr_batch is None else c.lr * config.data.batch_size * c.accumulate / c.lr_batch


def make_schedule(config: RunConfig, updates: int) -> Schedule:
    """In updates, of which an epoch has so many; plateau in epochs, after each of which there is a metric."""
    c = config.schedule
    unit = 1 if c.kind == "plateau" else updates
    return Schedule(
        kind=c.kind,
        lr=global_lr(config),
        total=config.epochs * unit,
        lr_min=c.min_lr,
        warmup=c.warmup_epochs if c.kind == "plateau" else math.ceil(c.warmup_epochs * unit),
        warmup_lr=c.warmup_lr if c.warmup_epochs else 0.0,
        power=c.power,
        decay=c.decay_rate,
        decay_steps=c.decay_epochs * unit,
        milestones=tuple(m * unit for m in c.milestones),
        patience=c.patience,
        rise=c.rise,
    )


def make_reader(config: RunConfig, size: int | Sequence[int], mean: Sequence[float]) -> TrainReader:
    """From a file's bytes to an augmented image."""
    a = config.augment
    return create_train_reader(
        size,
        scale=a.scale,
        ratio=a.ratio,
        hflip=a.hflip,
        vflip=a.vflip,
        color_jitter=a.color_jitter,
        auto_augment=a.auto_augment,
        interpolation=a.interpolation,
        mean=mean,
    )


def make_finish(config: RunConfig, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The loader's uint8 batch -> normalised, erased."""
    a = config.augment
    steps: list[nn.Module] = [NormalizeBatch(mean, std)]
    if a.re_prob != 0:
        steps.append(RandomErasingBatch(a.re_prob, a.re_mode, a.re_count))
    return nn.Sequential(*steps)


def make_mix(config: RunConfig, num_classes: int) -> Mixup | None:
    """None where nothing is mixed."""
    a = config.augment
    if a.mixup == 0 and a.cutmix == 0:
        return None
    return Mixup(
        a.mixup,
        a.cutmix,
        prob=a.mix_prob,
        switch_prob=a.switch_prob,
        mode=a.mix_mode,
        label_smoothing=config.loss.smoothing,
        num_classes=num_classes,
    )


def make_loss(config: RunConfig, weight: Tensor | None) -> nn.Module:
    """Of the labels; `weight` (k,) scales the classes."""
    c = config.loss
    return create_loss(
        c.kind,
        smoothing=c.smoothing,
        weight=weight,
        target_threshold=c.target_threshold,
        sum_classes=c.sum_classes,
        gamma=c.gamma,
    )


def make_optimizer(config: RunConfig, model_or_groups: nn.Module | Iterable[Group]) -> torch.optim.Optimizer:
    """Over a model's parameters, or over groups already made."""
    c = config.optim
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in c.options.items()}
    return create_optimizer(
        model_or_groups, c.name, lr=global_lr(config), weight_decay=c.weight_decay, layer_decay=c.layer_decay, **options
    )
