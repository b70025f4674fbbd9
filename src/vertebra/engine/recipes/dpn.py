"""DPN on ImageNet-1k: SGD with Nesterov momentum and polynomial decay, after the authors' description.

Source     Chen et al., Dual Path Networks, NeurIPS 2017 (arXiv:1707.01629), section 4.
Method     0.1 for batch 256, weight decay 1e-4, 120 epochs.
Command    torchrun --nproc-per-node 8 -m vertebra train imagenet/ --model dpn68 --recipe dpn
Published  the authors' checkpoints, top-1 on ImageNet-1k at 224 pixels: dpn68 76.3, dpn92 80.0, dpn98 79.7.
Expect     not yet run here from end to end.
"""

from vertebra.engine.config import AugmentConfig, DataConfig, ModelChoice, OptimConfig, RunConfig, ScheduleConfig


def config() -> RunConfig:
    return RunConfig(
        recipe="dpn",
        epochs=120,
        data=DataConfig(batch_size=256, image_size=224),
        model=ModelChoice(name="dpn68"),
        augment=AugmentConfig(color_jitter=0.4, interpolation="bicubic"),
        optim=OptimConfig(name="sgd", lr=0.1, lr_batch=256, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="poly", power=1.0, warmup_epochs=1),
    )
