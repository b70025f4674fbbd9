"""Original files by URL: found, kept, checked against the hash in their name; and how each step fails."""

import hashlib
import socket
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vertebra
from tests.hub.conftest import ARCH, holds
from vertebra import WeightsError, WeightsUnavailableError
from vertebra.spec import State


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]


class Interrupted(BaseHTTPRequestHandler):
    """Announces a file, sends half of it, and hangs up."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"x" * 50_000)
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        pass


class Server:
    def __init__(self, handler: Any) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = False  # so that closing waits for them
        self.requests: list[str] = []
        self.server.requests = self.requests  # type: ignore[attr-defined]
        self.thread = Thread(target=self.server.serve_forever)
        self.thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def files(tmp_path: Path, state: State) -> Path:
    """What the server has: one file whose name carries its hash, the same under a wrong one, and one that is cut."""
    served = tmp_path / "served"
    served.mkdir()
    torch.save({"module." + key: value for key, value in state.items()}, served / "a.pth")
    content = (served / "a.pth").read_bytes()
    (served / f"a-{hashlib.sha256(content).hexdigest()[:8]}.pth").write_bytes(content)
    (served / "a-deadbeef.pth").write_bytes(content)
    return served


@pytest.fixture
def server(files: Path) -> Iterator[Server]:
    made = Server(partial(Quiet, directory=str(files)))
    yield made
    made.close()


def by_url(url: str, cache: Path) -> Any:
    overlay = {"url": url, "hf_hub_id": None, "num_classes": 10}
    return vertebra.create_model(ARCH, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache)


def good(files: Path) -> str:
    return next(p.name for p in files.iterdir() if p.name.startswith("a-") and "dead" not in p.name)


def test_url(server: Server, files: Path, state: State, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    assert holds(by_url(server.url(good(files)), cache), state)
    assert [p.name for p in cache.iterdir()] == [good(files)]
    count = len(server.requests)
    assert holds(by_url(server.url(good(files)), cache), state)
    assert len(server.requests) == count, "the second time it comes from the cache"


def test_url_from_the_cache_without_a_network(server: Server, files: Path, state: State, tmp_path: Path) -> None:
    by_url(server.url(good(files)), tmp_path / "cache")
    model = by_url(f"http://192.0.2.1/{good(files)}", tmp_path / "cache")
    assert holds(model, state)


def test_two_urls_that_end_alike_are_two_files(server: Server, files: Path, state: State, tmp_path: Path) -> None:
    other = {key: value + 1 for key, value in state.items()}
    for name, content in (("a", state), ("b", other)):
        (files / name).mkdir()
        save_file(content, files / name / "model.safetensors")
    for _ in range(2):
        assert holds(by_url(server.url("a/model.safetensors"), tmp_path / "cache"), state)
        assert holds(by_url(server.url("b/model.safetensors"), tmp_path / "cache"), other)
        assert holds(by_url(server.url("b/model.safetensors?download=true"), tmp_path / "cache"), other)
    assert len(server.requests) == 3
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".safetensors"}


def test_a_query_takes_nothing_of_the_hash_in_a_name(server: Server, files: Path, state: State, tmp_path: Path) -> None:
    assert holds(by_url(server.url(f"{good(files)}?download=true"), tmp_path), state)
    assert (tmp_path / good(files)).is_file()
    with pytest.raises(WeightsError, match="is not the file that was published"):
        by_url(server.url("a-deadbeef.pth?download=true"), tmp_path)


def test_a_cache_that_cannot_be_is_one_line(server: Server, files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsUnavailableError, match=r"cannot download .*Not a directory"):
        by_url(server.url(good(files)), tmp_path / "file" / "cache")


def test_url_with_another_hash(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a-deadbeef\.pth is not the file that was published"):
        by_url(server.url("a-deadbeef.pth"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_file_that_changed(server: Server, files: Path, tmp_path: Path) -> None:
    by_url(server.url(good(files)), tmp_path / "cache")
    (tmp_path / "cache" / good(files)).write_bytes(b"something else")
    with pytest.raises(WeightsError, match="its published hash begins with"):
        by_url(server.url(good(files)), tmp_path / "cache")


def test_url_not_found(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match=r"cannot download .*nothing-12345678\.pth: .*404"):
        by_url(server.url("nothing-12345678.pth"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["cut-12345678.pth", "cut.pth"])
def test_an_interrupted_download_leaves_nothing(name: str, tmp_path: Path) -> None:
    server = Server(Interrupted)
    try:
        with pytest.raises(WeightsError) as caught:
            by_url(server.url(name), tmp_path / "cache")
    finally:
        server.close()
    assert list((tmp_path / "cache").iterdir()) == [], caught.value


def test_url_without_a_network(unplugged: None, tmp_path: Path) -> None:
    before = time.monotonic()
    with pytest.raises(WeightsUnavailableError, match=r"cannot download .*no network"):
        by_url("http://dl.example.org/a-12345678.pth", tmp_path / "cache")
    assert time.monotonic() - before < 5
