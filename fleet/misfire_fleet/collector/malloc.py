"""Keeps the memory of a long-running process with several threads flat under glibc's malloc.

glibc gives each thread a heap of its own, up to eight per core. Samples are allocated by one thread and freed
by another, so every heap keeps holes of its own, and the process goes on growing after its load stopped to.
Few heaps fill their holes; Python's lock leaves them little contention.
"""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8


def limit_heaps(heaps: int = 2) -> bool:
    """Call before threads start. False where the C library has no such setting: then nothing changes."""
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and set_option(_M_ARENA_MAX, heaps) == 1
