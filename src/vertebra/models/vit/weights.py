"""Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929): checkpoints, and Google's layout."""

import re

import torch
from torch import Tensor

from vertebra.spec import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    ModelConfig,
    Preprocess,
    State,
    Weights,
)

_NAMES = {
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
_IN_BLOCK = (
    (r"LayerNorm_0/(scale|bias)", "norm1"),
    (r"LayerNorm_[12]/(scale|bias)", "norm2"),
    (r"MultiHeadDotProductAttention_\d/out/(kernel|bias)", "attn.proj"),
    (r"MlpBlock_\d/Dense_0/(kernel|bias)", "mlp.fc1"),
    (r"MlpBlock_\d/Dense_1/(kernel|bias)", "mlp.fc2"),
)
_KIND = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _transposed(value: Tensor) -> Tensor:
    """JAX's order of axes, inputs before outputs -> torch's."""
    if value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    return value.t().contiguous() if value.ndim == 2 else value


def _block_name(block: str, rest: str) -> str | None:
    for pattern, name in _IN_BLOCK:
        if found := re.fullmatch(pattern, rest):
            return f"blocks.{block}.{name}.{_KIND[found.group(1)]}"
    return None


def adapt(state: State, config: ModelConfig) -> State:
    """Google's JAX checkpoints (`Transformer/encoderblock_0/...`) -> our names; others as they are."""
    if "embedding/kernel" not in state:
        return state
    out: State = {}
    for key, value in state.items():
        found = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", key)
        if key in _NAMES:
            out[_NAMES[key]] = value if value.ndim == 3 else _transposed(value)
        elif found is None:
            out[key] = value
        elif part := re.fullmatch(r"(MultiHeadDotProductAttention_\d)/query/(kernel|bias)", found.group(2)):
            stem = f"Transformer/encoderblock_{found.group(1)}/{part.group(1)}"
            three = [state[f"{stem}/{name}/{part.group(2)}"] for name in ("query", "key", "value")]
            # (d, heads, d/heads) kernels and (heads, d/heads) biases, stacked as one product with rows q, k, v.
            rows = [t.flatten(1).t() if part.group(2) == "kernel" else t.flatten() for t in three]
            out[f"blocks.{found.group(1)}.attn.qkv.{_KIND[part.group(2)]}"] = torch.cat(rows).contiguous()
        elif not re.fullmatch(r"MultiHeadDotProductAttention_\d/(key|value)/(kernel|bias)", found.group(2)):
            name = _block_name(found.group(1), found.group(2))
            flat = value.flatten(0, 1) if value.ndim == 3 else value
            out[name or key] = _transposed(flat) if name else value
    return out


_AUGREG = "https://storage.googleapis.com/vit_models/augreg/"
_DINO = "https://dl.fbaipublicfiles.com/dino/"


_HALF = Preprocess(crop_pct=0.9, mean=INCEPTION_MEAN, std=INCEPTION_STD, fixed_input_size=True)
_IMAGENET = Preprocess(crop_pct=0.9, mean=IMAGENET_MEAN, std=IMAGENET_STD, fixed_input_size=True)
_CLIP = Preprocess(
    crop_pct=1.0,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    fixed_input_size=True,
)


def _row(
    name: str,
    url: str | None,
    paper: str,
    source: str,
    *,
    classes: int = 1000,
    license: str | None = "apache-2.0",  # noqa: A002 - the row's own field
    preprocess: Preprocess = _HALF,
) -> tuple[str, Weights]:
    return name, Weights(
        hub=f"timm/{name}",
        url=url,
        license=license,
        preprocess=preprocess,
        num_classes=classes,
        paper=paper,
        source=source,
    )


_GOOGLE = "https://github.com/google-research/vision_transformer"
_AUGREG_PAPER = "arXiv:2106.10270"
_VIT_PAPER = "arXiv:2010.11929"

WEIGHTS = dict(
    [
        _row(
            "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
            _AUGREG
            + "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224.npz",
            _AUGREG_PAPER,
            _GOOGLE,
        ),
        _row(
            "vit_tiny_patch16_224.augreg_in21k",
            _AUGREG + "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz",
            _AUGREG_PAPER,
            _GOOGLE,
            classes=21843,
        ),
        _row(
            "vit_small_patch16_224.augreg_in21k_ft_in1k",
            _AUGREG
            + "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224.npz",
            _AUGREG_PAPER,
            _GOOGLE,
        ),
        _row(
            "vit_small_patch16_224.augreg_in1k",
            _AUGREG
            + "S_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224.npz",
            _AUGREG_PAPER,
            _GOOGLE,
        ),
        _row(
            "vit_small_patch16_224.augreg_in21k",
            _AUGREG + "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.npz",
            _AUGREG_PAPER,
            _GOOGLE,
            classes=21843,
        ),
        _row(
            "vit_small_patch16_224.dino",
            _DINO + "dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
            "arXiv:2104.14294",
            "https://github.com/facebookresearch/dino",
            classes=0,
            preprocess=_IMAGENET,
        ),
        _row("vit_base_patch16_224.augreg2_in21k_ft_in1k", None, _AUGREG_PAPER, _GOOGLE),
        _row(
            "vit_base_patch16_224.augreg_in21k_ft_in1k",
            _AUGREG
            + "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224.npz",
            _AUGREG_PAPER,
            _GOOGLE,
        ),
        _row(
            "vit_base_patch16_224.orig_in21k_ft_in1k",
            "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/jx_vit_base_p16_224-80ecf9dd.pth",
            _VIT_PAPER,
            _GOOGLE,
        ),
        _row(
            "vit_base_patch16_224.augreg_in1k",
            _AUGREG
            + "B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_224.npz",
            _AUGREG_PAPER,
            _GOOGLE,
        ),
        _row("vit_base_patch16_224.orig_in21k", None, _VIT_PAPER, _GOOGLE, classes=0),
        _row(
            "vit_base_patch16_224.augreg_in21k",
            _AUGREG + "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz",
            _AUGREG_PAPER,
            _GOOGLE,
            classes=21843,
        ),
        _row(
            "vit_base_patch16_224.sam_in1k",
            "https://storage.googleapis.com/vit_models/sam/ViT-B_16.npz",
            "arXiv:2106.01548",
            _GOOGLE,
        ),
        _row(
            "vit_base_patch16_224.bamboo",
            None,
            "arXiv:2203.07845",
            "https://github.com/ZhangYuanhan-AI/Bamboo",
            classes=115217,
            license=None,
            preprocess=_CLIP,
        ),
        _row(
            "vit_base_patch16_224.dino",
            _DINO + "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
            "arXiv:2104.14294",
            "https://github.com/facebookresearch/dino",
            classes=0,
            preprocess=_IMAGENET,
        ),
        _row(
            "vit_base_patch16_224.mae",
            "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth",
            "arXiv:2111.06377",
            "https://github.com/facebookresearch/mae",
            classes=0,
            license="cc-by-nc-4.0",
            preprocess=_IMAGENET,
        ),
    ]
)
