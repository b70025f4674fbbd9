"""Train a small network from scratch on small images (32 to 128 pixels).

Command    vertebra train tiny-imagenet-100/ --model dla46_c --recipe small --set data.image_size=64
Method     SGD with Nesterov momentum, batch 128, one cycle to 0.4, TrivialAugment, smoothing, moving average,
           60 epochs.
Expect     as it stands, not yet run here from end to end. With a teacher and growing images it made dla46_c.tin100:
           63.0% on 100 classes, in 1.9 hours on 2 cores; docs/weights/ has the command, the curve, what else was tried.
Change     a teacher that knows the classes: distill.teacher=NAME distill.kind=soft distill.alpha=0.8
           distill.temperature=2, with distill.cache=DIR and without auto_augment; data.start_size=64
           data.image_size=128.
"""

from vertebra.engine.config import (
    AugmentConfig,
    DataConfig,
    EmaConfig,
    LossConfig,
    ModelChoice,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)


def config() -> RunConfig:
    return RunConfig(
        recipe="small",
        epochs=60,
        data=DataConfig(batch_size=128, image_size=64, crop_pct=1.0),
        model=ModelChoice(name="dla46_c"),
        augment=AugmentConfig(scale=(0.25, 1.0), auto_augment="trivial", interpolation="bilinear"),
        loss=LossConfig(smoothing=0.1),
        optim=OptimConfig(name="sgd", lr=0.4, lr_batch=128, weight_decay=5e-4, clip_norm=5.0),
        schedule=ScheduleConfig(kind="one_cycle", rise=0.2),
        ema=EmaConfig(decay=0.999),
    )
