"""Buffers a socket's reads and writes: few system calls for many small MQTT packets.

paho reads a packet byte by byte, and sends each packet separately. Every system call releases Python's global
lock, and a collector has many threads that wait for it. Completely buffered messages are parsed here, because
paho needs ten times as long, and a broker drops messages if a client is too slow.
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
"""Bytes per read: room for one chunk of the largest size, or a hundred offers."""
_SMALL = 8 * 1024
"""Larger packets are sent directly, without a copy."""
# Bounds the buffer: above it, a slow socket must be noticed by paho.
_WRITE_BEHIND = 64 * 1024
_PUBLISH_HEADS = frozenset(0x30 | dup | qos | retain for dup in (0, 8) for qos in (0, 2) for retain in (0, 1))
"""First bytes of messages of QoS 0 and 1."""


@dataclass(slots=True)
class Publish:
    """Holds a message from the broker; `mid` is the id to acknowledge with QoS 1, None with QoS 0."""

    topic: bytes
    payload: bytes
    retained: bool
    mid: int | None


class BufferedSocket:
    """Implements the methods of a non-blocking socket that paho needs. `flush` sends what `send` buffered."""

    def __init__(self, inner: Any) -> None:
        self._inner: socket.socket = inner
        self._buffer = memoryview(bytearray(_READ_AHEAD))  # one for good: a new one for each read costs more
        self._start = self._end = 0
        self._behind = bytearray()
        self.error: OSError | None = None
        """The error that ended the connection; paho does not report it."""

    def recv(self, size: int) -> bytes:
        """Returns at most `size` bytes; b"" at the end. Raises the socket's error if there are none now."""
        if self._start == self._end:
            self._end = self._try(self._inner.recv_into, self._buffer)
            self._start = 0
        start = self._start
        self._start = min(start + size, self._end)
        return bytes(self._buffer[start : self._start])

    def take_publish(self, *, v5: bool) -> Publish | None:
        """Returns the next packet if it is a completely buffered message of QoS 0 or 1.

        Every other packet is left to `recv`: an incomplete one, a malformed one, and one of QoS 2. Call it
        only at the start of a packet.

        Args:
            v5: whether the packet has properties, which are skipped.
        """
        buffer, start, end = self._buffer, self._start, self._end
        if start == end or buffer[start] not in _PUBLISH_HEADS:
            return None
        length, at = _varint(buffer, start + 1, end)
        # Incomplete: paho reads it piece by piece, because the rest may be larger than the buffer.
        if at == 0 or at + length > end:
            return None
        found = _parse(buffer, at, at + length, head=buffer[start], v5=v5)
        if found is not None:
            self._start = at + length
        return found

    def pending(self) -> int:
        """Returns the number of buffered bytes, which `select` does not know about."""
        inner = getattr(self._inner, "pending", None)
        return self._end - self._start + (inner() if inner is not None else 0)

    def send(self, data: Any) -> int:
        """Buffers a small packet, or sends the buffer and a large one. Returns the bytes taken."""
        if len(data) <= _SMALL and len(self._behind) + len(data) <= _WRITE_BEHIND:
            self._behind += data
            return len(data)
        self._send_behind()
        return self._try(self._inner.send, data)

    def flush(self) -> bool:
        """Sends the buffer as far as the socket accepts it; returns True if nothing is left."""
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._send_behind()
        return not self._behind

    def fileno(self) -> int:
        """Returns the socket's file descriptor."""
        return self._inner.fileno()

    def setblocking(self, flag: bool) -> None:
        """Sets the socket's blocking mode."""
        self._inner.setblocking(flag)

    def setsockopt(self, level: int, name: int, value: int) -> None:
        """Sets an option of the socket."""
        self._inner.setsockopt(level, name, value)

    def close(self) -> None:
        """Sends what can be sent at once, then closes the socket; buffered input is dropped."""
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
            # The first error is the cause; later ones only follow from it.
            self.error = self.error or error
            raise


def _parse(buffer: memoryview, at: int, stop: int, *, head: int, v5: bool) -> Publish | None:
    """Returns the message between `at` (after the fixed header) and `stop`; None if it is malformed."""
    name_at = at + 2
    name_end = at = name_at + int.from_bytes(buffer[at:name_at], "big")
    mid = None
    # Bit 1 is QoS 1 here, because QoS 2 is excluded; QoS 0 has no message id.
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
    """Returns MQTT's variable byte integer at `at` and the offset after it; (0, 0) if it is incomplete."""
    value = shift = 0
    # MQTT allows four bytes of seven bits; more is malformed and left to paho to report.
    while at < end and shift < 28:
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return 0, 0


class BufferedClient(paho.Client):
    """Makes paho use buffered sockets; its loop must check `pending` in addition to `select`, and flush."""

    buffered: BufferedSocket | None = None
    """The last socket, kept after paho has dropped it, for its error."""

    def take_publish(self) -> Publish | None:
        """Returns the next packet if it is a completely buffered message, which paho then does not see.

        Returns None if there is none, or if paho has read a part of a packet, which `loop_read` must finish.
        """
        sock = self.buffered
        # paho sets `command` when it has read a packet's first byte.
        if sock is None or self._in_packet["command"] != 0:
            return None
        return sock.take_publish(v5=self.protocol == paho.MQTTv5)

    def _create_socket(self) -> Any:
        self.buffered = BufferedSocket(super()._create_socket())
        return self.buffered
