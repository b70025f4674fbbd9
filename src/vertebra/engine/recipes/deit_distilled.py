"""DeiT with a distillation token: as `deit`, and a convolutional teacher's best class for the second head.

Source     Touvron et al., ICML 2021 (arXiv:2012.12877), section 4: hard distillation, a RegNetY-16GF as teacher.
Command    torchrun --nproc-per-node 8 -m vertebra train imagenet/ --model deit_tiny_distilled_patch16_224
           --recipe deit-distilled --set distill.teacher=regnety_160.deit_in1k --set data.names=names.csv
           names.csv: folder and name, as the teacher calls its classes, where folders are synsets (n01440764)
Published  top-1 on ImageNet-1k at 224 pixels: tiny 74.5, small 81.2, base 83.4.
Expect     not yet run here from end to end.
"""

from dataclasses import replace

from vertebra.engine.config import DistillConfig, ModelChoice, RunConfig
from vertebra.engine.recipes import deit


def config() -> RunConfig:
    return replace(
        deit.config(),
        recipe="deit-distilled",
        model=ModelChoice(name="deit_small_distilled_patch16_224", drop_path_rate=0.1),
        distill=DistillConfig(teacher="regnety_160.deit_in1k", kind="hard", alpha=0.5),
    )
