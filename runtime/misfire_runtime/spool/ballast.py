"""A file that holds a little room on the disk, so that verdicts can be booked when others have filled it.

Booking a verdict frees the sample's file, but needs some pages of the database first. Only bookings that free
room, and opening the spool, may use the ballast; it grows back when the disk has room again.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

BALLAST_BYTES = 2 * 1024 * 1024
_STEP = 256 * 1024
"""Given up piece by piece: another program that writes all the time takes what a booking leaves over."""
_BESIDE = 1024 * 1024
"""Must stay free beside the ballast, or it would itself be what fills a small disk."""
_PERIOD_S = 10.0


class Ballast:
    """One file. Not thread-safe: the spool's lock serialises."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_fill = float("-inf")

    def give(self) -> bool:
        """Frees a piece; False if there is none left."""
        size = self._size()
        if size <= 0:
            return False
        try:
            os.truncate(self._path, max(0, size - _STEP))
        except OSError:
            return False
        return True

    def fill(self, *, reserve_bytes: int) -> None:
        """Makes the file whole again if that leaves `reserve_bytes` of the disk to others.

        Looks at most every ten seconds; a disk that is full after all ends it without an error.
        """
        now = time.monotonic()
        if now < self._next_fill:
            return
        self._next_fill = now + _PERIOD_S
        missing = BALLAST_BYTES - self._size()
        if missing <= 0:
            return
        with suppress(OSError):
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < missing + max(reserve_bytes, _BESIDE):
                return
            with self._path.open("ab") as file:
                # Not zeros: file systems that compress would store none of them.
                file.write(os.urandom(missing))
                file.flush()
                os.fsync(file.fileno())

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0
