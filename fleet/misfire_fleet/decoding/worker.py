"""Runs as the process that decodes foreign bytes: `python -m misfire_fleet.decoding.worker LIMITS`.

stdin is a socket: request --header, limits--> codecs --> reply. The kernel enforces the limits: the process
cannot open files or sockets or write files, and each request has bounded memory and processor time. A request
that exceeds its time kills the process (SIGPROF), and the owner sees the signal.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import pkgutil
import resource
import signal
import socket
import sys
from contextlib import suppress

import av
import cv2

from misfire_fleet.decoding import codecs
from misfire_fleet.decoding.headers import MIB, VIDEOS, Header, Limits, read_header
from misfire_fleet.decoding.wire import MAX_REPLY, Request, Status, receive_request, send_reply
from misfire_runtime.errors import ImageError

SMALL_BYTES = 32 * MIB
"""Memory of a small request: a picture of 10 million pixels in colour."""
SMALL_PASSES = 32_000_000
"""Pixels times scans of a small request: about 0.2 s."""
SMALL_SECONDS = 2.0
"""Ten times the expected time; a request that exceeds it is repeated as a large one."""
_SPARE_BYTES = 64 * MIB
"""Memory of a request besides the picture: buffers of the libraries and of Python."""
_DATA_MISSING = (b"premature end of data", b"Premature end of JPEG")
"""libjpeg fills missing data with grey and only prints a warning."""


class Warnings:
    """Collects what the libraries write to stderr about the current request, as much as a pipe holds."""

    def __init__(self) -> None:
        self._pipe, end = os.pipe()
        # The libraries write to descriptor 2 in C, so replacing sys.stderr would not be enough.
        os.dup2(end, 2)
        os.close(end)
        # A library must not block on a full pipe: nobody reads it during a request.
        os.set_blocking(self._pipe, False)
        os.set_blocking(2, False)

    def take(self) -> bytes:
        """Returns everything written since the last call."""
        text = b""
        with suppress(BlockingIOError):
            while part := os.read(self._pipe, 64 * 1024):
                text += part
        return text


class Memory:
    """Limits the address space of a request. Without /proc (not Linux) there is no limit."""

    def __init__(self) -> None:
        self._statm = -1
        # Opened once, before the process loses the right to open files.
        with suppress(OSError):
            self._statm = os.open("/proc/self/statm", os.O_RDONLY)

    def allow(self, size: int) -> None:
        """Limits the process to `size` bytes more than it uses. Raises MemoryError if they are not free."""
        if self._statm < 0:
            return
        # The first number is the address space in pages, which RLIMIT_AS limits.
        used = int(os.pread(self._statm, 64, 0).split()[0]) * mmap.PAGESIZE
        _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (used + size, hard))
            # Tries whether the machine has the memory: only then a failed allocation is the upload's fault.
            mmap.mmap(-1, size - MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        except (OSError, ValueError) as error:
            raise MemoryError(f"there are not {size} bytes of memory ({error})") from error

    def lift(self) -> None:
        """Removes the limit, so that the next upload can be received."""
        _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


class Worker:
    """Answers requests one after the other."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._socket, self._limits = sock, limits
        self._memory = Memory()
        self._warnings = Warnings()

    def run(self) -> None:
        """Serves requests until the owner closes the socket."""
        send_reply(self._socket, Status.READY)
        while self._serve():
            pass  # in its own method, so that the upload is freed before the process waits for the next one

    def _serve(self) -> bool:
        received = receive_request(self._socket)
        if received is not None:
            send_reply(self._socket, *self._answer(*received))
        return received is not None

    def _answer(self, request: Request, data: bytearray) -> tuple[Status, bytes]:
        seconds = self._limits.max_seconds if request.large else min(SMALL_SECONDS, self._limits.max_seconds)
        # Measures this request only. RLIMIT_CPU would count whole seconds since the process started.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            return self._decode(request, data)
        except ImageError as error:
            return Status.REFUSED, str(error).encode("utf-8", "replace")
        except Exception as error:  # noqa: BLE001  (nothing is known about the upload then)
            return Status.FAILED, f"{type(error).__name__}: {error}".encode("utf-8", "replace")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._memory.lift()

    def _decode(self, request: Request, data: bytearray) -> tuple[Status, bytes]:
        clip = request.media_type in VIDEOS
        header = Header(0, 0, memory=0) if clip else read_header(data, request.media_type, self._limits)
        memory = self._limits.max_bytes if request.large else min(SMALL_BYTES, self._limits.max_bytes)
        if not request.large and (header.memory > memory or header.passes * _area(header) > SMALL_PASSES):
            return Status.LARGE, str(header.memory).encode()
        allowance = memory + memory // 2 + _SPARE_BYTES
        self._memory.allow(allowance)
        self._warnings.take()  # drops what earlier requests left
        try:
            result = self._result(request, data, header)
            if any(phrase in self._warnings.take() for phrase in _DATA_MISSING):
                raise ImageError("damaged JPEG (data is missing before its end)")
            return Status.DONE, result
        except (ImageError, codecs.OutOfMemoryError) as error:
            # Codecs may report a failed allocation as a damaged picture. If the memory is free (this call
            # raises MemoryError otherwise), the upload is at fault.
            self._memory.allow(allowance)
            if not request.large:
                return Status.LARGE, str(header.memory).encode()
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"needs more than {allowance} bytes to decode") from error

    def _result(self, request: Request, data: bytearray, header: Header) -> bytes:
        kind, clip = request.media_type, request.media_type in VIDEOS
        if request.packets:
            return codecs.clip_packets(data, kind, most=MAX_REPLY - MIB)
        if request.width and clip:
            return codecs.clip_thumbnail(data, kind, self._limits, request.width, part=request.part)
        if request.width:
            return codecs.picture_thumbnail(data, kind, header, request.width, part=request.part)
        if clip:
            return json.dumps(codecs.check_clip(data, kind, self._limits)).encode()
        return json.dumps(codecs.check_picture(data, kind, header)).encode()


def _area(header: Header) -> int:
    return header.width * header.height


def _confine() -> None:
    """Takes the rights to open files and sockets and to write core files away from this process."""
    # PyAV imports many modules when they are first used, which is impossible after this function.
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    # A limit of 0 refuses new descriptors; the open ones (socket, pipe, statm) still work.
    limits = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
    )
    for limit, value in limits:
        resource.setrlimit(limit, (value, value))


def main() -> None:
    """Serves the socket on stdin."""
    cv2.setNumThreads(1)  # one decoder per process; the pool uses the other cores
    worker = Worker(socket.socket(fileno=0), Limits(**json.loads(sys.argv[1])))
    _confine()
    worker.run()


if __name__ == "__main__":
    main()
