"""Defines the messages between a decoder's process and its owner on a socket pair: fixed headers, then bytes.

owner --Request + upload--> process;  process --Reply + result or reason--> owner
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from misfire_fleet.decoding.headers import IMAGES, VIDEOS

MAX_REPLY = 96 * 1024 * 1024
"""Above any thumbnail and any clip's packets: bounds what a broken process can make its owner allocate."""
_MEDIA_TYPES = sorted(IMAGES | VIDEOS)
_REQUEST = struct.Struct("!BBBI4HQ")
"""Index of the media type, large and packets (0 or 1), width in pixels, left, top, right and bottom of the
part in steps of 1/65535 of the picture, bytes of the upload."""
_STEPS = 65_535
Part = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of the upright picture, 0..1."""
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)
_REPLY = struct.Struct("!BQ")
"""Status, bytes of the body."""


class Status(IntEnum):
    """Names the ways in which a request ends."""

    READY = 0
    DONE = 1
    REFUSED = 2
    """The upload is at fault; the body has the reason."""
    LARGE = 3
    """The upload exceeds the limits of a small request; the body is the number of bytes that it needs."""
    FAILED = 4
    """The process or the machine is at fault; the body has the reason."""


@dataclass(frozen=True)
class Request:
    """Requests a thumbnail of `width` pixels, or a check if width is 0. `large` applies the full limits.

    `part`: of the picture, to be shown alone. `packets` requests the encoded frames of a clip instead.
    """

    media_type: str
    large: bool
    width: int = 0
    part: Part = WHOLE
    packets: bool = False


def send_request(sock: socket.socket, request: Request, data: bytes) -> None:
    """Sends a request and its upload, in one call if both fit: the process then wakes up once."""
    kind = _MEDIA_TYPES.index(request.media_type)
    part = (round(_STEPS * min(1.0, max(0.0, side))) for side in request.part)
    head = _REQUEST.pack(kind, request.large, request.packets, request.width, *part, len(data))
    sent = sock.sendmsg([head, data])
    if sent < len(head):
        raise ConnectionError("the header of a request was cut")
    if sent < len(head) + len(data):
        sock.sendall(memoryview(data)[sent - len(head) :])


def receive_request(sock: socket.socket) -> tuple[Request, bytearray] | None:
    """Returns the next request and its upload; None when the owner has closed the socket."""
    head = _receive(sock, _REQUEST.size)
    if head is None:
        return None
    kind, large, packets, width, *sides, size = _REQUEST.unpack(head)
    x0, y0, x1, y1 = (side / _STEPS for side in sides)
    data = _receive(sock, size)
    if data is None:
        return None
    return Request(_MEDIA_TYPES[kind], bool(large), width, (x0, y0, x1, y1), bool(packets)), data


def send_reply(sock: socket.socket, status: Status, body: bytes = b"") -> None:
    """Sends a status and a body."""
    sock.sendall(_REPLY.pack(status, len(body)) + body)


def receive_reply(sock: socket.socket) -> tuple[Status, bytes] | None:
    """Returns the next reply, None if the process has ended.

    Raises:
        ValueError: the reply is invalid.
        TimeoutError: no reply came within the socket's timeout.
    """
    head = _receive(sock, _REPLY.size)
    if head is None:
        return None
    status, size = _REPLY.unpack(head)
    if size > MAX_REPLY:
        raise ValueError(f"a reply of {size} bytes")
    body = _receive(sock, size)
    return None if body is None else (Status(status), bytes(body))


def _receive(sock: socket.socket, size: int) -> bytearray | None:
    """Returns exactly `size` bytes; None if the other side has closed the connection."""
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
