"""Freed memory stays with the process, where it can be told so.

A training step frees and asks for the same large activations again. The C library hands blocks that large back to the
system, which zeroes each page anew when it is touched: a quarter of a step of a small network on a processor.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3)


def keep_freed_memory() -> bool:
    """From now on this process reuses what it frees, and is as large as it once was. False where only glibc could."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
