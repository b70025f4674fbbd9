"""torchvision's FasterRCNN over a feature pyramid over `features_only`. `python detection.py vertebra|timm`."""

import importlib
import json
import sys
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

LIBRARY = importlib.import_module(sys.argv[1])


class Pyramid(nn.Module):
    """Named maps of equal depth, as FasterRCNN asks of a backbone."""

    out_channels = 32

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = LIBRARY.create_model(name, features_only=True, out_indices=(2, 3, 4, 5))
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self.body(x))))


def run() -> dict[str, Any]:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4)
    model = FasterRCNN(
        Pyramid("dla34"),
        num_classes=3,
        rpn_anchor_generator=anchors,
        min_size=64,
        max_size=96,
        box_detections_per_img=5,
    )
    images = [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
    targets = [{"boxes": torch.tensor([[4.0, 4, 40, 44]]), "labels": torch.tensor([n])} for n in (1, 2)]
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    body = list(model.backbone.body.parameters())
    with torch.no_grad():
        found = model.eval()(images[:1])
        maps = model.backbone(torch.zeros(1, 3, 64, 96))
    return {
        "losses": sorted(losses),
        "finite": bool(torch.stack(list(losses.values())).isfinite().all()),
        "trained": all(p.grad is not None for p in body),
        "keys": sorted(found[0]),
        "maps": [list(m.shape) for m in maps.values()],
    }


if __name__ == "__main__":
    print(json.dumps(run()))  # noqa: T201
