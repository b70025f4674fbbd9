"""What a `RunConfig` may not ask for: numbers out of bounds, settings that exclude each other, what is not here.

Each rule is whether it is broken, and the line that says so.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, cast

import torch

from vertebra.engine import plan
from vertebra.engine.config import DistillConfig, RunConfig
from vertebra.engine.learner import architecture
from vertebra.engine.optim import OPTIMIZERS
from vertebra.engine.recipes import RECIPES, recipe
from vertebra.hub.registry import REGISTRY
from vertebra.models.vit import VitConfig
from vertebra.spec import IMAGENET_MEAN, IMAGENET_STD, SettingError, UnknownNameError, VertebraError, did_you_mean

Rules = list[tuple[bool, str]]
_SEEDS = 2**32
"""NumPy's are below it."""


def check(config: RunConfig) -> None:
    """Raise for what is out of bounds, cannot go together or is not on this machine, before anything starts."""
    c = config
    if not c.data.source:
        raise SettingError("no data: `vertebra train DATA --model NAME`")
    if not c.model.name:
        raise SettingError("no model: --model NAME, as deit_tiny_patch16_224; `vertebra models` lists them")
    REGISTRY.split(c.model.name)
    _refuse((*_bounds(c), *_size_bounds(c), *_optim_rules(c), *_schedule_rules(c)))
    # Only of numbers that can be: these ask the model's own config, too, which refuses others in its own words.
    _refuse((*_start_rules(c), *_size_rules(c), *_mix_rules(c), *_sharding_rules(c)))
    _make(c)
    _refuse((*_idle_rules(c), *_device_rules(c), *_tracker_rules(c)))


def _refuse(rules: Sequence[tuple[bool, str]]) -> None:
    for wrong, message in rules:
        if wrong:
            raise SettingError(message)


def on_cpu(config: RunConfig) -> bool:
    """Whether the run computes on the processor: as it says, or for want of a GPU."""
    return config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())


def _bounds(c: RunConfig) -> Rules:
    workers, patience, thaw, threshold = c.data.workers, c.stop.patience, c.freeze.thaw_every, c.loss.target_threshold
    return [
        (c.epochs < 1, f"epochs={c.epochs}: give 1 or more"),
        (not 0 <= c.seed < _SEEDS, f"seed={c.seed}: give a whole number from 0 to {_SEEDS - 1}"),
        (c.data.batch_size < 1, f"data.batch_size={c.data.batch_size}: give 1 or more"),
        (workers is not None and workers < 0, f"data.workers={workers}: give 0 (none) or more, or null"),
        (not 0 < c.data.val_share < 1, f"data.val_share={c.data.val_share}: give a share between 0 and 1"),
        (not 0 <= c.loss.smoothing < 1, f"loss.smoothing={c.loss.smoothing}: give a share from 0 to below 1"),
        (
            threshold is not None and not 0 <= threshold < 1,
            f"loss.target_threshold={threshold}: give a share from 0 to below 1, or null",
        ),
        (c.augment.repeats < 1, f"augment.repeats={c.augment.repeats}: give 1 or more"),
        (
            c.ema.decay is not None and not 0 < c.ema.decay < 1,
            f"ema.decay={c.ema.decay}: give a number between 0 and 1, as 0.999, or null",
        ),
        (thaw is not None and thaw <= 0, f"freeze.thaw_every={thaw}: give epochs above 0, or null"),
        (patience is not None and patience < 0, f"stop.patience={patience}: give 0 or more, or null"),
        (c.stop.rollbacks < 0, f"stop.rollbacks={c.stop.rollbacks}: give 0 or more"),
        (not c.save_every >= 0, f"save_every={c.save_every}: give seconds, or 0 for every update"),  # nan, too
        (not 0 <= c.distill.alpha <= 1, f"distill.alpha={c.distill.alpha}: give a share from 0 to 1"),
        (
            not 0 < c.distill.temperature < math.inf,
            f"distill.temperature={c.distill.temperature}: give a number above 0, as 1 (probabilities as they are)",
        ),
        (not 0 <= c.model.drop_rate < 1, f"model.drop_rate={c.model.drop_rate}: give a share from 0 to below 1"),
        (
            c.model.drop_path_rate is not None and not 0 <= c.model.drop_path_rate < 1,
            f"model.drop_path_rate={c.model.drop_path_rate}: give a share from 0 to below 1, or null",
        ),
    ]


