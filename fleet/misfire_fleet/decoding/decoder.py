"""Decodes uploads in separate processes with limits on memory and time.

check, thumbnail --upload--> an idle process --> result, or ImageError: proof that the upload is at fault
Small pictures go to any process. Costly ones (many bytes or passes, and all clips) go through a lane with a
budget of bytes and one place fewer than there are processes, so a small picture always finds a process.

A process that dies is replaced. If it used up its processor time, or crashed twice, the upload is at fault.
Any other death, a failed allocation, or a process that cannot be started is a problem of this machine. It
raises CheckFailedError: the same upload may pass later.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass

from misfire_fleet.decoding.headers import IMAGES, VIDEOS, Limits
from misfire_fleet.decoding.wire import WHOLE, Part, Request, Status, receive_reply, send_request
from misfire_fleet.errors import CheckFailedError
from misfire_runtime.errors import ImageError

log = logging.getLogger(__name__)

_START_S = 30.0
"""Seconds for a process to start: it imports OpenCV and all of PyAV, on a machine that may be loaded."""
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE})
"""Signals that an upload can cause. SIGILL means a library built for another processor, SIGBUS a disk that
cannot load a page of it."""
_KEPT_VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR")
"""Only these are passed on: a process that reads foreign bytes must not see passwords in the environment."""


@dataclass(frozen=True)
class Verified:
    """Holds width and height in pixels, of the picture or of the clip's first frame."""

    width: int
    height: int


