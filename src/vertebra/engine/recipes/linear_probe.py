"""Learn only the classifier on top of a frozen checkpoint: the quickest answer, and a measure of its features.

Command    vertebra train photos/ --model deit_tiny_patch16_224 --recipe linear-probe
Method     AdamW on the head alone, cosine, flips and mild crops, 20 epochs; a third of fine-tuning's time an epoch.
Expect     less accuracy than `finetune` where classes have tens of photos or more; not measured here yet.
"""

from vertebra.engine.config import (
    AugmentConfig,
    DataConfig,
    FreezeConfig,
    ModelChoice,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)


def config() -> RunConfig:
    return RunConfig(
        recipe="linear-probe",
        epochs=20,
        data=DataConfig(batch_size=64),
        model=ModelChoice(pretrained=True),
        augment=AugmentConfig(scale=(0.5, 1.0), interpolation="bicubic"),
        optim=OptimConfig(name="adamw", lr=3e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="cosine", warmup_epochs=1),
        freeze=FreezeConfig(depth=-1),
    )
