"""A training run as one frozen value: recipes return a `RunConfig`, `--config` and `--set` change it, runs save it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    source: str = ""
    """DATA: a folder, .zip, .tar, .csv, .tsv, .parquet or hf:NAME."""
    batch_size: int = 64
    """Images a step, all processes together, before accumulation."""
    workers: int | None = None
    """Processes that read images, a training process; None: by the number of cores."""
    val_share: float = 0.1
    """Share of each class held out for validation, where DATA has no such split."""
    image_size: int | None = None
    """Side of the square that the model is trained on, in pixels; None: the checkpoint's."""
    start_size: int | None = None
    """Side in the first epoch; by two thirds of the run it has grown, 32 at a time, to `image_size`."""
    eval_size: int | None = None
    """Side that it is validated at, and that the saved model asks for; None: the one that it is trained on."""
    crop_pct: float | None = None
    """In validation, the crop's side as a share of the resized image's; None: the checkpoint's."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """In validation, of an image that is no square: its middle, all of it out of proportion, or all of it with a
    border; None: the checkpoint's."""
    names: str | None = None
    """A table of two columns, folder (or index) and name, where folders are not called as classes should be."""
    label_separator: str | None = None
    """Tables: what stands between the classes of an image that has several, as |; None: a label is one class."""
    label_columns: tuple[str, ...] | None = None
    """Tables: the column of labels, or several of 0 and 1, one a class; None: that of a usual name, or, where there is
    none, all that are left."""
    path_column: str | None = None
    """Tables: the column of paths; None: that of a usual name."""
    split_column: str | None = None
    """Tables: the column that says train, val or test, or marks one of them by 1; None: that of a usual name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    name: str = ""
    """An architecture, with or without the tag of a checkpoint."""
    pretrained: bool = False
    """Start from the checkpoint that the name means (downloaded, where it is not cached)."""
    weights: str | None = None
    """Start from this local checkpoint."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float | None = None
    """Stochastic depth, rising linearly to this rate; None: the model's default."""
    options: dict[str, bool | int | float | str] = field(default_factory=dict[str, "bool | int | float | str"])
    """Further options of the architecture, as `depth`."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: least and greatest share of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: least and greatest width to height."""
    hflip: float = 0.5
    """Probability of a flip to the left-right mirror image."""
    vflip: float = 0.0
    """Probability of a flip upside down."""
    color_jitter: float | None = None
    """Strength for brightness, contrast and saturation; not beside policies other than 3a."""
    auto_augment: str | None = None
    """A policy: rand-m9-mstd0.5-inc1, trivial, augmix-m3-w3, original, 3a ..."""
    interpolation: str = "random"
    """bilinear, bicubic, or random: one of both for each image."""
    re_prob: float = 0.0
    """Random erasing: probability."""
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    """Random erasing: what fills the rectangle."""
    re_count: int = 1
    """Random erasing: rectangles an image, at most."""
    repeats: int = 1
    """Repeated augmentation: copies of an image in a step."""
    mixup: float = 0.0
    """Mixup's alpha; 0: off."""
    cutmix: float = 0.0
    """CutMix' alpha; 0: off."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed."""
    switch_prob: float = 0.5
    """Where both are on: probability of CutMix."""
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    """One draw for a batch, a pair of images or an image."""
    mix_off_epoch: int | None = None
    """From this epoch on, batches are not mixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    kind: Literal["cross_entropy", "bce", "focal", "focal_bce"] = "cross_entropy"
    """bce, focal_bce: each class by itself; an image may have several."""
    smoothing: float = 0.0
    """Label smoothing: probability spread evenly over all classes (several an image: over yes and no)."""
    target_threshold: float | None = None
    """bce: mixed targets become 1 where they exceed it, 0 elsewhere."""
    sum_classes: bool = False
    """bce: the sum over the classes instead of the mean."""
    gamma: float = 2.0
    """focal: how far it looks away from what is already right."""
    balance: bool = False
    """Weigh classes by the inverse of how often they occur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    name: str = "adamw"
    """sgd, adamw, lamb, rmsproptf ..."""
    lr: float = 1e-3
    """Learning rate for `lr_batch` images a step."""
    lr_batch: int | None = None
    """The batch (accumulation included) that `lr` is for: the rate grows in proportion; None: `lr` as it is."""
    weight_decay: float = 0.05
    """Not for norms, biases and what the model names (position embeddings, tokens)."""
    options: dict[str, bool | int | float | tuple[float, float]] = field(
        default_factory=dict[str, "bool | int | float | tuple[float, float]"]
    )
    """Those of the optimiser itself: momentum, betas, eps ..."""
    layer_decay: float | None = None
    """Each layer's rate is this times that of the layer above it; None: one rate."""
    clip_norm: float | None = None
    """Greatest norm of all gradients together; None: no bound."""
    accumulate: int = 1
    """Steps whose gradients make one update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    kind: Literal["cosine", "step", "multistep", "poly", "plateau", "constant", "one_cycle"] = "cosine"
    """How the learning rate falls; plateau changes between epochs, the others with every update."""
    warmup_epochs: float = 0.0
    """It rises linearly from `warmup_lr` that long (one_cycle warms up by itself)."""
    warmup_lr: float = 1e-6
    """Where the warm-up begins."""
    min_lr: float = 0.0
    """Where cosine and poly end; plateau goes no lower."""
    decay_epochs: float = 30.0
    """step: epochs between two decays."""
    milestones: tuple[float, ...] = ()
    """multistep: epochs at which it falls."""
    decay_rate: float = 0.1
    """step, multistep and plateau: factor."""
    power: float = 0.5
    """poly: exponent."""
    patience: int = 10
    """plateau: epochs without a better top-1 (or mAP) that are still borne with."""
    rise: float = 0.3
    """one_cycle: share of the run in which the rate rises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmaConfig:
    decay: float | None = None
    """Moving average of the weights, which is then validated and saved too; None: off."""
    warmup: bool = True
    """The decay rises to its value, so that the first weights are soon forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    teacher: str | None = None
    """A model's name, weights file or folder; None: no teacher."""
    weights: str | None = None
    """A local checkpoint for a teacher's name."""
    kind: Literal["hard", "soft"] = "hard"
    """Learn the teacher's best class, or its probabilities."""
    alpha: float = 0.5
    """The teacher's share of the loss."""
    temperature: float = 1.0
    """soft: divides the logits of both."""
    image_size: int | None = None
    """Side of what the teacher sees, in pixels; None: its checkpoint's."""
    cache: str | None = None
    """A folder that keeps the teacher's answers to whole images, asked once; None: it is asked for every batch."""
    optimize: bool = False
    """Run the teacher through `vertebra.optimize`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeConfig:
    depth: int = 0
    """Groups nearest the image that do not learn; -1: all but the head."""
    thaw_every: float | None = None
    """Epochs after which one more group learns, from the head down; None: frozen throughout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopConfig:
    patience: int | None = None
    """Epochs without a better top-1 (or mAP) that are still borne with: one more, and the run ends; None: never."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """A loss or gradient that is no number: stop, or go back to the last checkpoint and leave that step out."""
    rollbacks: int = 3
    """How often a run goes back before it stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes, and how it is carried out."""

    recipe: str = ""
    """The recipe that it came from."""
    epochs: int = 10
    """Passes over the training images."""
    seed: int = 0
    """Of everything random; the same seed and config give the same weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which images, and how many at once."""
    model: ModelChoice = field(default_factory=ModelChoice)
    """Which architecture, and from where it starts."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to images."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How weights change."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How fast they change, over the run."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Their moving average."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """A teacher."""
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    """What does not learn."""
    stop: StopConfig = field(default_factory=StopConfig)
    """When a run ends before its time."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numbers in the model while training; auto: bf16 where the machine computes it fast."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a GPU, where there is one."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Over several processes, fsdp2: each keeps a part of the weights, their average and the optimiser's state."""
    compile: bool = False
    """torch.compile the model: a minute or more at the start, faster after it."""
    cuda_graphs: bool = True
    """On one GPU, record a step's kernels once and start them together: up to several times faster for small models.
    Without effect where optim.accumulate, precision=fp16 or model.grad_checkpointing are used."""
    save_every: float = 600.0
    """Seconds between checkpoints inside an epoch; one is written after every epoch anyhow."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where metrics go beside metrics.csv: tensorboard, wandb, mlflow (through accelerate)."""
