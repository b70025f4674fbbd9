"""Deep Layer Aggregation (Yu et al., CVPR 2018, arXiv:1707.06484): one row a checkpoint."""

from dataclasses import replace

from vertebra.spec import Accuracy, Preprocess, TrainedWith, Weights

_AUTHORS_RECIPE = TrainedWith(learning_rate=0.1, epochs=120, batch_size=256, momentum=0.9, weight_decay=1e-4)


def _row(
    name: str, file: str, top1: float, top5: float, recipe: TrainedWith | None = _AUTHORS_RECIPE
) -> tuple[str, Weights]:
    """A checkpoint of the authors, or (no recipe known) one of Res2Net's, which states no licence."""
    authors = recipe is not None
    releases = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-res2net/"
    return name, Weights(
        hub=f"timm/{name}",
        url=("http://dl.yf.io/dla/models/imagenet/" if authors else releases) + file,
        license="bsd-3-clause" if authors else "unknown",
        preprocess=Preprocess(interpolation="bilinear", pool_size=(7, 7)),
        accuracy=(Accuracy(top1, top5, 224),),
        paper="arXiv:1707.06484" if authors else "arXiv:1904.01169",
        source="https://github.com/ucbdrive/dla" if authors else "https://github.com/gasvn/Res2Net",
        trained_with=recipe,
    )


_OURS = (
    "dla46_c.tin100",
    Weights(
        file="dla46_c.tin100.safetensors",
        license="apache-2.0",
        num_classes=100,
        preprocess=Preprocess(input_size=(3, 128, 128), crop_pct=1.0, interpolation="bilinear"),
    ),
)
"""Trained by us, see docs/weights/; 100 classes of ImageNet, from photos of 64 x 64 pixels."""

WEIGHTS = dict(
    [
        _row("dla34.in1k", "dla34-ba72cf86.pth", 74.632, 92.052),
        _row("dla46_c.in1k", "dla46_c-2bfd52c3.pth", 64.88, 86.33),
        _OURS,
        _row("dla46x_c.in1k", "dla46x_c-d761bae7.pth", 66.008, 86.946),
        _row("dla60.in1k", "dla60-24839fc4.pth", 77.036, 93.316, replace(_AUTHORS_RECIPE, dropout=0.2)),
        _row("dla60_res2net.in1k", "res2net_dla60_4s-d88db7f9.pth", 78.48, 94.204, None),
        _row("dla60_res2next.in1k", "res2next_dla60_4s-d327927b.pth", 78.488, 94.144, None),
        _row("dla60x.in1k", "dla60x-d15cacda.pth", 78.234, 94.022),
        _row("dla60x_c.in1k", "dla60x_c-b870c45c.pth", 67.928, 88.426),
        _row("dla102.in1k", "dla102-d94d9790.pth", 78.016, 93.952),
        _row("dla102x.in1k", "dla102x-ad62be81.pth", 78.516, 94.226),
        _row("dla102x2.in1k", "dla102x2-262837b6.pth", 79.448, 94.654),
        _row("dla169.in1k", "dla169-0914e092.pth", 78.702, 94.334),
    ]
)
