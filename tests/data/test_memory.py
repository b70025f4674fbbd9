"""A process that keeps what it frees: its next block comes without new pages, and one too large for that still goes."""

from __future__ import annotations

import subprocess
import sys

import pytest

_MEGABYTE = 2**20

_CHILD = """
import mmap, resource, sys
from pathlib import Path
from vertebra.data.memory import keep_freed_memory

kept, size = sys.argv[1], int(sys.argv[2])
if kept != "as it comes":
    assert keep_freed_memory(of_any_size=kept == "of any size")

def touch():
    block = bytearray(size)
    for at in range(0, size, mmap.PAGESIZE):
        block[at] = 1

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    touch()
before = faults()
for _ in range(5):
    touch()
print((faults() - before) / 5 / (size / mmap.PAGESIZE))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told")
@pytest.mark.parametrize(
    ("kept", "megabytes", "anew"),
    [
        ("as it comes", 40, True),
        ("of any size", 40, False),
        ("of any size", 8, False),
        ("up to 32 MB", 40, True),
        ("up to 32 MB", 8, False),
    ],
)
def test_freed_memory_is_used_again(kept: str, megabytes: int, anew: bool) -> None:
    """Whether a block of that size costs new pages each time."""
    call = [sys.executable, "-c", _CHILD, kept, str(megabytes * _MEGABYTE)]
    share = float(subprocess.run(call, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert share > 0.9 if anew else share < 0.1
