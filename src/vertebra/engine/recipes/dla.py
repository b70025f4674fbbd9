"""DLA on ImageNet-1k as published: SGD, 120 epochs, batch 256, a tenth of the rate every 30 epochs.

Source     Yu et al., Deep Layer Aggregation, CVPR 2018 (arXiv:1707.06484), section 5.1.
Command    torchrun --nproc-per-node 8 -m vertebra train imagenet/ --model dla34 --recipe dla
Published  top-1 on ImageNet-1k at 224 pixels: dla46_c 64.9, dla34 74.6, dla60 77.0, dla102 78.0.
Expect     not yet run here from end to end.
"""

from vertebra.engine.config import AugmentConfig, DataConfig, ModelChoice, OptimConfig, RunConfig, ScheduleConfig


def config() -> RunConfig:
    return RunConfig(
        recipe="dla",
        epochs=120,
        data=DataConfig(batch_size=256, image_size=224),
        model=ModelChoice(name="dla34"),
        augment=AugmentConfig(color_jitter=0.4, interpolation="bilinear"),
        optim=OptimConfig(name="momentum", lr=0.1, lr_batch=256, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="step", decay_epochs=30, decay_rate=0.1),
    )
