"""A socket that reads ahead and writes behind: few system calls for many small MQTT packets.

The MQTT client asks for a packet byte by byte, and sends each by itself. Every system call also hands over
Python's lock, and a collector has many threads that want it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import paho.mqtt.client as paho

_READ_AHEAD = 128 * 1024
_SMALL = 8 * 1024
_WRITE_BEHIND = 64 * 1024


class BufferedSocket:
    """What paho needs of a non-blocking socket. `flush` sends what `send` only took."""

    def __init__(self, inner: Any) -> None:
        self._inner: socket.socket = inner
        self._buffer = memoryview(bytearray(_READ_AHEAD))  # one for good: a new one for each read costs more
        self._start = self._end = 0
        self._behind = bytearray()
        self.error: OSError | None = None
        """What broke it: the MQTT client keeps that to itself."""

    def recv(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end. Raises what the socket does where there are none now."""
        if self._start == self._end:
            self._end = self._try(self._inner.recv_into, self._buffer)
            self._start = 0
        start = self._start
        self._start = min(start + size, self._end)
        return bytes(self._buffer[start : self._start])

    def pending(self) -> int:
        """Bytes that can be read although `select` may not say so."""
        inner = getattr(self._inner, "pending", None)
        return self._end - self._start + (inner() if inner is not None else 0)

    def send(self, data: Any) -> int:
        """Takes small packets, passes large ones on behind them; how many bytes. Raises as the socket."""
        if len(data) <= _SMALL and len(self._behind) + len(data) <= _WRITE_BEHIND:
            self._behind += data
            return len(data)
        self._send_behind()
        return self._try(self._inner.send, data)

    def flush(self) -> bool:
        """Sends what was taken, as far as the socket lets it; True where nothing is left."""
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._send_behind()
        return not self._behind

    def fileno(self) -> int:
        """Of the socket."""
        return self._inner.fileno()

    def setblocking(self, flag: bool) -> None:
        """Of the socket."""
        self._inner.setblocking(flag)

    def setsockopt(self, level: int, name: int, value: int) -> None:
        """Of the socket."""
        self._inner.setsockopt(level, name, value)

    def close(self) -> None:
        """Sends what can be sent at once, then closes the socket; what was read ahead is gone."""
        with suppress(OSError):
            self.flush()
        self._behind.clear()
        self._start = self._end
        self._inner.close()

    def _send_behind(self) -> None:
        while self._behind:
            del self._behind[: self._try(self._inner.send, self._behind)]

    def _try(self, act: Callable[[Any], int], data: Any) -> int:
        try:
            return act(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self.error = self.error or error
            raise


class BufferedClient(paho.Client):
    """A paho client with buffered sockets, for a loop that asks `pending` beside `select`, and flushes."""

    buffered: BufferedSocket | None = None
    """The last socket; it is still here when the client has dropped it."""

    def _create_socket(self) -> Any:
        self.buffered = BufferedSocket(super()._create_socket())
        return self.buffered
