"""Dual Path Networks (Chen et al., NIPS 2017, arXiv:1707.01629): one row a checkpoint."""

from vertebra.spec import DPN_MEAN, DPN_STD, Accuracy, Preprocess, Weights

_AUTHORS = Preprocess(mean=DPN_MEAN, std=DPN_STD, pool_size=(7, 7))
_RA = Preprocess(crop_pct=0.95, test_input_size=(3, 288, 288), test_crop_pct=1.0, pool_size=(7, 7))


def _row(name: str | None, preprocess: Preprocess, *accuracy: Accuracy) -> Weights:
    return Weights(
        hub=name and f"timm/{name}",
        license="apache-2.0",
        preprocess=preprocess,
        accuracy=accuracy,
        paper="arXiv:1707.01629",
        source="https://github.com/cypw/DPNs",
    )


WEIGHTS = {
    "dpn48b.untrained": _row(None, Preprocess(pool_size=(7, 7))),
    "dpn68.mx_in1k": _row("dpn68.mx_in1k", _AUTHORS, Accuracy(76.304, 92.994, 224)),
    "dpn68b.ra_in1k": _row("dpn68b.ra_in1k", _RA, Accuracy(79.342, 94.43, 288), Accuracy(78.546, 93.982, 224)),
    "dpn68b.mx_in1k": _row("dpn68b.mx_in1k", _AUTHORS, Accuracy(77.494, 93.834, 224)),
    "dpn92.mx_in1k": _row("dpn92.mx_in1k", _AUTHORS, Accuracy(80.032, 94.876, 224)),
    "dpn98.mx_in1k": _row("dpn98.mx_in1k", _AUTHORS, Accuracy(79.664, 94.644, 224)),
    "dpn107.mx_in1k": _row("dpn107.mx_in1k", _AUTHORS, Accuracy(80.166, 94.932, 224)),
    "dpn131.mx_in1k": _row("dpn131.mx_in1k", _AUTHORS, Accuracy(79.836, 94.708, 224)),
}
