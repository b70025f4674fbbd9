"""The user's cache folder, which is a help and never needed: where nothing can be kept, one warning says so."""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from vertebra.spec import files
from vertebra.spec.record import parse_object

NOWHERE = Path(os.devnull) / "vertebra"
"""For who has no home: a folder in which nothing is found and nothing can be made."""

_log = logging.getLogger(__name__)
_told = set[Path]()


def root(given: str | Path | None = None) -> Path:
    """`given`, else $VERTEBRA_CACHE, else vertebra/ in the user's cache folder, else `NOWHERE`."""
    wanted = (
        given or os.environ.get("VERTEBRA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vertebra")
    )
    with suppress(RuntimeError):  # no HOME, and a user of no name
        return Path(wanted).expanduser()
    return NOWHERE


def reason(folder: Path, error: OSError) -> str:
    """Why nothing can be kept there."""
    if folder.is_relative_to(NOWHERE):
        return "there is no home folder (HOME is not set)"
    return f"{error.strerror or error}"


def tell_once(folder: Path, message: str) -> None:
    """A warning; the next ones of the same folder are not given."""
    if folder not in _told:
        _told.add(folder)
        _log.warning("%s", message)


def notes(path: Path) -> dict[str, Any]:
    """What is noted in a JSON file; nothing where it cannot be read: then it is found out anew."""
    try:
        return parse_object(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return {}


def note(path: Path, **found: Any) -> None:
    """Add to it. Of two processes at once, one may win."""
    try:
        files.write_whole(path, json.dumps({**notes(path), **found}, indent=1).encode())
    except OSError as error:
        folder = path.parent
        tell_once(
            folder,
            f"nothing can be kept in {folder}: {reason(folder, error)}; it is found out anew each time, until "
            "VERTEBRA_CACHE names another folder",
        )
