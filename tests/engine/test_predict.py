"""The one walk from a photo to its labels, with real weights and real photos where those decide."""

import io
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vertebra
from tests.engine.conftest import SIZE, jpeg, small
from vertebra.data import DecodeError, create_transform, decode, resolve_model_data_config
from vertebra.data.eval_reader import OVERSIZE, TOLERANCE
from vertebra.engine.predict import Prediction, Predictor
from vertebra.engine.reading import AHEAD, batches, split
from vertebra.engine.validate import validate, validation_split
from vertebra.models.backbone import Backbone
from vertebra.spec import VertebraError


@pytest.fixture(scope="module")
def deit(shared_data: Path) -> Backbone:
    return vertebra.load_model(
        "deit_tiny_patch16_224", weights=shared_data / "weights" / "deit_tiny_patch16_224.safetensors"
    )


def test_real_weights_answer_every_photo_as_the_reference_did(deit: Backbone, shared_data: Path) -> None:
    with np.load(shared_data / "weights" / "deit_tiny_patch16_224_logits.npz") as stored:
        files, wanted = stored["files"].tolist(), torch.tensor(stored["logits"])
    assert len(files) == 126
    model = vertebra.create_model(
        "deit_tiny_patch16_224", checkpoint_path=shared_data / "weights" / "deit_tiny_patch16_224.safetensors"
    ).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    photos = [shared_data / "photos" / name for name in files]
    with torch.inference_mode():
        inputs = torch.stack([transform(Image.open(photo).convert("RGB")) for photo in photos])
        logits = torch.cat([model(part) for part in inputs.split(16)])
    assert (logits - wanted).abs().max() <= 2e-3
    assert torch.equal(logits.argmax(1), wanted.argmax(1))

    answers = dict(Predictor(deit).stream(photos))
    firsts = [answer.indices[0] for answer in answers.values() if isinstance(answer, Prediction)]
    assert list(answers) == photos
    assert firsts == wanted.argmax(1).tolist()


def test_the_dog_is_a_samoyed(deit: Backbone, shared_data: Path) -> None:
    prediction = Predictor(deit, top=3)(shared_data / "photos" / "dog.jpg")
    assert prediction.labels[0] == "Samoyed"
    assert prediction.indices[0] == 258
    assert len(prediction.labels) == len(prediction.indices) == len(prediction.probabilities) == 3
    assert 1 > prediction.probabilities[0] > prediction.probabilities[1] > prediction.probabilities[2] > 0


def test_path_bytes_file_and_image_get_one_answer(tiny: Backbone, tmp_path: Path) -> None:
    data = jpeg("red")
    path = tmp_path / "red.jpg"
    path.write_bytes(data)
    predict = Predictor(tiny, transform=small)
    answers = {predict(source) for source in (path, str(path), data, io.BytesIO(data), Image.open(path))}
    assert len(answers) == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F", "YCbCr"])
def test_a_decoded_image_of_any_mode_becomes_what_its_file_becomes(tiny: Backbone, mode: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 40 * 40).reshape(40, 40)
    if mode == "I;16":
        image = Image.fromarray((ramp * 257).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray(ramp.astype(np.float32))
    else:
        image = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "F", "YCbCr") else "image.png")
    image.save(path)
    predict = Predictor(tiny, transform=small)
    assert torch.equal(predict.prepare(image), predict.prepare(path))