def _size_bounds(c: RunConfig) -> Rules:
    """In pixels, and of crops."""
    d = c.data
    sizes = {"data.image_size": d.image_size, "data.eval_size": d.eval_size, "distill.image_size": c.distill.image_size}
    return [
        *(
            (size is not None and size < 1, f"{name}={size}: give pixels above 0, or null for the default")
            for name, size in sizes.items()
        ),
        (
            d.start_size is not None and d.image_size is None,
            f"data.start_size={d.start_size} has no size to grow to; set data.image_size, or leave it out",
        ),
        (
            d.start_size is not None and not 16 <= d.start_size <= (d.image_size or d.start_size),
            f"data.start_size={d.start_size} grows to data.image_size={d.image_size}: give 16 to data.image_size",
        ),
        (
            d.crop_pct is not None and not 0 < d.crop_pct < math.inf,
            f"data.crop_pct={d.crop_pct}: give a share above 0, as 0.875, or null for the checkpoint's",
        ),
    ]


def _optim_rules(c: RunConfig) -> Rules:
    o, clip = c.optim, c.optim.clip_norm
    return [
        (o.accumulate < 1, f"optim.accumulate={o.accumulate}: give 1 or more"),
        (not 0 < o.lr < math.inf, f"optim.lr={o.lr}: give a rate above 0"),
        (o.lr_batch is not None and o.lr_batch < 1, f"optim.lr_batch={o.lr_batch}: give 1 or more images, or null"),
        (not 0 <= o.weight_decay < math.inf, f"optim.weight_decay={o.weight_decay}: give 0 or more"),
        (
            o.layer_decay is not None and not 0 < o.layer_decay <= 1,
            f"optim.layer_decay={o.layer_decay}: give a share above 0 and up to 1, as 0.75, or null for one rate",
        ),
        (
            clip is not None and not clip > 0,  # nan, too
            f"optim.clip_norm={clip}: give a number above 0, or null for no bound",
        ),
        *_option_rules(c),
    ]


def _option_rules(c: RunConfig) -> Rules:
    """The types of an optimiser's own options are those of its defaults. What it has not it refuses itself."""
    if c.optim.name not in OPTIMIZERS:
        return []
    kind, _, allowed = OPTIMIZERS[c.optim.name]
    defaults = inspect.signature(kind).parameters
    own = {name: value for name, value in c.optim.options.items() if name in allowed}
    wanted = {name: _wanted(value, defaults[name].default) for name, value in own.items()}
    return [(bool(what), f"optim.options.{name}={own[name]!r}: give {what}") for name, what in wanted.items()]


def _wanted(value: Any, default: Any) -> str:
    """What is wanted in place of `value`; nothing where it is like the default."""

    def number(one: Any) -> bool:
        return type(one) in (int, float)

    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, tuple):
        pair = cast("list[Any]", list(value) if isinstance(value, (list, tuple)) else [])
        return "" if len(pair) == 2 and all(map(number, pair)) else f"two numbers, as {list(cast('Any', default))}"
    return "" if number(value) else "a number"


def _start_rules(c: RunConfig) -> Rules:
    """Of labels, and of where the model starts."""
    starts = c.model.pretrained or c.model.weights is not None
    frozen = c.freeze.depth != 0
    return [
        (
            c.data.label_separator is not None and len(c.data.label_columns or ()) > 1,
            "data.label_separator is for one column of labels, data.label_columns names several of 0 and 1; give one",
        ),
        (
            c.data.label_separator == "",
            "data.label_separator is empty: give what stands between two classes, as |, or null",
        ),
        (
            c.model.pretrained and c.model.weights is not None,
            "model.pretrained and model.weights both name a checkpoint to start from; give one of them",
        ),
        (
            frozen and not starts,
            "freeze.depth without a checkpoint keeps random weights; add --pretrained or --weights FILE",
        ),
        (c.freeze.thaw_every is not None and not frozen, "freeze.thaw_every without freeze.depth thaws nothing"),
        (
            c.model.options.get("in_chans", 3) != 3,
            (
                f"model.options.in_chans={c.model.options.get('in_chans')}: photos are read as red, green and blue,"
                " grey ones too; leave it out"
            ),
        ),
    ]


