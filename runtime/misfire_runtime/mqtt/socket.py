"""A socket that reads ahead and writes behind: few system calls for many small MQTT packets.

The MQTT client asks for a packet byte by byte, and sends each by itself. Every system call also hands over
Python's lock, and a collector has many threads that want it. A message that was read ahead completely is
parsed here: the MQTT client needs ten times as long, and a flood of messages is lost where nobody keeps up.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho

_READ_AHEAD = 128 * 1024
_SMALL = 8 * 1024
_WRITE_BEHIND = 64 * 1024
_PUBLISH_HEADS = frozenset(0x30 | dup | qos | retain for dup in (0, 8) for qos in (0, 2) for retain in (0, 1))
"""First bytes of messages of QoS 0 and 1."""


@dataclass(slots=True)
class Publish:
    """A message from the broker, of QoS 0 or 1. `mid` is what a message of QoS 1 is acknowledged with."""

    topic: bytes
    payload: bytes
    retained: bool
    mid: int | None


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

    def take_publish(self, *, v5: bool) -> Publish | None:
        """The next packet, which must begin here, if it is a message that was read ahead to its end.

        None leaves every other packet to `recv`: one that is not here completely, one that is malformed, and
        one of QoS 2. v5: the packet has properties, which are skipped.
        """
        buffer, start, end = self._buffer, self._start, self._end
        if start == end or buffer[start] not in _PUBLISH_HEADS:
            return None
        length, at = _varint(buffer, start + 1, end)
        if at == 0 or at + length > end:
            return None
        found = _parse(buffer, at, at + length, head=buffer[start], v5=v5)
        if found is not None:
            self._start = at + length
        return found

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


def _parse(buffer: memoryview, at: int, stop: int, *, head: int, v5: bool) -> Publish | None:
    """The message from `at` to `stop`, behind its first byte and its length; None if it is malformed."""
    name_at = at + 2
    name_end = at = name_at + int.from_bytes(buffer[at:name_at], "big")
    mid = None
    if head & 0x02:
        mid = int.from_bytes(buffer[at : at + 2], "big")
        at += 2
    if v5:
        length, begin = _varint(buffer, at, stop)
        if begin == 0:
            return None
        at = begin + length
    if at > stop:
        return None
    topic, payload = bytes(buffer[name_at:name_end]), bytes(buffer[at:stop])
    return Publish(topic, payload, bool(head & 0x01), mid)


def _varint(buffer: memoryview, at: int, end: int) -> tuple[int, int]:
    """MQTT's variable byte integer at `at`, and where it ends: 0 if it does not end before `end`."""
    value = shift = 0
    while at < end and shift < 28:
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return 0, 0


class BufferedClient(paho.Client):
    """A paho client with buffered sockets, for a loop that asks `pending` beside `select`, and flushes."""

    buffered: BufferedSocket | None = None
    """The last socket; it is still here when the client has dropped it."""

    def take_publish(self) -> Publish | None:
        """The next packet if it is a message that was read ahead; the client does not see it then.

        None if there is none, or if the client has read a part of a packet: then `loop_read` goes on.
        """
        sock = self.buffered
        if sock is None or self._in_packet["command"] != 0:
            return None
        return sock.take_publish(v5=self.protocol == paho.MQTTv5)

    def _create_socket(self) -> Any:
        self.buffered = BufferedSocket(super()._create_socket())
        return self.buffered
