"""Does the fast model answer as eager f32 does? Cosine of the logits and agreement of the first class.

b batch, k classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from vertebra.spec import VertebraError


@dataclass(frozen=True, slots=True)
class Bound:
    """Logits are compared with their mean over the classes taken away: a common shift says nothing."""

    cosine: float
    """Least cosine of any image's logits."""
    agreement: float
    """Least share of images whose first class stays, of those where eager f32 is sure of it."""
    margin: float
    """Sure: it prefers its first class to its second by more than this probability."""


BOUNDS = {
    "f32": Bound(cosine=0.9999, agreement=1.0, margin=1e-3),
    "bf16": Bound(cosine=0.99, agreement=1.0, margin=0.1),
    "int8": Bound(cosine=0.9, agreement=0.9, margin=0.2),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """How near the answers lay."""

    cosine: float
    agreement: float
    sure: int
    """Images that `agreement` counts."""
    images: int

    def __str__(self) -> str:
        return (
            f"cosine {self.cosine:.6f}, first class kept on {self.agreement:.1%} of {self.sure} clear"
            f" among {self.images} images"
        )


class VerificationError(VertebraError):
    """A fast model whose answers lie too far from eager f32's; it is not handed out."""

    def __init__(self, what: str, figures: Figures, bound: Bound) -> None:
        super().__init__(
            f"{what} does not answer as eager f32: {figures}; allowed: cosine from {bound.cosine}, agreement from"
            f" {bound.agreement:.0%}. Choose another dtype or backend, or report this"
        )
        self.figures = figures
        self.bound = bound


@torch.no_grad()
def compare(expected: Tensor, found: Tensor, bound: Bound, *, classes: bool) -> Figures:
    """Row by row; `classes` False: embeddings, which have no first class. NaN makes a cosine of NaN."""
    assert expected.shape == found.shape, (expected.shape, found.shape)
    a, b = (t.detach().cpu().double().flatten(1) for t in (expected, found))
    if classes and a.shape[1] > 2:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = a.norm(dim=1) * b.norm(dim=1)
    same = (a - b).abs().amax(1) == 0  # a row of zeros has no direction, and may still be right
    cosine = float(torch.where(same, torch.ones_like(norms), (a * b).sum(1) / norms).min())
    if not classes or a.shape[1] < 2:
        return Figures(cosine, 1.0, 0, len(a))
    best = a.softmax(1).topk(2, dim=1).values
    sure = best[:, 0] - best[:, 1] > bound.margin
    kept = (a.argmax(1) == b.argmax(1))[sure]
    return Figures(cosine, float(kept.double().mean()) if len(kept) else 1.0, len(kept), len(a))


def check(
    reference: Callable[[Tensor], Tensor],
    program: Callable[[Tensor], Tensor],
    images: Float[Tensor, "b c h w"],
    *,
    dtype: str,
    what: str,
    classes: bool,
    batch: int = 3,
) -> Figures:
    """Run both on `images`, `batch` at a time (the last batch may be smaller). Raises `VerificationError`."""
    bound = BOUNDS[dtype]
    pairs = [(reference(part), program(part)) for part in images.split(batch)]
    expected, found = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    figures = compare(expected, found, bound, classes=classes)
    if not (figures.cosine >= bound.cosine and figures.agreement >= bound.agreement):
        raise VerificationError(what, figures, bound)
    return figures


def made_up_images(count: int, channels: int, height: int, width: int) -> Float[Tensor, "b c h w"]:
    """Soft coloured blots with some grain, the same each time: nearer to photos than noise, where no photo is given."""
    generator = torch.Generator().manual_seed(8)
    blots = torch.randn(count, channels, 7, 7, generator=generator)
    grain = torch.randn(count, channels, height, width, generator=generator)
    return interpolate(blots, size=(height, width), mode="bicubic") * 1.2 + grain * 0.2
