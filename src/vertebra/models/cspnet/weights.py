"""One row a checkpoint. timm's author trained them all; the papers' authors published none in this layout."""

from dataclasses import replace

from vertebra.spec import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, Accuracy, Preprocess, Weights

_RELEASES = "https://github.com/rwightman/pytorch-image-models/releases/download/"


def _row(
    file: str | None,
    *accuracy: Accuracy,
    interpolation: str = "bicubic",
    crop_pct: float = 0.887,
    test: tuple[int, float] | None = None,
    half: bool = False,
) -> Weights:
    """A row but for what its name says: the hub's repository and the paper.

    `file`: below the releases' address, None where there is none. `test`: size and crop at which the checkpoint answers
    best. `half`: mean and standard deviation are 0.5.
    """
    return Weights(
        url=_RELEASES + file if file else None,
        license="apache-2.0",
        preprocess=Preprocess(
            input_size=(3, 256, 256),
            crop_pct=crop_pct,
            interpolation=interpolation,
            mean=INCEPTION_MEAN if half else IMAGENET_MEAN,
            std=INCEPTION_STD if half else IMAGENET_STD,
            test_input_size=(3, test[0], test[0]) if test else None,
            test_crop_pct=test[1] if test else None,
            pool_size=(8, 8),
        ),
        accuracy=accuracy,
        source="https://github.com/huggingface/pytorch-image-models",
    )


def _named(name: str, row: Weights) -> Weights:
    dark = name.startswith(("darknet", "sedarknet"))
    hub = None if name.endswith(".untrained") else f"timm/{name}"
    return replace(row, hub=hub, paper="arXiv:1804.02767" if dark else "arXiv:1911.11929")


_ROWS = {
    "cspresnet50.ra_in1k": _row(
        "v0.1-weights/cspresnet50_ra-d3e8d487.pth", Accuracy(79.578, 94.698, 256), interpolation="bilinear"
    ),
    "cspresnet50d.untrained": _row(None, interpolation="bilinear"),
    "cspresnet50w.untrained": _row(None, interpolation="bilinear"),
    "cspresnext50.ra_in1k": _row(
        "v0.1-weights/cspresnext50_ra_224-648b4713.pth", Accuracy(80.548, 95.33, 256), interpolation="bilinear"
    ),
    "cspdarknet53.ra_in1k": _row(
        "v0.1-weights/cspdarknet53_ra_256-d05c7c21.pth", Accuracy(80.078, 95.06, 256), interpolation="bilinear"
    ),
    "darknet17.untrained": _row(None, interpolation="bilinear"),
    "darknet21.untrained": _row(None, interpolation="bilinear"),
    "sedarknet21.untrained": _row(None, interpolation="bilinear"),
    "darknet53.c2ns_in1k": _row(
        "v0.1-tpu-weights/darknet53_256_c2ns-3aeff817.pth",
        Accuracy(80.542, 95.428, 288),
        Accuracy(80.008, 95.046, 256),
        test=(288, 1.0),
    ),
    "darknetaa53.c2ns_in1k": _row(
        "v0.1-tpu-weights/darknetaa53_c2ns-5c28ec8a.pth",
        Accuracy(80.528, 95.328, 288),
        Accuracy(79.754, 94.904, 256),
        interpolation="bilinear",
        test=(288, 1.0),
    ),
    "cs3darknet_s.untrained": _row(None),
    "cs3darknet_m.c2ns_in1k": _row(
        "v0.1-tpu-weights/cs3darknet_m_c2ns-43f06604.pth",
        Accuracy(77.636, 94.016, 288),
        Accuracy(76.974, 93.582, 256),
        test=(288, 0.95),
    ),
    "cs3darknet_l.c2ns_in1k": _row(
        "v0.1-tpu-weights/cs3darknet_l_c2ns-16220c5d.pth",
        Accuracy(80.882, 95.662, 288),
        Accuracy(80.35, 95.304, 256),
        test=(288, 0.95),
    ),
    "cs3darknet_x.c2ns_in1k": _row(
        "v0.1-tpu-weights/cs3darknet_x_c2ns-4e4490aa.pth",
        Accuracy(82.234, 96.234, 288),
        Accuracy(81.856, 95.956, 256),
        crop_pct=0.95,
        test=(288, 1.0),
    ),
    "cs3darknet_focus_s.ra4_e3600_r256_in1k": _row(
        None, Accuracy(73.158, 91.458, 320), Accuracy(72.178, 90.83, 256), test=(320, 1.0), half=True
    ),
    "cs3darknet_focus_m.c2ns_in1k": _row(
        "v0.1-tpu-weights/cs3darknet_focus_m_c2ns-e23bed41.pth",
        Accuracy(77.286, 93.966, 288),
        Accuracy(76.754, 93.55, 256),
        test=(288, 0.95),
    ),
    "cs3darknet_focus_l.c2ns_in1k": _row(
        "v0.1-tpu-weights/cs3darknet_focus_l_c2ns-65ef8888.pth",
        Accuracy(80.894, 95.674, 288),
        Accuracy(80.254, 95.294, 256),
        test=(288, 0.95),
    ),
    "cs3darknet_focus_x.untrained": _row(None),
    "cs3sedarknet_l.c2ns_in1k": _row(
        "v0.1-tpu-weights/cs3sedarknet_l_c2ns-e8d1dc13.pth",
        Accuracy(81.77, 95.962, 288),
        Accuracy(81.208, 95.798, 256),
        test=(288, 0.95),
    ),
    "cs3sedarknet_x.c2ns_in1k": _row(
        "v0.1-tpu-weights/cs3sedarknet_x_c2ns-b4d0abc0.pth",
        Accuracy(82.654, 96.348, 288),
        Accuracy(81.926, 96.022, 256),
        test=(288, 1.0),
    ),
    "cs3sedarknet_xdw.untrained": _row(None),
    "cs3edgenet_x.c2_in1k": _row(
        "v0.1-tpu-weights/cs3edgenet_x_c2-2e1610a9.pth",
        Accuracy(82.734, 96.374, 288),
        Accuracy(82.198, 95.956, 256),
        test=(288, 1.0),
    ),
    "cs3se_edgenet_x.c2ns_in1k": _row(
        "v0.1-tpu-weights/cs3se_edgenet_x_c2ns-76f8e3ac.pth",
        Accuracy(83.55, 96.662, 320),
        Accuracy(82.768, 96.306, 256),
        crop_pct=0.95,
        test=(320, 1.0),
    ),
}

WEIGHTS = {name: _named(name, row) for name, row in _ROWS.items()}