def _size_rules(c: RunConfig) -> Rules:
    """Of models whose position embedding is made for one size."""
    own = architecture(c)
    if not isinstance(own, VitConfig):
        return []
    name, size, (height, width) = c.model.name, c.data.eval_size, own.image
    one = f"{name} takes images of one size, {height} x {width} pixels; leave it out"
    return [
        (size is not None and (size, size) != own.image, f"data.eval_size={size}: {one}"),
        (c.data.start_size is not None, f"data.start_size={c.data.start_size}: {one}"),
    ]


def _mix_rules(c: RunConfig) -> Rules:
    """Of targets: mixed, smoothed, or a teacher's."""
    mixes = c.augment.mixup > 0 or c.augment.cutmix > 0
    least = c.loss.smoothing / 2  # of two classes, or of several an image; less for one of many
    threshold = c.loss.target_threshold
    return [
        (
            threshold is not None and threshold < least,
            f"loss.target_threshold={threshold}: smoothing lifts wrong classes above; give {least:g}, or smoothing=0",
        ),
        (
            mixes and c.augment.mix_prob == 0,
            "augment.mix_prob=0 never mixes; set augment.mixup=0 and augment.cutmix=0 instead",
        ),
        (
            c.distill.teacher is None and c.distill != DistillConfig(),
            "distill settings without a teacher have no effect; set distill.teacher=NAME",
        ),
        (
            c.distill.cache is not None and mixes,
            "distill.cache holds no answers to mixed images; set augment.mixup=0 and augment.cutmix=0, or leave it out",
        ),
    ]


def _schedule_rules(c: RunConfig) -> Rules:
    s, no_end = c.schedule, math.inf
    from_0 = {name: getattr(s, name) for name in ("warmup_epochs", "warmup_lr", "min_lr", "power", "patience")}
    above_0 = {name: getattr(s, name) for name in ("decay_epochs", "decay_rate")}
    return [
        *((not 0 <= n < no_end, f"schedule.{name}={n}: give 0 or more") for name, n in from_0.items()),
        *((not 0 < n < no_end, f"schedule.{name}={n}: give a number above 0") for name, n in above_0.items()),
        (not 0 < s.rise < 1, f"schedule.rise={s.rise}: give a share between 0 and 1, as 0.3"),
        (
            c.schedule.warmup_epochs >= c.epochs,
            f"schedule.warmup_epochs={c.schedule.warmup_epochs} fills all {c.epochs} epochs; make it shorter",
        ),
        (
            c.schedule.kind == "one_cycle" and c.schedule.warmup_epochs > 0,
            "schedule.kind=one_cycle warms up by itself; set schedule.warmup_epochs=0",
        ),
        (
            c.schedule.kind in ("cosine", "poly", "plateau") and s.min_lr > plan.global_lr(c),
            f"schedule.min_lr={s.min_lr} lies above the rate that it ends, {plan.global_lr(c):g}; give less",
        ),
        (
            c.schedule.kind == "multistep" and not c.schedule.milestones,
            "schedule.kind=multistep without milestones never falls; set schedule.milestones=[30, 60], in epochs",
        ),
    ]


def _sharding_rules(c: RunConfig) -> Rules:
    if c.sharding == "none":
        return []
    return [
        (c.compile, "sharding=fsdp2 and compile=true do not go together; set compile=false"),
        (c.precision == "fp16", "sharding=fsdp2 scales no fp16 gradients; set precision=bf16 or fp32"),
        (c.device == "mps", "sharding=fsdp2 needs several processes, and mps has one; leave it out"),
        (
            c.freeze.thaw_every is not None,
            "sharding=fsdp2 decides once what learns; leave freeze.thaw_every out, or set sharding=none",
        ),
    ]


