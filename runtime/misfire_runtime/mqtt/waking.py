"""Wakes a thread that waits in `select`, with a file descriptor that other threads make readable."""

from __future__ import annotations

import contextlib
import os
import socket


class Waking:
    """Wakes a waiting thread. Any thread calls `wake`; the waiting one calls `clear`."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        # A full pair must not block the waking thread; the reader is awake then anyway.
        self._write.setblocking(False)
        self._awake = False

    @property
    def handle(self) -> int:
        """Returns the file descriptor to wait on."""
        return self._read.fileno()

    def wake(self) -> None:
        """Wakes the thread. Never blocks; does nothing after `close`."""
        if not self._awake:  # many wakes before a clear write one byte
            self._awake = True
            with contextlib.suppress(OSError):
                self._write.send(b"\0")

    def clear(self) -> None:
        """Resets the descriptor. Call it before looking for work, so that no later wake is lost."""
        if self._awake:
            # First the byte, then the flag: a wake in between writes nothing, but its work is found next.
            with contextlib.suppress(OSError):
                os.read(self.handle, 4096)
            self._awake = False

    def close(self) -> None:
        """Closes both ends."""
        self._read.close()
        self._write.close()
