"""A socket that reads ahead: the MQTT client asks for a packet byte by byte, the system is asked once.

Every system call also hands over Python's lock, and a collector has many threads that want it.
"""

from __future__ import annotations

import socket
from typing import Any

import paho.mqtt.client as paho

_READ_AHEAD = 128 * 1024


class ReadAhead:
    """What paho needs of a non-blocking socket, with a buffer before `recv`."""

    def __init__(self, inner: Any) -> None:
        self._inner: socket.socket = inner
        self._buffer = memoryview(bytearray(_READ_AHEAD))  # one for good: a new one for each read costs more
        self._start = self._end = 0

    def recv(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end. Raises what the socket does where there are none now."""
        if self._start == self._end:
            self._end = self._inner.recv_into(self._buffer)
            self._start = 0
        start = self._start
        self._start = min(start + size, self._end)
        return bytes(self._buffer[start : self._start])

    def pending(self) -> int:
        """Bytes that can be read although `select` may not say so."""
        inner = getattr(self._inner, "pending", None)
        return self._end - self._start + (inner() if inner is not None else 0)

    def send(self, data: Any) -> int:
        """Of the socket."""
        return self._inner.send(data)

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
        """Closes the socket; what was read ahead is gone."""
        self._start = self._end
        self._inner.close()


class ReadAheadClient(paho.Client):
    """A paho client whose sockets read ahead. For loops that ask `pending` beside `select`."""

    def _create_socket(self) -> Any:
        return ReadAhead(super()._create_socket())
