"""Google's `.npz` checkpoints: names and axes as JAX has them, read as the reference implementation reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

import vertebra
from vertebra import WeightsError

DIM, HEADS, MLP, BLOCKS, CLASSES = 192, 3, 768, 2, 7


def checkpoint() -> dict[str, NDArray[np.float32]]:
    """A two-block ViT-Tiny in the authors' layout: (h, w, c, d) kernels, heads apart, inputs before outputs."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, DIM),
        "embedding/kernel": (16, 16, 3, DIM),
        "embedding/bias": (DIM,),
        "Transformer/posembed_input/pos_embedding": (1, 197, DIM),
        "Transformer/encoder_norm/scale": (DIM,),
        "Transformer/encoder_norm/bias": (DIM,),
        "head/kernel": (DIM, CLASSES),
        "head/bias": (CLASSES,),
    }
    for number in range(BLOCKS):
        block = f"Transformer/encoderblock_{number}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (DIM, HEADS, DIM // HEADS)
            shapes[f"{attention}/{part}/bias"] = (HEADS, DIM // HEADS)
        shapes |= {
            f"{attention}/out/kernel": (HEADS, DIM // HEADS, DIM),
            f"{attention}/out/bias": (DIM,),
            f"{block}/LayerNorm_0/scale": (DIM,),
            f"{block}/LayerNorm_0/bias": (DIM,),
            f"{block}/LayerNorm_2/scale": (DIM,),
            f"{block}/LayerNorm_2/bias": (DIM,),
            f"{block}/MlpBlock_3/Dense_0/kernel": (DIM, MLP),
            f"{block}/MlpBlock_3/Dense_0/bias": (MLP,),
            f"{block}/MlpBlock_3/Dense_1/kernel": (MLP, DIM),
            f"{block}/MlpBlock_3/Dense_1/bias": (DIM,),
        }
    random = np.random.default_rng(0)
    return {key: random.normal(0, 0.1, shape).astype(np.float32) for key, shape in shapes.items()}


def save(path: Path, **changes: NDArray[np.float32]) -> Path:
    arrays: Any = {**checkpoint(), **changes}
    np.savez(path, **arrays)
    return path


def test_every_tensor_is_the_reference_implementations(tmp_path: Path) -> None:
    file = save(tmp_path / "Ti_16.npz")
    theirs: Any = timm.create_model("vit_tiny_patch16_224", depth=BLOCKS, num_classes=CLASSES).eval()
    theirs.load_pretrained(str(file))
    ours = vertebra.create_model("vit_tiny_patch16_224", depth=BLOCKS, num_classes=CLASSES, checkpoint_path=file).eval()
    wanted, found = theirs.state_dict(), ours.state_dict()
    assert list(wanted) == list(found)
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key
    assert ours.load_report.reinitialised == []
    assert "blocks.1.attn.qkv.weight" not in ours.load_report.dropped
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours(image), theirs(image), atol=1e-5)


def test_another_size_and_another_head(tmp_path: Path) -> None:
    file = save(tmp_path / "Ti_16.npz")
    model = vertebra.create_model(
        "vit_tiny_patch16_224",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "num_classes": CLASSES},
        depth=BLOCKS,
        num_classes=3,
        img_size=96,
    )
    assert model.pos_embed.shape == (1, 37, DIM)
    assert model.load_report.resized == ["pos_embed"]
    assert model.load_report.reinitialised == ["head.weight", "head.bias"]


def test_a_foreign_array_is_named(tmp_path: Path) -> None:
    file = save(tmp_path / "Ti_16.npz", **{"Transformer/encoderblock_0/Surprise/kernel": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match="Surprise"):
        vertebra.create_model("vit_tiny_patch16_224", depth=BLOCKS, num_classes=CLASSES, checkpoint_path=file)
