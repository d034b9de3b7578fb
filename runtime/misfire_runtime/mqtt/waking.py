"""A file descriptor that other threads make readable: how they wake one that waits in `select`."""

from __future__ import annotations

import contextlib
import os
import socket


class Waking:
    """`wake` from any thread, `clear` by the one that waits. Many wakes before a clear cost one byte."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._awake = False

    @property
    def handle(self) -> int:
        """To wait on."""
        return self._read.fileno()

    def wake(self) -> None:
        """Never blocks; after `close` it does nothing."""
        if not self._awake:
            self._awake = True
            with contextlib.suppress(OSError):
                self._write.send(b"\0")

    def clear(self) -> None:
        """Before looking at what there is to do: a later wake is not lost."""
        if self._awake:
            # In this order: a wake in between finds the flag up, and what it came for is looked at next.
            with contextlib.suppress(OSError):
                os.read(self.handle, 4096)
            self._awake = False

    def close(self) -> None:
        """Frees both ends."""
        self._read.close()
        self._write.close()
