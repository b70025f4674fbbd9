"""What a predictor takes: names, folders and files as models; lists, folders, zips, pixels, addresses as images."""

import io
import pickle
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vertebra
from vertebra import Predictor
from vertebra.data import remote
from vertebra.data.remote import Remote
from vertebra.engine.predict import Prediction
from vertebra.engine.sources import image_of
from vertebra.export import export_model
from vertebra.models.backbone import Backbone
from vertebra.spec import VertebraError

MODEL = "dla46_c.tin100"


@pytest.fixture(scope="module")
def predict() -> Predictor:
    return Predictor(MODEL, top=3)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((160, 140), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def alike(a: Prediction, b: Prediction) -> bool:
    return a.labels == b.labels and np.allclose(a.probabilities, b.probabilities, atol=1e-5)


def test_pixels_are_the_image_that_they_are_of(predict: Predictor, photo: Image.Image) -> None:
    wanted = predict(photo)
    array = np.asarray(photo)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for given in (array, array / 255, (array / 255).astype(np.float32), tensor, tensor / 255, (tensor / 255).double()):
        assert alike(predict(given), wanted)
    grey = np.asarray(photo.convert("L"))
    for given in (grey, grey[:, :, None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        assert alike(predict(given), predict(photo.convert("L")))
    rgba = np.asarray(photo.convert("RGBA"))
    assert alike(predict(rgba), wanted)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((3, 8), np.int64), "of shape (3, 8) and type int64: give RGB"),
        (np.zeros((3, 8, 8), np.uint8), "of shape (3, 8, 8)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "of shape (8, 8, 3)"),
        (np.zeros((0, 8, 3), np.uint8), "of shape (0, 8, 3)"),
        (torch.full((3, 8, 8), -2.1), "what is normalised already goes to `answer`"),
        (np.full((8, 8, 3), np.nan), "pixels below 0 or above 1"),
    ],
    ids=["integers", "channels first", "channels last", "empty", "normalised", "nan"],
)
def test_pixels_that_are_none(pixels: np.ndarray | torch.Tensor, message: str) -> None:
    with pytest.raises(VertebraError) as caught:
        image_of(pixels)
    assert message in str(caught.value)


def test_several_at_once(predict: Predictor, photo: Image.Image, tmp_path: Path) -> None:
    other = Image.new("RGB", (100, 90), "red")
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    photo.save(tmp_path / "photos" / "b.png")
    other.save(tmp_path / "photos" / "deeper" / "a.png")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted((tmp_path / "photos").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    wanted = [predict(photo), predict(other)]
    batch = np.stack([np.asarray(photo), np.asarray(other.resize(photo.size))])
    for given in (
        [photo, other],
        (png(photo), png(other)),
        iter([str(tmp_path / "photos" / "b.png"), other]),
        tmp_path / "photos",
        str(tmp_path / "photos"),
        tmp_path / "photos.zip",
        batch,
        torch.from_numpy(batch).permute(0, 3, 1, 2),
    ):
        found = predict(given)
        assert [alike(a, b) for a, b in zip(found, wanted, strict=True)] == [True, True]
    names = [source.name for source, _ in predict.stream(tmp_path / "photos.zip")]
    assert names == [f"{tmp_path}/photos.zip!photos/b.png", f"{tmp_path}/photos.zip!photos/deeper/a.png"]
    assert predict([]) == []
    with pytest.raises(VertebraError, match=r"gone\.png: no such file"):
        predict([photo, tmp_path / "gone.png"])


def test_embeddings(predict: Predictor, photo: Image.Image) -> None:
    bare = vertebra.create_model(MODEL, pretrained=True, num_classes=0)
    embed = Predictor(bare)
    found = predict.embed([photo, photo])
    assert found.shape == (2, bare.num_features)
    assert torch.allclose(predict.embed(photo), found[0], atol=1e-5)
    assert torch.allclose(embed.embed(photo), found[0], atol=1e-5)
    assert torch.allclose(embed.embed(photo), bare(embed.prepare(photo)[None])[0], atol=1e-4)
    assert predict.embed([]).shape == (0, bare.num_features)
    with pytest.raises(VertebraError, match=r"no classifier.*`embed` gives its embeddings"):
        embed(photo)


def test_models_by_name_folder_and_file(photo: Image.Image, tmp_path: Path, unchecked_shapes: None) -> None:
    model: Backbone = vertebra.load_model(MODEL)
    vertebra.save_model(model, tmp_path / "own.safetensors")
    exported = export_model(model, tmp_path / "own.onnx").out
    wanted = Predictor(model)(photo)
    assert alike(Predictor(tmp_path / "own.safetensors")(photo), wanted)
    fast = Predictor(str(exported))
    assert alike(fast(photo), wanted)
    assert alike(pickle.loads(pickle.dumps(fast))(photo), wanted)  # noqa: S301 - our own
    with pytest.raises(VertebraError, match="Artefact gives no embeddings"):
        fast.embed(photo)


def test_it_is_pickled_as_its_recipe(predict: Predictor, photo: Image.Image) -> None:
    text = pickle.dumps(predict)
    assert len(text) < 1000  # a name, not 4 MB of weights
    assert alike(pickle.loads(text)(photo), predict(photo))  # noqa: S301 - our own
    own = Predictor(vertebra.load_model(MODEL), top=2, labels=[f"kind {i}" for i in range(100)], optimize=False)
    again = pickle.loads(pickle.dumps(own))  # noqa: S301 - our own
    assert alike(again(photo), own(photo))
    assert again.top == 2


def test_random_weights_say_so_once(photo: Image.Image) -> None:
    fresh = Predictor(vertebra.create_model("dla46_c"))
    with pytest.warns(UserWarning, match="weights are random, so its answers mean nothing.*pretrained=True"):
        fresh(photo)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh(photo)
    with pytest.warns(UserWarning, match="weights are random"):
        Predictor(vertebra.create_model("dla46_c", num_classes=0)).embed(photo)


# --- addresses


class _Server(BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        if self.path == "/gone":
            self.send_error(404)
            return
        if self.path in ("/file", "/far"):
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd" if self.path == "/file" else "/photo.png")
            self.end_headers()
            return
        self.send_response(200)
        extra = 100 if self.path == "/cut" else 0
        self.send_header("Content-Length", str(len(self.content) + extra))
        self.end_headers()
        half = len(self.content) // 2
        self.wfile.write(self.content[:half])
        if self.path == "/slow":
            time.sleep(0.3)
        self.wfile.write(self.content[half:])

    def log_message(self, *args: object) -> None:
        """Silent."""


@pytest.fixture
def server(photo: Image.Image) -> Iterator[str]:
    _Server.content = png(photo)
    served = HTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


def test_an_address(server: str, predict: Predictor, photo: Image.Image) -> None:
    wanted = predict(photo)
    assert alike(predict(f"{server}/photo.png"), wanted)
    assert alike(predict([f"{server}/far"])[0], wanted)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/gone", "cannot be fetched: 404 Not Found"),
        ("/file", "cannot be fetched"),
        ("/cut", "connection broke|IncompleteRead"),
    ],
)
def test_an_address_that_gives_nothing(server: str, path: str, message: str) -> None:
    with pytest.raises(VertebraError, match=message) as caught:
        Remote(f"{server}{path}").read()
    assert str(caught.value).startswith(f"{server}{path}: ")


def test_size_and_time_are_bounded(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LARGEST", 1000)
    with pytest.raises(VertebraError, match="is larger than"):
        Remote(f"{server}/photo.png").read()
    monkeypatch.setattr(remote, "LARGEST", 1 << 20)
    monkeypatch.setattr(remote, "WHOLE", 0.1)
    with pytest.raises(VertebraError, match="did not come within"):
        Remote(f"{server}/slow").read()
    monkeypatch.setattr(remote, "SILENCE", 0.1)
    with pytest.raises(VertebraError, match="timed out"):
        Remote(f"{server}/slow").read()


@pytest.mark.parametrize("address", ["http://", "http://[", "https://127.0.0.1:1/a.png", "http://127.0.0.1:99999/"])
def test_addresses_that_lead_nowhere(address: str) -> None:
    with pytest.raises(VertebraError, match="cannot be fetched"):
        Remote(address).read()
