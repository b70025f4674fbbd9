"""Reading to answer: what `create_transform` makes, up to rounding, for every kind of source."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vertebra.data import DecodeError, create_transform, decode, jpeg
from vertebra.data.eval_reader import OVERSIZE, EvalReader, Source, eval_reader
from vertebra.data.transforms import ToBytes

CONFIG: dict[str, object] = {
    "input_size": (3, 64, 64),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
"""As `resolve_model_data_config` gives it."""


def reader(**changes: object) -> EvalReader:
    found = eval_reader({**CONFIG, **changes})
    assert found is not None
    return found


def levels(read: EvalReader, source: Source) -> torch.Tensor:
    return torch.from_numpy(read.levels(source))


def exactly(image: Image.Image, **changes: object) -> torch.Tensor:
    """By torchvision's steps and Pillow, as levels."""
    config = {**CONFIG, **changes}
    del config["mean"], config["std"]
    steps = create_transform(**config, is_training=False, normalize=False)
    assert isinstance(steps.transforms[-1], ToBytes)
    return steps(image)


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Neither flat nor noise, of which every kernel makes something else."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def apart(a: torch.Tensor, b: torch.Tensor) -> int:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == torch.uint8
    return int((a.int() - b.int()).abs().max())


@settings(deadline=None, max_examples=40)
@given(
    st.integers(40, 640),
    st.integers(40, 640),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from([(64, 0.875), (33, 0.9), (64, 1.0), (97, 0.95)]),
)
def test_levels_are_those_of_the_exact_way(
    width: int, height: int, interpolation: str, size: tuple[int, float]
) -> None:
    side, share = size
    changes = {"input_size": (3, side, side), "crop_pct": share, "interpolation": interpolation}
    image = smooth(width, height)
    assert apart(levels(reader(**changes), image), exactly(image, **changes)) <= 2


def test_values_are_normalised_by_photo_or_by_batch() -> None:
    image = smooth(120, 90)
    config = {key: value for key, value in CONFIG.items() if key != "crop_mode"}
    wanted = create_transform(**config, is_training=False)(image)
    alone, together = reader(), eval_reader(CONFIG, on="meta")  # any device that is no processor
    assert alone.batch is None
    torch.testing.assert_close(alone(image), wanted, rtol=0, atol=2 / 255 / 0.224 + 1e-6)
    assert together is not None
    assert together.batch is not None
    assert together(image).dtype == torch.uint8
    assert together.batch.get_buffer("factor").device.type == "meta"  # photos and what finishes them lie in one place


def test_photos_too(shared_data: Path) -> None:
    changes = {"input_size": (3, 224, 224)}
    read = reader(**changes)
    for photo in sorted((shared_data / "photos").glob("*.JPEG"))[:20]:
        assert apart(levels(read, photo), exactly(decode(photo), **changes)) <= 3


def test_every_source_reads_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth(150, 110)
    content, read = as_jpeg(image), reader()
    (tmp_path / "a.jpg").write_bytes(content)
    wanted = read(content)
    assert wanted.is_contiguous()
    for source in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), io.BytesIO(content), decode(content)):
        assert torch.equal(read(source), wanted)
    monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)  # where it is not installed
    assert torch.equal(read(content), wanted)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_turned_upright(orientation: int) -> None:
    image, exif = smooth(150, 110), Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    assert apart(levels(reader(), buffer.getvalue()), exactly(decode(buffer.getvalue()))) <= 2


def test_large_jpegs_are_decoded_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    decoded = jpeg.decode_stored

    def watched(content: bytes, header: jpeg.Header, reduction: int = 1) -> object:
        asked.append(reduction)
        return decoded(content, header, reduction)

    monkeypatch.setattr("vertebra.data.eval_reader.decode_stored", watched)
    read = reader()  # resizes the shorter side to 73
    for shorter, reduction in ((2 * OVERSIZE * 73 - 1, 1), (2 * OVERSIZE * 73, 2), (600, 4), (3000, 8)):
        content = as_jpeg(smooth(shorter + 40, shorter))
        assert (
            apart(levels(read, content), exactly(decode(content))) <= 16  # it blurs a little otherwise
        )  # the scaled transform blurs a little otherwise
        assert asked.pop() == reduction


def test_a_long_strip_takes_no_memory() -> None:
    for size in ((40_000, 8), (8, 40_000)):
        assert reader(input_size=(3, 224, 224))(smooth(*size)).shape == (3, 224, 224)
    strip = smooth(3000, 100)
    assert apart(levels(reader(), strip), exactly(strip)) <= 8  # its middle may lie half a pixel aside


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    read = EvalReader(64, 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3, max_pixels=1000)
    (tmp_path / "half.jpg").write_bytes(as_jpeg(smooth(30, 30))[:300])
    (tmp_path / "text.jpg").write_text("no image")
    for name, why in (("half.jpg", "truncated"), ("text.jpg", "not an image"), ("none.jpg", "no such file")):
        with pytest.raises(DecodeError, match=f"{name}.*{why}"):
            read(tmp_path / name)
    with pytest.raises(DecodeError, match="max_pixels=1,000"):
        read(as_jpeg(smooth(100, 100)))


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_mode": "squash"},
        {"crop_mode": "border"},
        {"interpolation": "lanczos"},
        {"crop_pct": 1.2},
        {"input_size": (3, 64, 96)},
        {"input_size": (1, 64, 64)},
        {"mean": (0.5,)},
    ],
)
def test_other_preprocessing_is_left_to_the_exact_way(changes: dict[str, object]) -> None:
    assert eval_reader({**CONFIG, **changes}) is None


def test_an_answer_needs_no_torchvision(tmp_path: Path) -> None:
    """Importing it takes as long as hundreds of photos."""
    smooth(100, 80).save(tmp_path / "a.png")
    code = (
        "import sys, vertebra\n"
        "predict = vertebra.Predictor(vertebra.create_model('dla46_c.in1k', pretrained=False), optimize=False)\n"
        "assert len(predict.labels) == 1000 and predict(sys.argv[1]).labels\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'torchvision'])"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip() == "[]"
