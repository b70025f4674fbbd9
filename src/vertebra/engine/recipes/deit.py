"""DeiT on ImageNet-1k as published: AdamW, 300 epochs, batch 1024, heavy augmentation, repeated three times.

Source     Touvron et al., ICML 2021 (arXiv:2012.12877), table 9.
Command    torchrun --nproc-per-node 8 -m vertebra train imagenet/ --model deit_small_patch16_224 --recipe deit
Published  top-1 on ImageNet-1k at 224 pixels: tiny 72.2, small 79.8, base 81.8.
Expect     not yet run here from end to end.
"""

from vertebra.engine.config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    ModelChoice,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)


def config() -> RunConfig:
    return RunConfig(
        recipe="deit",
        epochs=300,
        data=DataConfig(batch_size=1024, image_size=224),
        model=ModelChoice(name="deit_small_patch16_224", drop_path_rate=0.1),
        augment=AugmentConfig(
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            re_prob=0.25,
            repeats=3,
            mixup=0.8,
            cutmix=1.0,
        ),
        loss=LossConfig(smoothing=0.1),
        optim=OptimConfig(name="adamw", lr=5e-4, lr_batch=512, weight_decay=0.05),
        schedule=ScheduleConfig(kind="cosine", warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5),
    )
