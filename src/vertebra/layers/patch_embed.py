"""An image cut into patches, each projected to a token; and the position embedding that says where it lay."""

import torch
import torch.fx
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from vertebra.spec import VertebraError


@torch.fx.wrap  # one opaque node where torch.fx traces the model; the sizes are proxies there
def check_size(
    height: int, width: int, img_size: tuple[int, int], patch: int, dynamic: bool, dynamic_pad: bool
) -> None:
    """Raise where an image cannot be cut into this model's patches."""
    if not dynamic and (height, width) != img_size:
        raise VertebraError(
            f"this model takes images of {img_size[0]}x{img_size[1]} pixels and was given {height}x{width}"
            "; resize them, or create the model with img_size= or dynamic_img_size=True"
        )
    if dynamic and not dynamic_pad and (height % patch or width % patch):
        raise VertebraError(
            f"an image of {height}x{width} pixels is no whole number of {patch}x{patch} patches"
            "; resize it, or create the model with dynamic_img_pad=True"
        )


class PatchEmbed(nn.Module):
    """(b, c, h, w) -> (b, n, d): a convolution whose kernel is its stride.

    Sizes are (height, width) in pixels. `dynamic` takes images of other sizes than `img_size`; `dynamic_pad` pads them
    with zeros, right and below, to whole patches.
    """

    def __init__(
        self, img_size: tuple[int, int], patch: int, in_chans: int, dim: int, *, dynamic: bool, dynamic_pad: bool
    ) -> None:
        super().__init__()
        if not dynamic_pad and (img_size[0] % patch or img_size[1] % patch):
            raise VertebraError(
                f"img_size {img_size[0]}x{img_size[1]} is no multiple of the patch size {patch}"
                f"; choose multiples of {patch}, or dynamic_img_pad=True"
            )
        self.img_size = img_size
        self.patch_size = (patch, patch)
        self.dynamic = dynamic
        self.dynamic_pad = dynamic_pad
        self.grid_size = self.dynamic_grid(*img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch, stride=patch)

    def dynamic_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that an image of this size becomes."""
        p = self.patch_size[0]
        if self.dynamic_pad:
            return -(-height // p), -(-width // p)
        return height // p, width // p

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        height, width = x.shape[-2:]
        check_size(height, width, self.img_size, self.patch_size[0], self.dynamic, self.dynamic_pad)
        if self.dynamic_pad:
            p = self.patch_size[0]
            x = pad(x, (0, -width % p, 0, -height % p))
        return self.proj(x).flatten(2).transpose(1, 2)


def resample_positions(
    table: Float[Tensor, "1 n d"], new_grid: tuple[int, int], *, prefix: int, old_grid: tuple[int, int] | None = None
) -> Float[Tensor, "1 m d"]:
    """A position embedding for another grid of patches: bicubic, antialiased; the `prefix` tokens stay as they are.

    `old_grid` (rows, columns) defaults to a square. The arithmetic is float32 whatever the table's type.
    """
    head, grid = table[:, :prefix], table[:, prefix:]
    if old_grid is None:
        side = round(grid.shape[1] ** 0.5)
        old_grid = (side, side)
    if old_grid == new_grid:
        return table
    planes = grid.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    planes = interpolate(planes, size=new_grid, mode="bicubic", antialias=True)
    grid = planes.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat((head, grid), 1)


def resample_patches(weight: Float[Tensor, "d c h w"], size: tuple[int, int]) -> Float[Tensor, "d c H W"]:
    """The projection for patches of another size (height, width): FlexiViT's pseudo-inverse resize (arXiv:2212.08013).

    A resized patch then meets a resized kernel as the patch met the kernel before.
    """
    old = (weight.shape[2], weight.shape[3])
    if old == size:
        return weight
    pixels = torch.eye(old[0] * old[1]).reshape(-1, 1, *old)
    resize = interpolate(pixels, size=size, mode="bicubic", antialias=True).flatten(1)
    inverse = torch.linalg.pinv(resize.double().cpu())
    kernels = weight.cpu().double().flatten(2) @ inverse.T
    return kernels.reshape(*weight.shape[:2], *size).to(weight)
