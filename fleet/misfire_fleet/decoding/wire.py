"""What a decoder's process and its owner say to each other over a socket pair: fixed headers, then bytes.

owner --Request + upload--> process;  process --Reply + result or reason--> owner
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from misfire_fleet.decoding.headers import IMAGES, VIDEOS

MAX_REPLY = 16 * 1024 * 1024
_MEDIA_TYPES = sorted(IMAGES | VIDEOS)
_REQUEST = struct.Struct("!BBIQ")
_REPLY = struct.Struct("!BQ")


class Status(IntEnum):
    """How a request ended."""

    READY = 0
    DONE = 1
    REFUSED = 2
    """The upload is at fault: the body says why."""
    LARGE = 3
    """Needs more than a small request may have: the body is the number of bytes."""
    FAILED = 4
    """The process is at fault, or the machine: the body says why."""


@dataclass(frozen=True)
class Request:
    """width: of the thumbnail in pixels; 0 asks for the check.  large: with the full limits."""

    media_type: str
    large: bool
    width: int = 0


def send_request(sock: socket.socket, request: Request, data: bytes) -> None:
    """Sends both, in one call if they fit: the process then wakes up once."""
    kind = _MEDIA_TYPES.index(request.media_type)
    head = _REQUEST.pack(kind, request.large, request.width, len(data))
    sent = sock.sendmsg([head, data])
    if sent < len(head):
        raise ConnectionError("the header of a request was cut")
    if sent < len(head) + len(data):
        sock.sendall(memoryview(data)[sent - len(head) :])


def receive_request(sock: socket.socket) -> tuple[Request, bytearray] | None:
    """The next request and its upload; None at the end."""
    head = _receive(sock, _REQUEST.size)
    if head is None:
        return None
    kind, large, width, size = _REQUEST.unpack(head)
    data = _receive(sock, size)
    return None if data is None else (Request(_MEDIA_TYPES[kind], bool(large), width), data)


def send_reply(sock: socket.socket, status: Status, body: bytes = b"") -> None:
    """Sends both."""
    sock.sendall(_REPLY.pack(status, len(body)) + body)


def receive_reply(sock: socket.socket) -> tuple[Status, bytes] | None:
    """The reply; None if the process is gone. Raises ValueError if it is none, TimeoutError."""
    head = _receive(sock, _REPLY.size)
    if head is None:
        return None
    status, size = _REPLY.unpack(head)
    if size > MAX_REPLY:
        raise ValueError(f"a reply of {size} bytes")
    body = _receive(sock, size)
    return None if body is None else (Status(status), bytes(body))


def _receive(sock: socket.socket, size: int) -> bytearray | None:
    """Exactly `size` bytes; None if the other side is gone."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        try:
            got = sock.recv_into(view[at:])
        except ConnectionError:
            return None
        if got == 0:
            return None
        at += got
    return data
