"""DPN on ImageNet-1k: SGD with momentum, a rate that falls in steps, after the authors' description.

Source     Chen et al., Dual Path Networks, NeurIPS 2017 (arXiv:1707.01629), section 4; github.com/cypw/DPNs.
Method     theirs: 0.316, the root of 0.1, for batch 1280 (dpn98: 0.4), a tenth of it at each step; crops of 8% to 100%
           of the area, mirrored, bicubic.
           Ours, as they do not say: momentum 0.9, weight decay 1e-4, 120 epochs with a step every 30, a rate in
           proportion to the batch, dpn68 as dpn92. Their colours change in HSL, these by jitter; they refine
           BatchNorm's statistics after the training, and this does not.
Command    torchrun --nproc-per-node 8 -m vertebra train imagenet/ --model dpn68 --recipe dpn
Published  by the authors, top-1 at 224 pixels, of ImageNet-1k alone: dpn68 76.4, dpn92 79.3, dpn98 79.9, dpn131 80.1.
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
        optim=OptimConfig(name="momentum", lr=0.316, lr_batch=1280, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="step", decay_epochs=30, decay_rate=0.1),
    )
