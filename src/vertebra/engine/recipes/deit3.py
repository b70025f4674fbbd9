"""DeiT III on ImageNet-1k as published but for stochastic depth: LAMB, BCE, 3-Augment, 800 epochs, batch 2048.

Source     Touvron et al., ECCV 2022 (arXiv:2204.07118), table 1; github.com/facebookresearch/deit: README_revenge.md,
           and models_v2.py, where layer scale starts at 1e-4.
Differs    stochastic depth rises linearly with the depth to 0.05 here; theirs is 0.05 in every block.
Change     model.options=null for an architecture without layer scale.
Command    torchrun --nproc-per-node 8 -m vertebra train imagenet/ --model deit3_small_patch16_224 --recipe deit3
Published  top-1 on ImageNet-1k at 224 pixels: small 81.4 (larger ones train at 192 pixels first).
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
        recipe="deit3",
        epochs=800,
        data=DataConfig(batch_size=2048, image_size=224, crop_pct=1.0),
        model=ModelChoice(name="deit3_small_patch16_224", drop_path_rate=0.05, options={"init_values": 1e-4}),
        augment=AugmentConfig(
            auto_augment="3a", color_jitter=0.3, interpolation="bicubic", repeats=3, mixup=0.8, cutmix=1.0
        ),
        loss=LossConfig(kind="bce", target_threshold=0.0, sum_classes=False),
        optim=OptimConfig(name="lamb", lr=4e-3, lr_batch=2048, weight_decay=0.05, clip_norm=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5),
    )
