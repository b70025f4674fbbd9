"""Does the fast model answer as eager f32 does? Cosine of the logits and agreement of the first class.

b batch, c channels, h w height and width in pixels, k classes.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from vertebra.runtime.compare import Bound, Figures, compare
from vertebra.spec import VertebraError

BOUNDS = {
    "f32": Bound(cosine=0.9999, agreement=1.0, margin=1e-3),
    "bf16": Bound(cosine=0.99, agreement=1.0, margin=0.1),
    "int8": Bound(cosine=0.9, agreement=0.9, margin=0.2),
}
TOGETHER = 3
"""Images that run at once (the last batch may be smaller)."""


class VerificationError(VertebraError):
    """A fast model whose answers lie too far from eager f32's; it is not handed out."""

    def __init__(self, what: str, figures: Figures, bound: Bound) -> None:
        super().__init__(
            f"{what} does not answer as eager f32: {figures}; allowed: cosine from {bound.cosine}, agreement from"
            f" {bound.agreement:.0%}. Choose another dtype or backend, or report this"
        )
        self.figures = figures
        self.bound = bound


def answers(program: Callable[[Tensor], Tensor], images: Float[Tensor, "b c h w"]) -> Tensor:
    """(b, ...) float32 on the CPU."""
    return torch.cat([program(part).detach().float().cpu() for part in images.split(TOGETHER)])


def check(
    expected: Tensor,
    found: Tensor,
    *,
    dtype: str,
    what: str,
    classes: bool,
    several: bool = False,
    again: bool = False,
) -> Figures:
    """Two `answers` on the same images. Raises `VerificationError`. `classes`, `several`: as `compare` takes them.

    `again`: these few images were, or others will be, judged with more. Where a share of first classes may turn, one of
    two images would say too little of it, and the cosine decides alone.
    """
    bound = BOUNDS[dtype]
    if again and bound.agreement < 1:
        bound = replace(bound, agreement=0.0)
    figures = compare(expected.numpy(), found.numpy(), bound, classes=classes, several=several)
    if expected.shape != found.shape:
        what = f"{what} answers with {tuple(found.shape)} in the place of {tuple(expected.shape)}, so it"
    if not figures.within(bound):
        raise VerificationError(what, figures, bound)
    return figures


def made_up_images(count: int, channels: int, height: int, width: int) -> Float[Tensor, "b c h w"]:
    """Soft coloured blots with some grain, the same each time: nearer to photos than noise, where no photo is given."""
    generator = torch.Generator().manual_seed(8)
    blots = torch.randn(count, channels, 7, 7, generator=generator)
    grain = torch.randn(count, channels, height, width, generator=generator)
    return interpolate(blots, size=(height, width), mode="bicubic") * 1.2 + grain * 0.2