_READ_BY = {
    "cosine": ("min_lr",),
    "poly": ("min_lr", "power"),
    "step": ("decay_epochs", "decay_rate"),
    "multistep": ("milestones", "decay_rate"),
    "plateau": ("decay_rate", "patience", "min_lr"),
    "constant": (),
    "one_cycle": ("rise",),
}
"""What each kind of schedule reads, beside the warm-up."""


def _idle_rules(c: RunConfig) -> Rules:
    """Of settings that nothing reads, given the others: whoever changes one expects that it does something. What the
    recipe says itself may stand, for it need not be taken back where another setting makes it idle.
    """
    a, kind = c.augment, c.schedule.kind
    mixes = a.mixup > 0 or a.cutmix > 0
    policy = a.auto_augment is not None and "3a" not in a.auto_augment
    idle = {
        **{
            f"schedule.{name}": (name not in _READ_BY[kind], f"with schedule.kind={kind}")
            for name in dict.fromkeys(name for names in _READ_BY.values() for name in names)
        },
        "augment.color_jitter": (policy, f"beside augment.auto_augment={a.auto_augment}"),
        **{f"augment.{name}": (not mixes, "as nothing is mixed") for name in ("mix_prob", "mix_mode", "mix_off_epoch")},
        "augment.switch_prob": (a.mixup == 0 or a.cutmix == 0, "where mixup and cutmix are not both on"),
        **{f"augment.{name}": (a.re_prob == 0, "with augment.re_prob=0") for name in ("re_mode", "re_count")},
        "distill.temperature": (c.distill.kind == "hard", "with distill.kind=hard"),
        "ema.warmup": (c.ema.decay is None, "without ema.decay"),
        "stop.rollbacks": (c.stop.on_nan == "stop", "with stop.on_nan=stop"),
    }
    expected = (RunConfig(), recipe(c.recipe)) if c.recipe in RECIPES else (RunConfig(),)
    rules: Rules = []
    for name, (unread, why) in idle.items():
        value = _value(c, name)
        changed = all(value != _value(other, name) for other in expected)
        rules.append((unread and changed, f"{name}={value} has no effect {why}; leave it out"))
    return rules


def _value(config: RunConfig, name: str) -> Any:
    group, _, key = name.partition(".")
    return getattr(getattr(config, group), key)


def _device_rules(c: RunConfig) -> Rules:
    """Of the machine at hand."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    return [
        (c.device == "cuda" and not cuda, "device=cuda, but torch sees no GPU here; set device=cpu, or leave it out"),
        (
            c.device == "mps" and not mps,
            "device=mps, but torch sees no Apple GPU here; set device=cpu, or leave it out",
        ),
        (c.precision == "fp16" and on_cpu(c), "precision=fp16 does not train on a CPU; use bf16 or fp32"),
    ]


def _tracker_rules(c: RunConfig) -> Rules:
    """Of those that accelerate knows: it leaves out what is not installed without a word."""
    if not c.trackers:
        return []
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = [str(kind) for kind in LoggerType.list() if str(kind) != "all"]
    here = {str(kind) for kind in get_available_trackers()}
    rules: Rules = []
    for name in c.trackers:
        hint = did_you_mean(name, known) or f"; allowed: {', '.join(known)}"
        rules += [
            (name not in known, f"trackers: unknown {name!r}{hint}"),
            (name not in here, f"trackers: {name} is not installed; pip install {name}, or leave it out of trackers"),
        ]
    return rules


def _make(c: RunConfig) -> None:
    """Raise for what the parts of a run refuse themselves, in their words. The sizes are stand-ins."""
    try:
        plan.make_schedule(c, updates=1)
        plan.make_loss(c, None)
        plan.make_mix(c, num_classes=2)
        plan.make_reader(c, c.data.image_size or 224, IMAGENET_MEAN)
        plan.make_finish(c, IMAGENET_MEAN, IMAGENET_STD)
        plan.make_optimizer(c, [{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    except (SettingError, UnknownNameError):
        raise
    except VertebraError as error:  # all that they were given are settings
        raise SettingError(str(error)) from error
    except ValueError as error:  # torch's own, of numbers out of range
        raise SettingError(f"optim.options={dict(c.optim.options)}: {c.optim.name}: {error}") from error
