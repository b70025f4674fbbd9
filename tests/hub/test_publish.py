"""`save_pretrained`, `from_pretrained`, `push_to_hub`, read back by timm and transformers; the hub is on loopback."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import vertebra
from tests.zoo import random_state
from vertebra.hub.publish import card
from vertebra.models.backbone import Backbone
from vertebra.spec import VertebraError

NAMES = ("ant", "bee", "c|d `<b>`")
TRAINING = {
    "config": {"recipe": "finetune", "data": {"source": "/home/me/photos"}},
    "data": {"train": {"images": 40}, "val": {"images": 10}},
    "epoch": {"val_top1": 0.75, "val_loss": 1.25},
}


@pytest.fixture(scope="module")
def model() -> Backbone:
    made: Backbone = vertebra.create_model("dla46_c", num_classes=3)
    made.load_state_dict(random_state(made.state_dict()))
    made.pretrained_cfg |= {"input_size": (3, 64, 64), "label_names": NAMES, "license": "mit", "crop_pct": 1.0}
    return made.eval()


def test_a_folder_comes_back_here_and_in_timm(model: Backbone, tmp_path: Path) -> None:
    import timm

    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    image = torch.randn(2, 3, 64, 64)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(image), model(image))
    assert tuple(again.pretrained_cfg["label_names"]) == NAMES
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.allclose(theirs(image), model(image), atol=1e-4)
    assert list(theirs.pretrained_cfg["input_size"]) == [3, 64, 64]


def test_the_card_tells_what_is_known_and_nothing_acts_in_it(model: Backbone, tmp_path: Path) -> None:
    loaded = vertebra.load_model(vertebra.save_model(model, tmp_path / "own.safetensors", extra={"training": TRAINING}))
    loaded.save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    for words in (
        *("license: mit", "| architecture | dla46\\_c |", "| trained on | photos |", "40 train, 10 val", "75.00%"),
        *("vertebra.Predictor(", 'timm.create_model("hf-hub:', "from transformers import", "c\\|d \\`\\<b\\>\\`"),
    ):
        assert words in text
    with torch.no_grad():
        loaded.get_classifier().weight.add_(1)  # what was measured then is not this model's
    loaded.save_pretrained(tmp_path / "changed")
    assert "75.00%" not in (tmp_path / "changed" / "README.md").read_text()
    loaded.pretrained_cfg["license"] = "mit\n- evil: [x"
    assert "\n- evil" not in card(loaded, {}, "me/net")


def test_refusals(model: Backbone, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "dla")
    with pytest.raises(TypeError, match="is a Dla, not a RegNet"):
        type(vertebra.create_model("regnetx_002", device="meta")).from_pretrained(tmp_path / "dla")
    with pytest.raises(VertebraError, match="is no hub repository"):
        Backbone.from_pretrained(tmp_path / "dla", revision="main")
    (tmp_path / "file").touch()
    with pytest.raises(VertebraError, match="is a file"):
        model.save_pretrained(tmp_path / "file")


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` asks of the hub to make, fill and read a repository of small files."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    sha = "0123456789" * 4
    private = False

    def log_message(self, *args: object) -> None:
        """Silent."""

    def _answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._answer(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        base = f"http://{self.headers['Host']}"
        if self.headers.get("Authorization") != "Bearer hf_right":
            self._json({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self._json({"url": f"{base}/me/net", "id": "1"})
        elif "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    type(self).files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json({"success": True, "commitOid": self.sha, "commitUrl": f"{base}/me/net/commit/{self.sha}"})
        else:
            self._json({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/me/net/tree/"):
            self._json(
                [{"type": "file", "path": name, "size": len(c), "oid": "0" * 40} for name, c in self.files.items()]
            )
        elif self.path.startswith("/api/models/me/net"):
            names = [{"rfilename": name} for name in self.files]
            self._json(
                {"id": "me/net", "sha": self.sha, "private": False, "tags": [], "downloads": 0, "siblings": names}
            )
        elif self.path.startswith("/me/net/resolve/"):
            content = self.files.get(self.path.partition("?")[0].split("/", 5)[5])
            if content is None:
                self._answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.sha)
                return
            etag = hashlib.sha256(content).hexdigest()
            self._answer(content, ETag=f'"{etag}"', X_Repo_Commit=self.sha, Accept_Ranges="bytes")
        else:
            self._answer(b"", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import sys
import torch
import vertebra

own = vertebra.load_model(sys.argv[1]).eval()
try:
    own.push_to_hub("me/net", token="hf_wrong")
except vertebra.WeightsUnavailableError as error:
    print("refused:", error)
print("url:", own.push_to_hub("me/net", token="hf_right", private=True))
image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
wanted = own(image)
mine = type(own).from_pretrained("me/net", revision="main").eval()
print("vertebra:", torch.equal(mine(image), wanted), list(mine.pretrained_cfg["label_names"]))
import timm

theirs = timm.create_model("hf-hub:me/net", pretrained=True).eval()
print("timm:", torch.allclose(theirs(image), wanted, atol=1e-4))
from transformers import AutoModelForImageClassification

other = AutoModelForImageClassification.from_pretrained("me/net").eval()
print("transformers:", torch.allclose(other(pixel_values=image).logits, wanted, atol=1e-4), other.config.id2label[0])
"""


def test_pushed_and_read_back_by_all_three(hub: str, model: Backbone, tmp_path: Path) -> None:
    path = vertebra.save_model(model, tmp_path / "own.safetensors", extra={"label_names": NAMES})
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, url, mine, timm, transformers = done.stdout.splitlines()
    assert refused.startswith("refused: cannot upload to me/net: ")
    assert "hf auth login" in refused
    assert url == f"url: {hub}/me/net"
    assert mine == f"vertebra: True {list(NAMES)}"
    assert timm == "timm: True"
    assert transformers == "transformers: True ant"
    assert sorted(name for name in Hub.files if not name.startswith(".")) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert b'"hf-hub:me/net"' in Hub.files["README.md"]
