"""transformers' wrappers of timm models. `python huggingface.py vertebra|timm`."""

import json
import sys
import tempfile
from typing import Any

if sys.argv[1] == "vertebra":
    from vertebra.compat import timm as stand_in

    stand_in.install()

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperImageProcessor,
    TimmWrapperModel,
)

PREPROCESS = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "crop_pct": 0.8,
    "interpolation": "bicubic",
}


def shapes(tensors: Any) -> list[list[int]]:
    return [list(t.shape) for t in tensors]


def backbone(name: str, image: torch.Tensor, **options: Any) -> dict[str, Any]:
    model = TimmBackbone(TimmBackboneConfig(backbone=name, **options))
    out = model.train()(image)
    sum(m.square().mean() for m in out.feature_maps).backward()
    return {
        "maps": shapes(out.feature_maps),
        "channels": list(model.channels),
        "stages": model.stage_names,
        "out_features": model.out_features,
        "trained": all(p.grad is not None for p in model.parameters() if p.requires_grad),
        "frozen": sorted({type(m).__name__ for m in model.modules() if "Frozen" in type(m).__name__}),
    }


def hidden(name: str, image: torch.Tensor, out_indices: list[int]) -> list[list[list[int]]]:
    """Shapes with all stages asked for: all, those that the model was made to return, and these without asking."""
    model = TimmBackbone(TimmBackboneConfig(backbone=name, out_indices=out_indices)).eval()
    out = model(image, output_hidden_states=True)
    return [shapes(out.hidden_states), shapes(out.feature_maps), shapes(model(image).feature_maps)]


def classifier(name: str, **model_args: Any) -> dict[str, Any]:
    size = model_args.get("img_size", 64)
    config = TimmWrapperConfig(architecture=name, num_labels=7, model_args=model_args or None)
    config.pretrained_cfg = {**PREPROCESS, "input_size": [3, size, size]}
    model = TimmWrapperForImageClassification(config).eval()
    photo = Image.radial_gradient("L").convert("RGB").resize((81, 97))
    pixels = TimmWrapperImageProcessor(config.pretrained_cfg)([photo, photo], return_tensors="pt").pixel_values
    out = model(pixels, labels=torch.tensor([0, 6]), output_hidden_states=True)
    out.loss.backward()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
    same = torch.allclose(again(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-5)
    return {
        "pixels": list(pixels.shape),
        "first": [round(v, 4) for v in pixels[0, :, 0, 0].tolist()],
        "logits": list(out.logits.shape),
        "hidden": shapes(out.hidden_states),
        "same after saving": same,
        "same pixels": torch.equal(processor(photo, return_tensors="pt").pixel_values, pixels[:1]),
    }


def run() -> dict[str, Any]:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 32, 64)
    features = TimmWrapperModel(TimmWrapperConfig(architecture="dla34")).eval()(image)
    labels = TimmWrapperConfig.from_dict({"architecture": "dla34", "num_classes": 1000}).id2label
    seen = {
        "dla34": backbone("dla34", image, out_indices=[2, 5]),
        "last": backbone("dla34", image),
        "frozen": backbone("dla34", image, freeze_batch_norm_2d=True),
        "cspdarknet53": backbone("cspdarknet53", image, out_indices=[1, -1], output_stride=16),
        "dpn68": backbone("dpn68", image, out_indices=[2, -1]),
        "classify dla34": classifier("dla34"),
        "classify vit": classifier("vit_tiny_patch16_224", img_size=32, depth=2),
        "embedding": [list(features.last_hidden_state.shape), list(features.pooler_output.shape)],
        "labels": [len(labels), labels[0].split(",")[0], labels[999].split(",")[0]],
        "hidden dla34": hidden("dla34", image, [2, 5]),
    }
    # The reference finds no stage whose name has a dot in it.
    if sys.argv[1] == "vertebra":
        seen |= {"hidden cspdarknet53": hidden("cspdarknet53", image, [1, 3])}
    return seen


if __name__ == "__main__":
    print(json.dumps(run()))  # noqa: T201
