"""A module of ours run by a fresh interpreter. Standard library only."""

import os
import sys
from pathlib import Path


def command(module: str, *arguments: object) -> list[str]:
    """`python -m module arguments`, without the user's folder on its path: a file there may be called json.py."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def environment() -> dict[str, str]:
    """What this process has, and the package where it was found here."""
    home = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path}
