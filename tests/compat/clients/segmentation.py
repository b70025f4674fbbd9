"""segmentation_models_pytorch's `tu-` encoders, forward and backward. `python segmentation.py vertebra|timm`."""

import json
import sys
from typing import Any

if sys.argv[1] == "vertebra":
    from vertebra.compat import timm as stand_in

    stand_in.install()

import segmentation_models_pytorch as smp
import torch

ENCODERS = ("dla34", "cspdarknet53", "dpn68")


def step(model: torch.nn.Module, height: int, width: int) -> dict[str, Any]:
    """One training step's worth: what comes out, and which parameters no gradient reached."""
    out = model.train()(torch.randn(2, 3, height, width))
    out.square().mean().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    return {"out": list(out.shape), "features": model.encoder.out_channels, "dead": dead}


def run() -> dict[str, Any]:
    torch.manual_seed(0)
    seen = dict[str, Any]()
    for name in ENCODERS:
        # The reference's DLA knows no dilation; ours does.
        strides = (32,) if (sys.argv[1], name) == ("timm", "dla34") else (8, 16, 32)
        for stride in strides:
            options = {} if stride == 32 else {"output_stride": stride}
            unet = smp.Unet(f"tu-{name}", encoder_weights=None, classes=2, decoder_channels=(16, 8, 8, 4, 4), **options)
            seen[f"unet {name} {stride}"] = step(unet, 32, 64)
            maps = unet.eval().encoder(torch.zeros(1, 3, 64, 96))
            seen[f"unet {name} {stride}"]["maps"] = [list(m.shape) for m in maps]
        for stride in strides[:-1]:
            deeplab = smp.DeepLabV3Plus(
                f"tu-{name}", encoder_weights=None, classes=2, encoder_output_stride=stride, decoder_channels=16
            )
            seen[f"deeplab {name} {stride}"] = step(deeplab, 64, 32)
        params = smp.encoders.get_preprocessing_params(f"tu-{name}")
        seen[f"preprocessing {name}"] = {key: list(params[key]) for key in ("mean", "std")}
    gray = smp.Unet("tu-dla34", encoder_weights=None, in_channels=1, decoder_channels=(16, 8, 8, 4, 4)).eval()
    seen["gray"] = list(gray(torch.zeros(1, 1, 32, 32)).shape)
    # Not a `tu-` encoder: its own transformer, built of the layers that it takes from timm.
    seen["mit_b0"] = step(
        smp.Segformer("mit_b0", encoder_weights=None, classes=2, decoder_segmentation_channels=8), 64, 32
    )
    return seen


if __name__ == "__main__":
    print(json.dumps(run()))  # noqa: T201
