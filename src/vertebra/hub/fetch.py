"""Name -> file on this disk: from the hub's cache, the hub, or the URL that the authors published it at.

Every error is one `WeightsUnavailableError` that says what was tried and how to go on without a network.
"""

import hashlib
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vertebra.spec import MissingFileError, WeightsError, WeightsUnavailableError, cache, files

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""Names tried in a hub repository or a folder, safest first."""

_REMEMBERED = 30.0
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHECKED = "checked.json"
"""In the user's cache: size, time and inode of each file whose hash was right."""

_ADVICE = (
    "to go on offline, name a local file (checkpoint_path=, --weights FILE) or folder (local-dir:PATH, --model DIR)"
)


def hub_file(repo: str, filename: str, *, revision: str | None = None, cache_dir: Path | str | None = None) -> Path:
    """One file of a hub repository, from the cache where it is there. `HF_HUB_OFFLINE=1` never asks the network."""
    from huggingface_hub import constants, hf_hub_download  # costs 0.2 s to import; a local file must not pay for it
    from huggingface_hub.errors import HfHubHTTPError

    # Without this the hub library retries for half a minute, aloud, before it looks into its own cache.
    cached_only = constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT)
    try:
        path = hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir, local_files_only=cached_only)
    # OSError covers every way a connection fails (httpx's own errors are turned into it by the hub library, or are
    # HfHubHTTPError); ValueError is a malformed repository name.
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = "no network and no cached copy" if cached_only else _first_line(error)
        raise WeightsUnavailableError(f"cannot get {filename} of {repo} from the hub: {reason}", _ADVICE) from error
    check_blob(Path(path), f"{filename} of {repo}")
    return Path(path)


def hub_weights(
    repo: str, filename: str | None, *, revision: str | None = None, cache_dir: Path | str | None = None
) -> Path:
    """A repository's weights: `filename`, or the first of `WEIGHT_FILES` that it holds."""
    first: WeightsUnavailableError | None = None
    for name in (filename,) if filename else WEIGHT_FILES:
        try:
            return hub_file(repo, name, revision=revision, cache_dir=cache_dir)
        except WeightsUnavailableError as error:
            first = first or error
            if not _lacks_entry(error.__cause__):
                break
    assert first is not None
    raise first


def _lacks_entry(error: BaseException | None) -> bool:
    """True where the repository, or the cache while offline, has no such file: then the next name is worth a try."""
    from huggingface_hub.errors import EntryNotFoundError

    return isinstance(error, EntryNotFoundError)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def reachable(url: str, timeout: float = 3.0) -> bool:
    """Whether something answers at a URL's host within `timeout` seconds. True where a proxy speaks for it.

    Remembered for `_REMEMBERED` seconds: four files of one repository must not wait four times.
    """
    return _reachable(url, timeout, int(time.monotonic() // _REMEMBERED))


@lru_cache(maxsize=8)
def _reachable(url: str, timeout: float, _since: int) -> bool:
    parts = urlsplit(url)
    if parts.scheme in urllib.request.getproxies() or not parts.hostname:
        return True
    try:
        with socket.create_connection(
            (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), timeout
        ):
            return True
    except OSError:
        return False


def url_file(url: str, hash_prefix: str | None, *, cache_dir: Path | str | None = None) -> Path:
    """A file by URL; its sha256 must begin with `hash_prefix`, in the cache as well.

    One whose name carries its hash is kept under that name, as `torch.hub` keeps it; any other under a hash of its
    whole URL and its name, because many are called `model.safetensors`.
    """
    import torch.hub

    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    name = unquote(urlsplit(url).path).rpartition("/")[2] or "file"
    path = folder / (name if hash_prefix else f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name[-100:]}")
    try:
        if path.is_file():
            check_hash(path, hash_prefix)
            return path
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise WeightsUnavailableError(f"{url} is not in {folder} and HF_HUB_OFFLINE is set", _ADVICE)
        if not reachable(url):
            raise WeightsUnavailableError(f"cannot download {url}: no network", _ADVICE)
        _download(url, path, hash_prefix)
    # HTTPException: a server that breaks off, or speaks no HTTP.
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise WeightsUnavailableError(f"cannot download {url}: {_first_line(error)}", _ADVICE) from error
    return path


def _download(url: str, path: Path, hash_prefix: str | None) -> None:
    """A whole file with the right hash, or none: torch.hub keeps what an interrupted connection left of a file whose
    name carries no hash.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "vertebra"})
    with files.beside(path) as folder, urllib.request.urlopen(request, timeout=60) as response:
        with (folder / path.name).open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
            size, announced = file.tell(), response.headers.get("Content-Length")
        if announced is not None and size != int(announced):
            raise OSError(f"the connection broke after {size} of {announced} bytes")
        digest = files.sha256(folder / path.name)
        if hash_prefix is not None and not digest.startswith(hash_prefix):
            raise WeightsError(
                f"{url} is not the file that was published: its sha256 is {digest[:12]}..., not {hash_prefix}..."
                "; nothing was kept"
            )
        files.put([folder / path.name], path.parent)
    _checked(path)


def check_hash(path: Path, hash_prefix: str | None) -> None:
    """Raise where a file's sha256 does not begin with `hash_prefix`; asked once of a file that nobody touched since."""
    if hash_prefix is None or _was_checked(path):
        return
    digest = files.sha256(path)
    if not digest.startswith(hash_prefix):
        raise WeightsError(
            f"{path} has sha256 {digest[:12]}..., but its published hash begins with {hash_prefix}; delete it"
        )
    _checked(path)


def check_blob(path: Path, what: str) -> None:
    """Raise where a file of the hub's cache is not what the hub named it: a large one by its sha256, a small one by
    git's hash. Asked once of a file that nobody touched since; of one whose name is no hash, as on Windows, never.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs" or not _HASH.fullmatch(blob.name) or _was_checked(blob):
        return
    if blob.name not in _hashes(blob):
        raise WeightsError(
            f"{what} in the hub's cache is not what the hub named it: it was damaged or changed; delete {blob}, and it"
            " is downloaded anew"
        )
    _checked(blob)


def _hashes(blob: Path) -> list[str]:
    """By which a file may be named: sha256, or sha1, git's (with its length before it) or a mirror's."""
    if len(blob.name) == 64:
        return [files.sha256(blob)]
    content = blob.read_bytes()  # git keeps large files elsewhere
    return [hashlib.sha1(start + content).hexdigest() for start in (b"blob %d\0" % len(content), b"")]


def in_hub_cache(path: Path) -> bool:
    """Whether a file lies where nobody ever writes to it again: under the name of its hash."""
    blob = path.resolve()
    return blob.parent.name == "blobs" and len(blob.name) == 64


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _was_checked(path: Path) -> bool:
    return cache.notes(cache.root() / _CHECKED).get(str(path.absolute())) == _stamp(path)


def _checked(path: Path) -> None:
    cache.note(cache.root() / _CHECKED, **{str(path.absolute()): _stamp(path)})


def folder_weights(folder: Path) -> Path:
    """The weights file of a local folder."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(f"{folder} holds no weights; expected one of {', '.join(WEIGHT_FILES)}")