def test_a_decoded_image_is_turned_as_exif_says(tiny: Backbone, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    predict = Predictor(tiny, transform=small)
    with Image.open(tmp_path / "turned.png") as opened:
        assert torch.equal(predict.prepare(opened), predict.prepare(tmp_path / "turned.png"))


def test_a_decoded_image_that_breaks_later_is_that_images_error(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "half.jpg").write_bytes(jpeg("red", (400, 400))[:-200])
    with Image.open(tmp_path / "half.jpg") as opened, pytest.raises(DecodeError, match=r"half\.jpg"):
        Predictor(tiny, transform=small)(opened)


def test_bad_inputs_cost_the_others_nothing(tiny: Backbone, tmp_path: Path) -> None:
    good = [jpeg(colour) for colour in ("red", "green", "blue")]
    sources: list[bytes | Path] = [good[0], b"", good[1], tmp_path / "absent.jpg", b"no image", good[2]]
    predict = Predictor(tiny, transform=small, batch_size=2)
    answers = list(predict.stream(sources))
    assert [source for source, _ in answers] == sources
    assert [isinstance(answer, DecodeError) for _, answer in answers] == [False, True, False, True, True, False]
    for source, answer in answers:
        if isinstance(answer, Prediction) and isinstance(source, bytes):
            alone = predict(source)
            assert answer.indices == alone.indices
            assert answer.probabilities == pytest.approx(alone.probabilities, rel=1e-4)


def test_a_stream_reads_two_batches_ahead_and_no_further(tiny: Backbone) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield jpeg("red")

    answers = Predictor(tiny, transform=small, batch_size=3).stream(endless())
    for count in range(1, 8):
        next(answers)
        assert count <= taken < count + 3 * (1 + AHEAD)
    answers.close()


def test_nothing_in_nothing_out(tiny: Backbone) -> None:
    assert list(Predictor(tiny, transform=small).stream([])) == []


def test_another_callable_can_answer(tiny: Backbone) -> None:
    predict = Predictor(tiny, transform=small, top=1)
    predict.run = lambda batch: torch.eye(7)[4].expand(len(batch), -1) * 9
    assert predict(jpeg("red")).indices == (4,)


def test_classes_without_names_are_numbered(tiny: Backbone) -> None:
    prediction = Predictor(tiny, transform=small, top=100)(jpeg("red"))
    assert sorted(prediction.labels) == [f"class {i}" for i in range(7)]
    assert sum(prediction.probabilities) == pytest.approx(1)


def test_given_names_are_used(tiny: Backbone) -> None:
    prediction = Predictor(tiny, transform=small, labels=list("abcdefg"))(jpeg("red"))
    assert prediction.labels == tuple("abcdefg"[i] for i in prediction.indices)


def test_what_a_model_brings_along_is_used_unless_something_else_is_given(tmp_path: Path) -> None:
    class Photos(torch.nn.Module):
        num_classes, in_chans, pretrained_cfg, with_preprocess = 3, 3, {}, True
        labels = ("red", "green", "blue")
        transform = staticmethod(small)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape == (1, 3, SIZE, SIZE)
            return x.mean((2, 3)) * 9

    photos = [jpeg("red"), jpeg("blue")]
    assert [answer.labels[0] for _, answer in Predictor(Photos(), batch_size=8).stream(photos)] == ["red", "blue"]
    assert Predictor(Photos(), labels=list("abc"))(photos[0]).labels[0] == "a"
    for colour in ("red", "blue"):
        (tmp_path / colour).mkdir()
        (tmp_path / colour / "one.jpg").write_bytes(jpeg(colour))
    part = validation_split(tmp_path, Photos.labels, 3, split=None, names=None).part
    assert validate(Photos(), part, batch_size=8).metrics.top1 == 1


def test_half_precision_models_answer_in_float32() -> None:
    torch.manual_seed(1)
    model = vertebra.create_model("dla46_c", num_classes=7, dtype=torch.bfloat16)
    model.load_state_dict(model.state_dict())  # random ones, and yet somebody's
    prediction = Predictor(model, transform=small, top=7)(jpeg("red"))
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)


def test_the_model_is_put_into_eval_mode(tiny: Backbone) -> None:
    assert not Predictor(tiny.train(), transform=small).model.training


def test_max_pixels_bounds_what_is_decoded(tiny: Backbone) -> None:
    with pytest.raises(DecodeError, match="max_pixels"):
        Predictor(tiny, transform=small, max_pixels=100)(jpeg("red"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"top": 0}, "top=0"), ({"batch_size": 0}, "batch_size=0"), ({"labels": ["a", "b"]}, "2 labels .* 7 classes")],
)
def test_wrong_options_are_refused(tiny: Backbone, options: dict[str, object], message: str) -> None:
    with pytest.raises(VertebraError, match=message):
        Predictor(tiny, transform=small, **options)


def test_models_that_name_no_classes_or_see_no_rgb_are_refused() -> None:
    with pytest.raises(VertebraError, match="num_classes=0"):
        Predictor(vertebra.create_model("dla46_c", num_classes=0))(jpeg("red"))
    with pytest.raises(VertebraError, match="1 channels"):
        Predictor(vertebra.create_model("dla46_c", in_chans=1, device="meta"))


