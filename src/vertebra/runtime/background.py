"""Compile in a process of its own, while the eager model already answers.

    python -m vertebra.runtime.background MODEL CACHE DTYPE THREADS

Not a thread: tracing swaps a module's parameters and patches torch while it runs.
"""

import io
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from vertebra.models.backbone import Backbone
from vertebra.runtime import cache, interpreter
from vertebra.runtime.backend import BackendError
from vertebra.spec import files
from vertebra.spec.cache import root


class Build:
    """One compilation under way; its artefact is for `optimize` to find."""

    def __init__(self, model: Backbone, dtype: str, threads: int) -> None:
        """Start it, for the CPU and the default backend. Raises `BackendError` for a model that cannot be pickled."""
        self._folder = tempfile.TemporaryDirectory(prefix="vertebra-")
        try:
            weights = _write(model, Path(self._folder.name) / "model.pt")
        except BackendError:
            self._folder.cleanup()
            raise
        self._log = Path(self._folder.name, "log").open("w+")  # noqa: SIM115 - open for as long as the process runs
        self._cache = root()
        self._process = subprocess.Popen(
            interpreter.command(__name__, weights, self._cache, dtype, threads),
            env=interpreter.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._process.poll() is not None

    def failure(self) -> str:
        """The last line it said, where it ended badly; "" where all is well."""
        if not self._process.returncode:
            return ""
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"status {self._process.returncode}"

    def close(self) -> None:
        """End it if it still runs, and remove what it needed and what it had half made."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        files.drop(cache.compiled(self._cache), self._process.pid)
        self._log.close()
        self._folder.cleanup()


def _write(model: Backbone, path: Path) -> Path:
    """The model as it is, changes by its user included: what is compiled must be found under this one's key."""
    whole = io.BytesIO()  # on a full disk, torch's own writer ends the process
    try:
        torch.save(model, whole)
        path.write_bytes(whole.getbuffer())
    except (pickle.PicklingError, AttributeError, TypeError, OSError) as error:
        raise BackendError(f"this model cannot be sent to another process: {error}") from error
    return path


def main(arguments: list[str]) -> None:
    """Optimise the model in a file; the cache is all that remains of it."""
    import os

    from vertebra.runtime.optimize import optimize

    weights, folder, dtype, threads = arguments
    torch.set_num_threads(int(threads))
    if hasattr(os, "nice"):
        os.nice(5)  # who waits for answers comes first
    # No stranger's file: `Build` wrote it a moment ago, into a folder that only this user can open.
    optimize(torch.load(weights, weights_only=False), dtype=dtype, cache_dir=folder)


if __name__ == "__main__":
    main(sys.argv[1:])
