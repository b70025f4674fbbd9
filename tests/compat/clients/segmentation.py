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


def step(model: torch.nn.Module, height: int, width: int, channels: int = 3) -> dict[str, Any]:
    """A training step's worth: the shapes that come out, and the parameters that no gradient reached."""
    maps = list[list[int]]()
    model.encoder.register_forward_hook(lambda _module, _inputs, out: maps.extend(list(m.shape) for m in out))
    out = model.train()(torch.randn(2, channels, height, width))
    out.square().mean().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    return {"out": list(out.shape), "maps": maps, "channels": model.encoder.out_channels, "dead": dead}


def refusal(encoder: str) -> str:
    """What a user is told who asks for an encoder that vertebra has no parts for."""
    try:
        smp.Unet(encoder, encoder_weights=None)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "created"


def run() -> dict[str, Any]:
    torch.manual_seed(0)
    seen = dict[str, Any]()
    for name in ENCODERS:
        # The reference can dilate only one of the three.
        strides = (8, 16, 32) if sys.argv[1] == "vertebra" or name == "cspdarknet53" else (32,)
        for stride in strides:
            options = {} if stride == 32 else {"output_stride": stride}
            unet = smp.Unet(f"tu-{name}", encoder_weights=None, classes=2, decoder_channels=(16, 8, 8, 4, 4), **options)
            seen[f"unet {name} {stride}"] = step(unet, 32, 64)
        for stride in strides[:-1]:
            deeplab = smp.DeepLabV3Plus(
                f"tu-{name}", encoder_weights=None, classes=2, encoder_output_stride=stride, decoder_channels=16
            )
            seen[f"deeplab {name} {stride}"] = step(deeplab, 64, 32)
        params = smp.encoders.get_preprocessing_params(f"tu-{name}")
        seen[f"preprocessing {name}"] = {key: list(params[key]) for key in ("mean", "std")}
    gray = smp.Unet("tu-dla34", encoder_weights=None, in_channels=1, decoder_channels=(16, 8, 8, 4, 4))
    seen["gray"] = step(gray, 32, 32, channels=1)
    # Not a `tu-` encoder: its own transformer, built of the layers that it takes from timm.
    seen["mit_b0"] = step(
        smp.Segformer("mit_b0", encoder_weights=None, classes=2, decoder_segmentation_channels=8), 64, 32
    )
    if sys.argv[1] == "vertebra":
        seen["refusals"] = {name: refusal(name) for name in ("timm-efficientnet-b0", "timm-skresnet18", "tu-resnet18")}
    return seen


if __name__ == "__main__":
    print(json.dumps(run()))  # noqa: T201
