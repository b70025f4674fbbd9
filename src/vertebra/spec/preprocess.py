"""How a photo becomes the tensor that a checkpoint was trained on."""

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INCEPTION_MEAN = INCEPTION_STD = (0.5, 0.5, 0.5)
DPN_MEAN = (124 / 255, 117 / 255, 104 / 255)
DPN_STD = (1 / (0.0167 * 255),) * 3
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Resize, crop and normalisation of one checkpoint. Sizes are pixels; mean and std are on the 0..1 scale."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    """Channels, height, width."""
    crop_pct: float = 0.875
    """The crop's side as a share of the resized image's shorter side."""
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    fixed_input_size: bool = False
    """True when the weights hold something of the input's size (a position embedding)."""
    min_input_size: tuple[int, int, int] | None = None
    test_input_size: tuple[int, int, int] | None = None
    """A larger size at which the checkpoint answers better than at the one it was trained on."""
    test_crop_pct: float | None = None
    pool_size: tuple[int, int] | None = None
    """Height and width of the last feature map at `input_size`."""
