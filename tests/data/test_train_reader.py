"""Encoded photos to augmented tensors; what is done to whole batches; repeated augmentation."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.random_erasing import RandomErasing as PeerErasing

from vertebra.data import DecodeError, create_train_reader, create_transform, jpeg
from vertebra.data.augment.batch import RandomErasingBatch
from vertebra.data.augment.reader import TrainReader
from vertebra.data.augment.sampler import RepeatedAugmentSampler
from vertebra.data.jpeg import jpeg_header
from vertebra.data.normalize import NormalizeBatch
from vertebra.data.transforms import Normalize
from vertebra.spec.errors import VertebraError

CONFIG = "rand-m9-mstd0.5-inc1"


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", [ramp, ramp.transpose(Image.Transpose.ROTATE_180), Image.new("L", ramp.size, 90)])


WHOLE: dict[str, Any] = {"scale": (1.0, 1.0), "hflip": 0.0, "color_jitter": None, "interpolation": "bilinear"}


@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("size", [(100, 80), (900, 640)])
def test_bytes_become_the_upright_picture(size: tuple[int, int], orientation: int) -> None:
    """Whole, or reduced while it is decoded: the same picture, give or take the resizing kernels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth(*size), quality=95, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    aspect = upright.width / upright.height
    reader = create_train_reader(48, ratio=(aspect, aspect), **WHOLE)
    expected = np.asarray(upright.resize((48, 48), Image.Resampling.BILINEAR)).astype(int)
    result = reader(content)
    assert result.dtype == torch.uint8
    assert np.abs(result.permute(1, 2, 0).numpy() - expected).max() <= 4
    assert np.abs(reader(upright.convert("RGB")).permute(1, 2, 0).numpy() - expected).max() <= 2


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    """The place and size of the crop, read off a picture whose colours are its coordinates."""
    rows, columns = np.mgrid[0:150, 0:200]
    picture = Image.fromarray(np.stack([rows, columns, rows * 0], -1).astype(np.uint8))
    options: dict[str, Any] = {"scale": (0.2, 0.6), "ratio": (0.7, 1.4), "hflip": 0.0, "color_jitter": None}

    def edges(transform: Any) -> torch.Tensor:
        found = []
        for _ in range(400):
            image = transform(picture)[:2].float()
            found.append([image[0].min(), image[0].max(), image[1].min(), image[1].max()])
        return torch.tensor(found)

    ours = edges(create_train_reader(16, interpolation="bilinear", **options))
    theirs = edges(create_transform(16, is_training=True, normalize=False, interpolation="bilinear", **options))
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 9
    assert (ours.std(0) - theirs.std(0)).abs().max() < 5


def test_flips_flip() -> None:
    picture = smooth(40, 40)
    options = {**WHOLE, "ratio": (1.0, 1.0)}
    plain = create_train_reader(40, **options)(picture)
    assert torch.equal(create_train_reader(40, **{**options, "hflip": 1.0})(picture), plain.flip(-1))
    assert torch.equal(create_train_reader(40, vflip=1.0, **options)(picture), plain.flip(-2))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("kept", [2**26, 100])
