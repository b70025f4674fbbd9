"""RegNet: one row a checkpoint, and torchvision's layout."""

import re
from dataclasses import replace

from vertebra.spec import ModelConfig, Preprocess, State, Weights

_TORCHVISION = (
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (r"^fc\.", "head.fc."),
    (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", r"s\1.b#\2."),
    (r"\.proj\.0\.", ".downsample.conv."),
    (r"\.proj\.1\.", ".downsample.bn."),
    (r"\.f\.se\.", ".se."),
    (r"\.f\.a\.0\.", ".conv1.conv."),
    (r"\.f\.a\.1\.", ".conv1.bn."),
    (r"\.f\.b\.0\.", ".conv2.conv."),
    (r"\.f\.b\.1\.", ".conv2.bn."),
    (r"\.f\.c\.0\.", ".conv3.conv."),
    (r"\.f\.c\.1\.", ".conv3.bn."),
)


def adapt(state: State, config: ModelConfig) -> State:
    """Torchvision's names -> ours; its blocks count from 0."""
    if not any(key.startswith("trunk_output.") for key in state):
        return state
    return {_ours(key): value for key, value in state.items()}


def _ours(key: str) -> str:
    for pattern, name in _TORCHVISION:
        key = re.sub(pattern, name, key)
    return re.sub(r"#(\d+)", lambda found: str(int(found[1]) + 1), key)


_RA = Preprocess(crop_pct=0.95, test_input_size=(3, 288, 288), test_crop_pct=1.0, pool_size=(7, 7))
_Z = Preprocess(
    input_size=(3, 256, 256), crop_pct=1.0, test_input_size=(3, 320, 320), test_crop_pct=1.0, pool_size=(8, 8)
)
_TV2 = Preprocess(crop_pct=0.965, pool_size=(7, 7))
_FINE = Preprocess(input_size=(3, 384, 384), crop_pct=1.0, pool_size=(12, 12))
_TIMM = "https://github.com/huggingface/pytorch-image-models"
_TORCH, _VISSL = "https://download.pytorch.org/models/", "https://dl.fbaipublicfiles.com/vissl/model_zoo/"
_REGNET, _SWAG, _SEER = "arXiv:2003.13678", "arXiv:2201.08371", "arXiv:2202.08360"


def _timms(file: str | None, preprocess: Preprocess = _RA, classes: int = 1000, paper: str = _REGNET) -> Weights:
    url = f"{_TIMM}/releases/download/{file}" if file else None
    return Weights(url=url, license="apache-2.0", preprocess=preprocess, num_classes=classes, paper=paper, source=_TIMM)


def _torchvisions(file: str) -> Weights:
    """Its second recipe."""
    return Weights(
        url=_TORCH + file,
        license="bsd-3-clause",
        preprocess=_TV2,
        paper=_REGNET,
        source="https://github.com/pytorch/vision",
    )


def _swag(file: str) -> Weights:
    """Weakly supervised by hashtags; its head trained alone (`lc`), or all at 384 px."""
    return Weights(
        url=_TORCH + file,
        license="cc-by-nc-4.0",
        preprocess=_TV2 if "_lc_" in file else _FINE,
        paper=_SWAG,
        source="https://github.com/pytorch/vision",
    )


def _seer(file: str) -> Weights:
    """Trained without labels on photos from the web, or from there on ImageNet."""
    tuned = "finetuned" in file
    return Weights(
        url=_VISSL + file,
        license="seer-license",
        preprocess=_FINE if tuned else _TV2,
        num_classes=1000 if tuned else 0,
        paper=_SEER,
        source="https://github.com/facebookresearch/vissl",
    )


_UNTRAINED = Weights(license="apache-2.0", preprocess=_RA, paper=_REGNET, source=_TIMM)

_DEIT_TEACHER = Weights(
    url="https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth",
    license="apache-2.0",
    preprocess=_RA,
    paper="arXiv:2012.12877",
    source="https://github.com/facebookresearch/deit",
)

_LATER = {
    "regnetx_008.tv2_in1k": _torchvisions("regnet_x_800mf-94a99ebd.pth"),
    "regnetx_016.tv2_in1k": _torchvisions("regnet_x_1_6gf-a12f2b72.pth"),
    "regnetx_032.tv2_in1k": _torchvisions("regnet_x_3_2gf-7071aa85.pth"),
    "regnetx_080.tv2_in1k": _torchvisions("regnet_x_8gf-2b70d774.pth"),
    "regnetx_160.tv2_in1k": _torchvisions("regnet_x_16gf-ba3796d7.pth"),
    "regnetx_320.tv2_in1k": _torchvisions("regnet_x_32gf-6eb8fdc6.pth"),
    "regnetx_004_tv.tv2_in1k": _torchvisions("regnet_x_400mf-62229a5f.pth"),
    "regnety_004.tv2_in1k": _torchvisions("regnet_y_400mf-e6988f5f.pth"),
    "regnety_008_tv.tv2_in1k": _torchvisions("regnet_y_800mf-58fc7688.pth"),
    "regnety_016.tv2_in1k": _torchvisions("regnet_y_1_6gf-0d7bc02a.pth"),
    "regnety_080_tv.tv2_in1k": _torchvisions("regnet_y_8gf-dc2b1b54.pth"),
    "regnety_320.tv2_in1k": _torchvisions("regnet_y_32gf-8db6d4b5.pth"),
    "regnety_032.ra_in1k": _timms("v0.1-weights/regnety_032_ra-7f2439f9.pth"),
    "regnety_032.tv2_in1k": _torchvisions("regnet_y_3_2gf-9180c971.pth"),
    "regnety_040.ra3_in1k": _timms("v0.1-tpu-weights/regnety_040_ra3-670e1166.pth"),
    "regnety_064.ra3_in1k": _timms("v0.1-tpu-weights/regnety_064_ra3-aa26dc7d.pth"),
    "regnety_080.ra3_in1k": _timms("v0.1-tpu-weights/regnety_080_ra3-1fdc4344.pth"),
    "regnety_120.sw_in12k_ft_in1k": _timms(None),
    "regnety_120.sw_in12k": _timms(None, classes=11821),
    "regnety_160.sw_in12k_ft_in1k": _timms(None),
    "regnety_160.lion_in12k_ft_in1k": _timms(None),
    "regnety_160.sw_in12k": _timms(None, classes=11821),
    "regnety_160.swag_ft_in1k": _swag("regnet_y_16gf_swag-43afe44d.pth"),
    "regnety_160.swag_lc_in1k": _swag("regnet_y_16gf_lc_swag-f3ec0043.pth"),
    "regnety_160.tv2_in1k": _torchvisions("regnet_y_16gf-3e4a00f9.pth"),
    "regnety_320.seer": _seer("seer_regnet32d/seer_regnet32gf_model_iteration244000.torch"),
    "regnety_320.seer_ft_in1k": _seer(
        "seer_finetuned/seer_regnet32_finetuned_in1k_model_final_checkpoint_phase78.torch"
    ),
    "regnety_320.swag_ft_in1k": _swag("regnet_y_32gf_swag-04fdfa75.pth"),
    "regnety_320.swag_lc_in1k": _swag("regnet_y_32gf_lc_swag-e1583746.pth"),
    "regnety_640.seer_ft_in1k": _seer(
        "seer_finetuned/seer_regnet64_finetuned_in1k_model_final_checkpoint_phase78.torch"
    ),
    "regnety_640.seer": _seer("seer_regnet64/seer_regnet64gf_model_final_checkpoint_phase0.torch"),
    "regnety_1280.swag_ft_in1k": _swag("regnet_y_128gf_swag-c8ce3e52.pth"),
    "regnety_1280.swag_lc_in1k": _swag("regnet_y_128gf_lc_swag-cbe8ce12.pth"),
    "regnety_1280.seer_ft_in1k": _seer(
        "seer_finetuned/seer_regnet128_finetuned_in1k_model_final_checkpoint_phase78.torch"
    ),
    "regnety_1280.seer": _seer(
        "swav_ig1b_regnet128Gf_cnstant_bs32_node16_sinkhorn10_proto16k_syncBN64_warmup8k"
        "/model_final_checkpoint_phase0.torch"
    ),
    "regnety_2560.seer_ft_in1k": _seer(
        "seer_finetuned/seer_regnet256_finetuned_in1k_model_final_checkpoint_phase38.torch"
    ),
    "regnety_040_sgn.untrained": _UNTRAINED,
    "regnetv_040.ra3_in1k": _timms("v0.1-tpu-weights/regnetv_040_ra3-c248f51f.pth"),
    "regnetv_064.ra3_in1k": _timms("v0.1-tpu-weights/regnetv_064_ra3-530616c2.pth"),
    "regnetz_005.untrained": _UNTRAINED,
    "regnetz_040.ra3_in1k": _timms("v0.1-tpu-weights/regnetz_040_ra3-9007edf5.pth", _Z, paper="arXiv:2103.06877"),
    "regnetz_040_h.ra3_in1k": _timms("v0.1-tpu-weights/regnetz_040h_ra3-f594343b.pth", _Z, paper="arXiv:2103.06877"),
    "regnety_160.deit_in1k": _DEIT_TEACHER,
}
_PYCLS = {
    f"regnet{letter}_{size:03d}.pycls_in1k": Weights(
        license="mit",
        preprocess=Preprocess(pool_size=(7, 7)),
        paper=_REGNET,
        source="https://github.com/facebookresearch/pycls",
    )
    for letter in "xy"
    for size in (2, 4, 6, 8, 16, 32, 40, 64, 80, 120, 160, 320)
}


def _on_hub(name: str, row: Weights) -> Weights:
    return row if name.endswith(".untrained") else replace(row, hub=f"timm/{name}")


WEIGHTS = {name: _on_hub(name, row) for name, row in {**_LATER, **_PYCLS}.items()}
"""The first row of an architecture is the one that its bare name means."""
