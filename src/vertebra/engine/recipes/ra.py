"""RandAugment and RMSpropTF, as convolutional networks of the EfficientNet era are trained; CSPNet, RegNet.

Source     Cubuk et al., RandAugment (arXiv:1909.13719); Tan and Le, EfficientNet (arXiv:1905.11946).
Method     RMSprop as TensorFlow computes it, 0.016 for batch 256, staircase of 0.97 every 2.4 epochs after 3 of
           warm-up, rand-m9-mstd0.5, erasing, smoothing, dropout and stochastic depth 0.2, moving average; 450 epochs.
Command    torchrun --nproc-per-node 8 -m vertebra train imagenet/ --model cspresnet50 --recipe ra
Expect     not yet run here from end to end.
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
        recipe="ra",
        epochs=450,
        data=DataConfig(batch_size=768, image_size=224),
        model=ModelChoice(name="cspresnet50", drop_rate=0.2, drop_path_rate=0.2),
        augment=AugmentConfig(auto_augment="rand-m9-mstd0.5", re_prob=0.2),
        loss=LossConfig(smoothing=0.1),
        optim=OptimConfig(
            name="rmsproptf",
            lr=0.016,
            lr_batch=256,
            weight_decay=1e-5,
            options={"momentum": 0.9, "alpha": 0.9, "eps": 1e-3},
        ),
        schedule=ScheduleConfig(kind="step", decay_epochs=2.4, decay_rate=0.97, warmup_epochs=3),
        ema=EmaConfig(decay=0.9999),
    )
