"""Reserves a little room on the disk, so that verdicts can be recorded when other programs have filled it.

Recording a verdict frees the sample's file, but needs some pages of the database first. Only commits that
free room, and opening the spool, may use the reserve (the ballast); it is refilled when the disk has room
again.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

# Eight steps: a commit that frees room may be repeated that often on a full disk.
BALLAST_BYTES = 2 * 1024 * 1024
_STEP = 256 * 1024
"""Bytes freed at a time: another program that writes continually takes everything that a commit leaves."""
_BESIDE = 1024 * 1024
"""Bytes that must stay free in addition, or the ballast itself would fill a small disk."""
# Every settled group asks for a refill; a look at the disk for each one would be wasted.
_PERIOD_S = 10.0


class Ballast:
    """Manages the ballast file. Not thread-safe: the spool calls it under its lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_fill = float("-inf")

    def give(self) -> bool:
        """Frees one step; returns False if nothing is left."""
        size = self._size()
        if size <= 0:
            return False
        try:
            os.truncate(self._path, max(0, size - _STEP))
        except OSError:
            return False
        return True

    def fill(self, *, reserve_bytes: int) -> None:
        """Refills the file if that leaves `reserve_bytes` of the disk free.

        Does nothing within ten seconds of the last call. A disk that is full after all is no error.
        """
        # Monotonic: a wall clock that jumps must not stop the refill.
        now = time.monotonic()
        if now < self._next_fill:
            return
        self._next_fill = now + _PERIOD_S
        missing = BALLAST_BYTES - self._size()
        if missing <= 0:
            return
        # Another program may take the room between the question and the write; the next call tries again.
        with suppress(OSError):
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < missing + max(reserve_bytes, _BESIDE):
                return
            # Appends, because `give` cuts from the end: what is left of the ballast stays reserved.
            with self._path.open("ab") as file:
                # Not zeros: file systems that compress would store none of them.
                file.write(os.urandom(missing))
                file.flush()
                # With delayed allocation, blocks are reserved for good only when they are written.
                os.fsync(file.fileno())

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0