class Decoder:
    """Manages a pool of decoding processes, started when they are needed. Thread-safe.

    Args:
        workers: number of processes, at least 2. Default: one per processor, at most 8.
        limits: costs that one upload may have.
    """

    def __init__(self, *, workers: int | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.workers = max(2, workers or min(os.cpu_count() or 2, 8))
        # Last in, first out: the processes that are warm are used first, and spare ones never start.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        self._lane = _Lane(self.workers - 1, self.limits.max_bytes)
        self._closed = False
        for _ in range(self.workers):
            self._idle.put(None)

    def check(self, data: bytes, media_type: str) -> Verified:
        """Decodes a picture, or a clip's first frame, and returns its size.

        Raises:
            ImageError: the upload is not of `media_type`, does not decode, or exceeds a limit.
            CheckFailedError: this machine cannot decode it now.
        """
        return _verified(self._decode(data, media_type, 0))

    def check_small(self, data: bytes, media_type: str) -> Verified | None:
        """Does the same as `check`, but returns None at once if the upload needs the lane for costly ones."""
        status, body = self._decode_small(data, media_type, 0)
        return _verified(body) if status is Status.DONE else None

    def thumbnail(self, data: bytes, media_type: str, width: int, *, part: Part = WHOLE) -> bytes:
        """Returns a JPEG at most `width` pixels wide, of a part of the picture. Raises as `check`."""
        return self._decode(data, media_type, width, part)

    def thumbnail_small(
        self, data: bytes, media_type: str, width: int, *, part: Part = WHOLE
    ) -> bytes | None:
        """Does the same as `thumbnail`, but returns None at once if the upload needs the lane."""
        status, body = self._decode_small(data, media_type, width, part)
        return body if status is Status.DONE else None

    def packets(self, data: bytes, media_type: str) -> tuple[str, list[tuple[int, bytes]]]:
        """Returns the codec of a clip and its encoded frames, each with its time in nanoseconds, undecoded.

        H.264 and H.265 are returned as Annex B byte streams. Raises as `check`, also for another codec.
        """
        if media_type not in VIDEOS:
            raise ImageError(f"{media_type!r} is no clip")
        with self._lane.place(self.limits.max_bytes // 2):
            body = self._ask(Request(media_type, large=True, packets=True), data)[1]
        size = int.from_bytes(body[:4], "big")
        head, at = json.loads(body[4 : 4 + size]), 4 + size
        frames = []
        for time_ns, length in head["frames"]:
            frames.append((int(time_ns), body[at : at + length]))
            at += length
        return str(head["codec"]), frames

    def close(self) -> None:
        """Stops the idle processes; busy ones are stopped when their request ends."""
        self._closed = True
        resting = []
        with suppress(queue.Empty):
            while True:
                resting.append(self._idle.get_nowait())
        # Given back after the queue was emptied: each leaves an empty place, which the loop would take again.
        for process in resting:
            self._give_back(process)

    def _decode(self, data: bytes, media_type: str, width: int, part: Part = WHOLE) -> bytes:
        status, body = self._decode_small(data, media_type, width, part)
        if status is Status.DONE:
            return body
        with self._lane.place(int(body)):
            return self._ask(Request(media_type, large=True, width=width, part=part), data)[1]

    def _decode_small(
        self, data: bytes, media_type: str, width: int, part: Part = WHOLE
    ) -> tuple[Status, bytes]:
        """Returns (DONE, result) or (LARGE, bytes needed)."""
        # The cost of a clip is unknown before it is opened: half of the budget, so that two run at once.
        if media_type in VIDEOS:
            return Status.LARGE, str(self.limits.max_bytes // 2).encode()
        if media_type not in IMAGES:
            raise ImageError(f"media type {media_type!r} is not taken")
        return self._ask(Request(media_type, large=False, width=width, part=part), data)

    def _ask(self, request: Request, data: bytes) -> tuple[Status, bytes]:
        """Returns (DONE or LARGE, body). Raises ImageError or CheckFailedError."""
        for _ in range(2):  # only a crash that repeats in a second process is proof about the upload
            try:
                status, body = self._ask_one(request, data)
            except _DiedError as death:
                if death.signal == signal.SIGPROF:
                    if not request.large:  # a small request has less time; only the full limit is proof
                        return Status.LARGE, b"0"
                    raise ImageError(
                        f"takes more than {self.limits.max_seconds:g} s of processor time"
                    ) from death
                fields = {"media_type": request.media_type, "death": str(death)}
                log.warning("decoder_died", extra={"fields": fields})
                if death.signal not in _CRASHES:
                    raise CheckFailedError(f"a decoder's process ended ({death})") from death
                continue
            if status is Status.REFUSED:
                raise ImageError(body.decode("utf-8", "replace"))
            if status is Status.FAILED:
                raise CheckFailedError(f"decoder: {body.decode('utf-8', 'replace')}")
            return status, body
        raise ImageError("crashes the decoder, in two processes")

    def _ask_one(self, request: Request, data: bytes) -> tuple[Status, bytes]:
        process, sound = self._idle.get(), False
        try:
            if process is not None and not process.alive:
                # It has ended; this closes our end of its socket.
                process.kill()
                process = None
            if process is None:
                process = _Process(self.limits)
            status, body = process.ask(request, data)
            sound = status is not Status.FAILED
            return status, body
        finally:
            self._give_back(process, sound=sound)

    def _give_back(self, process: _Process | None, *, sound: bool = True) -> None:
        """Frees the place of a process. A process that failed is killed; the next request starts another."""
        if process is not None and (self._closed or not sound):
            process.kill()
            process = None
        self._idle.put(process)


def _verified(body: bytes) -> Verified:
    width, height = json.loads(body)
    return Verified(int(width), int(height))


class _DiedError(Exception):
    """Reports that a process ended without a reply; `signal` killed it, 0 if it exited."""

    def __init__(self, code: int) -> None:
        self.signal = -code if code < 0 else 0
        super().__init__(f"signal {self.signal}" if code < 0 else f"exit code {code}")


class _Process:
    """Owns one decoding process and the socket to it."""

    def __init__(self, limits: Limits) -> None:
        """Starts the process and waits until it is ready. Raises CheckFailedError."""
        # The kernel ends a request that uses up its processor time. One that exceeds this longer limit waits
        # for the machine, and says nothing about the upload.
        patience_s = max(30.0, 3 * limits.max_seconds)
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        # Safe path: with -m, Python would first import from the current folder.
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-m", "misfire_fleet.decoding.worker", json.dumps(asdict(limits))]
        with ExitStack() as opened:
            try:
                self._socket, theirs = socket.socketpair()
                opened.push(self._socket)
                opened.push(theirs)
                self._process = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
                )
            except OSError as error:
                raise CheckFailedError(f"no process for decoding can be started: {error.strerror}") from error
            # Only the process may hold its end: otherwise its death would not show as the end of the stream.
            theirs.close()
            self._socket.settimeout(_START_S)
            try:
                self._reply()
            except _DiedError as death:
                raise CheckFailedError(f"a decoder's process did not start ({death})") from death
            self._socket.settimeout(patience_s)
            opened.pop_all()

    @property
    def alive(self) -> bool:
        """Returns False if the process has ended."""
        return self._process.poll() is None

    def ask(self, request: Request, data: bytes) -> tuple[Status, bytes]:
        """Sends a request and returns the reply. Raises _DiedError, or CheckFailedError after a timeout."""
        try:
            send_request(self._socket, request, data)
        except ConnectionError:
            raise _DiedError(self._process.wait()) from None
        except TimeoutError:
            raise CheckFailedError("a decoder's process takes nothing") from None
        return self._reply()

    def kill(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _reply(self) -> tuple[Status, bytes]:
        try:
            reply = receive_reply(self._socket)
        except (TimeoutError, ValueError) as error:
            self.kill()
            raise CheckFailedError(f"a decoder's process gives no answer ({error})") from error
        if reply is None:
            raise _DiedError(self._process.wait())
        return reply


class _Lane:
    """Limits concurrent costly requests by number and bytes, first come, first served."""

    def __init__(self, places: int, size: int) -> None:
        self._places, self._size = places, size
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def place(self, size: int) -> Iterator[None]:
        """Waits for a place and `size` bytes. A request above the whole budget runs if no other one does."""
        # In order of arrival: otherwise small requests could keep a large one waiting for ever.
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._has_room(size))
            self._waiting.popleft()
            self._places -= 1
            self._used += size
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._places += 1
                self._used -= size
                self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return self._places > 0 and (self._used == 0 or self._used + size <= self._size)