def test_batch_and_single_photo_get_the_transforms_own_numbers(tiny: Backbone, shared_data: Path) -> None:
    transform = create_transform(**resolve_model_data_config(tiny), is_training=False)
    steps = split(transform, exact=True)
    photos = sorted((shared_data / "photos").glob("*.JPEG"))[:6]
    wanted = torch.stack([transform(decode(photo)) for photo in photos])
    assert steps.batch is not None
    assert steps.at_least is None
    assert torch.equal(steps.batch(torch.stack([steps.one(decode(photo)) for photo in photos])), wanted)
    exact = Predictor(tiny, exact=True)
    assert torch.equal(torch.stack([exact.prepare(photo) for photo in photos]), wanted)


@pytest.mark.parametrize("exact", [True, False])
def test_photos_and_what_finishes_them_lie_on_the_models_device(photos: Path, exact: bool) -> None:
    model = vertebra.create_model("dla46_c", device="meta")  # as any that is not the processor
    photo = Predictor(model, exact=exact, optimize=False).prepare(next(photos.rglob("*.png")))
    assert (photo.device.type, photo.dtype, photo.shape) == ("meta", torch.float32, (3, 224, 224))


def test_what_reads_can_be_sent_to_a_process_that_was_not_forked() -> None:
    """As macOS and Windows start theirs, and Linux from Python 3.14 on."""
    for exact in (True, False):
        assert pickle.dumps(split(create_transform(224, is_training=False), exact=exact))


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({"input_size": 224, "crop_pct": 0.875}, 256 * OVERSIZE),
        ({"input_size": (3, 192, 256), "crop_pct": 1.0, "crop_mode": "squash"}, 256 * OVERSIZE),
        ({"input_size": 224, "crop_mode": "border"}, None),
    ],
)
def test_how_much_of_a_photo_a_transform_needs(options: dict[str, object], side: int | None) -> None:
    assert split(create_transform(**options), exact=False).at_least == side
    assert split(create_transform(**options), exact=True).at_least is None


def test_large_jpegs_are_decoded_smaller_and_answered_alike(deit: Backbone, shared_data: Path, tmp_path: Path) -> None:
    quick, exact = Predictor(deit, top=1000), Predictor(deit, top=1000, exact=True)
    worst, changed = 0.0, 0
    for name in sorted(p.name for p in (shared_data / "photos").glob("*.JPEG"))[::12]:
        with Image.open(shared_data / "photos" / name) as small_one:
            large = small_one.convert("RGB").resize((2400, 1800), Image.Resampling.BICUBIC)
        large.save(tmp_path / name, "JPEG", quality=90)
        a, b = quick(tmp_path / name), exact(tmp_path / name)
        first, second = (dict(zip(p.indices, p.probabilities, strict=True)) for p in (a, b))
        worst = max(worst, *(abs(first[i] - second[i]) for i in first))
        changed += a.indices[0] != b.indices[0]
    assert 0 < worst <= TOLERANCE
    assert changed == 0
    (tmp_path / "size.jpg").write_bytes(jpeg("red", (2400, 1800)))
    assert decode(tmp_path / "size.jpg", at_least=512).size == (1200, 900)
    assert decode(tmp_path / "size.jpg", at_least=100).size == (300, 225)
    assert decode(tmp_path / "size.jpg", at_least=4000).size == (2400, 1800)


def test_reading_and_answering_overlap() -> None:
    reading = threading.Event()

    def read(number: int) -> torch.Tensor:
        if number >= 4:
            reading.set()
        return torch.tensor(number)

    stream = batches(range(100), read, size=4, workers=2)
    first = next(stream)
    assert [source for source, _ in first] == [0, 1, 2, 3]
    assert reading.wait(10)  # the second batch is read although nobody has asked for it
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("vertebra-read")]


def test_an_error_that_is_not_the_photos_ends_the_stream() -> None:
    def read(number: int) -> torch.Tensor:
        raise KeyError(number)

    with pytest.raises(KeyError):
        list(batches(range(10), read, size=2, workers=2))
