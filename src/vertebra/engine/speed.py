"""When to leave a model's own steps: for its graph's as photos add up, for an artefact that lies ready, for one that is
compiled beside where that pays.
"""

import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from vertebra.models.backbone import Backbone
from vertebra.runtime.background import Build
from vertebra.runtime.eager import fused
from vertebra.runtime.optimize import is_cached, optimize
from vertebra.spec import VertebraError

SOME = 16
"""Photos from which making the graph's own steps is paid for by what they save: a tenth to a fourth of each answer."""
FEW = 32
"""Photos up to which eager mode is done before an artefact is even loaded (a second)."""
LONG = 45.0
"""Seconds of eager mode still to come from which compiling pays: it takes about 20, and a core from the eager model."""

_log = logging.getLogger(__name__)


class Speed:
    """Watches how many photos there are, and hands out something faster once that is ready."""

    def __init__(self, model: Backbone, dtype: str) -> None:
        self._model = model
        self._dtype = dtype
        self._build: Build | None = None
        self._cached: bool | None = None
        self._over = next(model.parameters()).device.type != "cpu"  # a GPU's eager mode does for a folder of photos
        self._turn = threading.RLock()  # of several streams at once
        self.eager: Callable[[Tensor], Tensor] | None = None
        """Eager mode with steps made one; None where they are not made yet, or nothing would be gained."""
        self._made = self._over

    def faster(self, photos: int, seconds: float) -> Callable[[Tensor], Tensor] | None:
        """`photos` are known to come or have come; at this pace `seconds` remain. None: go on as before."""
        with self._turn:
            return self._artefact(photos, seconds) or self.steps_made_one(photos)

    def steps_made_one(self, photos: int) -> Callable[[Tensor], Tensor] | None:
        """The same, compiled by nobody: for one who asks for photo after photo."""
        if photos < SOME or not self._turn.acquire(blocking=False):  # others need not wait for it
            return None
        try:
            if not self._made:
                self._made, self.eager = True, fused(self._model)
            return self.eager
        finally:
            self._turn.release()

    def _artefact(self, photos: int, seconds: float) -> Callable[[Tensor], Tensor] | None:
        if self._over or photos < FEW:
            return None
        try:
            return self._look(seconds)
        except (VertebraError, OSError, RuntimeError) as error:
            return self._give_up(str(error))

    def _look(self, seconds: float) -> Callable[[Tensor], Tensor] | None:
        if self._build is not None:
            if not self._build.done():
                return None
            failure = self._build.failure()
            self.close()
            if not failure and not is_cached(self._model, dtype=self._dtype):
                failure = "what was compiled is not kept"  # say the cache is full; it would be compiled again, here
            return self._give_up(failure) if failure else self._take()
        if self._cached is None:
            self._cached = is_cached(self._model, dtype=self._dtype)
        if self._cached:
            return self._take()
        if seconds >= LONG:
            self._build = Build(self._model, self._dtype, torch.get_num_threads())
        return None

    def _take(self) -> Callable[[Tensor], Tensor]:
        self._over = True
        return optimize(self._model, dtype=self._dtype)

    def _give_up(self, reason: str) -> None:
        """The answers are right in eager mode, too; only later."""
        self._over = True
        _log.warning("cannot optimise this model, so it goes on in eager mode: %s", reason)

    def close(self) -> None:
        """End a compilation that nobody waits for any more."""
        with self._turn:
            if self._build is not None:
                self._build.close()
                self._build = None