def test_an_image_stays_what_it_was_when_the_next_is_read(
    interpolation: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is left to resize; with the room for pixels that a thread keeps, and too small to keep."""
    monkeypatch.setattr(jpeg, "_KEPT", kept)
    read = create_train_reader(32, **WHOLE | {"ratio": (1.0, 1.0), "interpolation": interpolation})
    contents = [encoded(Image.new("RGB", (32, 32), (level, 0, 0)), quality=100) for level in (250, 9)]
    first, second = (read(content) for content in contents)
    assert int(first[0].float().mean()) in range(248, 253)
    assert int(second[0].float().mean()) in range(7, 12)


def test_photos_are_read_from_anywhere(shared_data: Path, tmp_path: Path) -> None:
    path = sorted((shared_data / "photos").glob("*.JPEG"))[0]
    reader = create_train_reader(64, auto_augment=CONFIG, generator=(generator := torch.Generator()))
    results = []
    for source in (path, str(path), path.read_bytes()):
        generator.manual_seed(11)
        results.append(reader(source))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for kind in ("PNG", "WEBP", "GIF"):
        assert reader(encoded(smooth(30, 20), kind)).shape == (3, 64, 64)
    for image in (smooth(30, 20).convert("L"), smooth(30, 20).convert("CMYK")):
        assert reader(encoded(image)).shape == (3, 64, 64)


def test_odd_files_give_a_picture_or_a_decode_error(shared_data: Path) -> None:
    reader, read, messages = create_train_reader(32), 0, dict[str, str]()
    for path in sorted((shared_data / "odd-images").iterdir()):
        try:
            result = reader(path)
        except DecodeError as error:
            messages[path.name] = str(error)
        else:
            assert result.shape == (3, 32, 32)
            read += 1
    assert all(name in message for name, message in messages.items())
    assert read > 50
    with pytest.raises(DecodeError, match="no such file"):
        reader("missing.jpg")
    with pytest.raises(DecodeError, match="truncated or corrupt"):
        reader(encoded(smooth(80, 60))[:900])


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    reader = TrainReader((8, 8), max_pixels=1000)
    with pytest.raises(DecodeError, match="too many pixels"):
        reader(encoded(smooth(100, 100)))


@given(st.binary(max_size=60))
def test_a_header_is_read_or_not_but_never_fails(content: bytes) -> None:
    assert jpeg_header(b"\xff\xd8" + content) is None or len(content) > 8
    assert jpeg_header(content) is None or content.startswith(b"\xff\xd8")


def test_a_header_tells_the_size() -> None:
    def header(**options: Any) -> tuple[Any, ...] | None:
        content = encoded(smooth(33, 21), **options)
        found = jpeg_header(content)
        assert found is not None
        assert content[found.place : found.place + 4] == bytes((0, 21, 0, 33))
        return *found[:3], jpeg._blend(content, found)

    assert header() == header(progressive=True) == (21, 33, False, 2)
    assert header(exif=Image.Exif().tobytes()) == (21, 33, True, 2)
    assert header(subsampling=0) == header(subsampling=1) == (21, 33, False, 0)
    assert jpeg_header(encoded(smooth(33, 21).convert("CMYK"))) is None
    assert jpeg_header(encoded(smooth(33, 21), "PNG")) is None


# Batches and epochs.


def test_batches_are_normalised_as_images_are() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = torch.randint(0, 256, (4, 3, 9, 7), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    result = NormalizeBatch(mean, std)(batch)
    torch.testing.assert_close(result, Normalize(mean, std)(batch.float() / 255), rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    plain = batch.contiguous()
    assert NormalizeBatch(mean, std)(plain).is_contiguous()
    for other in (plain, plain.transpose(2, 3).contiguous().transpose(2, 3), batch[:, :, 1:, ::2], batch[:0]):
        expected = Normalize(mean, std)(other.float() / 255)
        torch.testing.assert_close(NormalizeBatch(mean, std)(other), expected, rtol=1e-5, atol=1e-5)
    many = torch.randint(0, 256, (30, 3, 64, 65), dtype=torch.uint8)  # more than are done at a time
    for layout in (torch.contiguous_format, torch.channels_last):
        expected = Normalize(mean, std)(many.float() / 255)
        found = NormalizeBatch(mean, std)(many.contiguous(memory_format=layout))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert NormalizeBatch(mean, std, torch.bfloat16)(batch).dtype == torch.bfloat16
    with pytest.raises(VertebraError, match="takes uint8"):
        NormalizeBatch(mean, std)(batch.float())
    with pytest.raises(VertebraError, match="std"):
        NormalizeBatch(mean, (0.0, 1.0, 1.0))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_covers_as_much_as_timms(mode: Any, count: int) -> None:
    def shares(erase: Any) -> torch.Tensor:
        return (erase(torch.full((1500, 3, 24, 24), 9.0)) != 9.0).float().mean((1, 2, 3))

    ours = shares(RandomErasingBatch(0.4, mode, count))
    theirs = shares(PeerErasing(0.4, mode=mode, max_count=count, device="cpu"))
    assert abs((ours > 0).float().mean() - (theirs > 0).float().mean()) < 0.06
    points = torch.linspace(0, 0.4, 21)
    distance = ((ours[:, None] <= points).float().mean(0) - (theirs[:, None] <= points).float().mean(0)).abs().max()
    assert distance < 0.07


def test_erasing_modes_spare_and_state() -> None:
    generator = torch.Generator().manual_seed(0)
    for mode, colours in (("const", {0.0, 9.0}), ("rand", 4), ("pixel", None)):
        erase = RandomErasingBatch(1.0, mode, spare=1, generator=generator)
        state = generator.get_state()
        batch = erase(torch.full((3, 3, 32, 32), 9.0))
        assert (batch[0] == 9).all()
        values = set(batch[1].unique().tolist())
        assert values == colours if isinstance(colours, set) else len(values) == (colours or len(values))
        assert (mode != "pixel") or len(values) > 50
        generator.set_state(state)
        assert torch.equal(erase(torch.full((3, 3, 32, 32), 9.0)), batch)
    for options, message in (
        ({"mode": "pixels"}, "did you mean 'pixel'"),
        ({"p": 1.5}, "re_prob"),
        ({"count": 0}, "re_"),
    ):
        with pytest.raises(VertebraError, match=message):
            RandomErasingBatch(**options)


@given(length=st.integers(1, 900), repeats=st.integers(1, 4), size=st.integers(1, 4), epoch=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_repetitions_are_spread_as_timm_spreads_them(length: int, repeats: int, size: int, epoch: int) -> None:
    whole = []
    for rank in range(size):
        ours = RepeatedAugmentSampler(length, repeats, size=size, rank=rank)
        ours.set_epoch(epoch)
        if length >= 256:
            theirs = RepeatAugSampler(range(length), num_replicas=size, rank=rank, num_repeats=repeats)
            theirs.set_epoch(epoch)
            assert list(ours) == list(theirs)
            assert len(ours) == len(theirs)
        assert len(list(ours)) == len(ours)
        whole += list(ours)
    if length >= 256:
        assert max(Counter(whole).values()) <= repeats


def test_a_sampler_needs_a_rank_below_its_size() -> None:
    with pytest.raises(VertebraError, match="a rank below size"):
        RepeatedAugmentSampler(10, size=2, rank=2)
