"""How far an artefact's answers may lie from the model's. Without torch."""

from vertebra.runtime.compare import Bound

BOUNDS = {
    "f32": Bound(cosine=0.99999, error=1e-3, margin=1e-3),
    "bf16": Bound(cosine=0.995, error=0.15, margin=0.05),
    "int8": Bound(cosine=0.9, error=0.5, margin=0.3),
}
PHOTO_BOUND = Bound(cosine=0.999, error=0.05, margin=0.02)
"""f32 with preprocessing: where Pillow's fixed-point arithmetic rounds a level otherwise, answers differ a little."""
