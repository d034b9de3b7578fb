"""Reads frames from a GStreamer pipeline: what a Jetson's CSI camera needs.

gst-launch-1.0 (a process of its own) --raw RGB through a pipe--> frames; its words --> size, errors

The pipeline is written as for gst-launch-1.0, without a sink (one `appsink` at its end is taken off), e.g.
nvarguscamerasrc ! video/x-raw(memory:NVMM),width=1920,height=1080 ! nvvidconv ! video/x-raw,format=BGRx
It needs GStreamer's own programs and no Python binding: OpenCV's wheels are built without GStreamer. And a
driver that hangs or crashes takes its process with it, not the vehicle: it is ended and started again.
"""

from __future__ import annotations

import logging
import os
import random
import re
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import numpy as np

from misfire_runtime.errors import SourceError
from misfire_runtime.preprocess import Image
from misfire_runtime.sources.frame import Frame, Source, SourceCounts
from misfire_runtime.sources.registry import SourceKind, SourceTable, register

_LOG = logging.getLogger(__name__)

# A process, not a library: a camera driver that crashes ends it, not the vehicle.
PROGRAM = "gst-launch-1.0"
_PREFIX = "gst:"
_SINK = "misfire-frames"
# With -v, gst-launch prints the negotiated format of each pad.
_CAPS = re.compile(
    rf"GstFdSink:{_SINK}\.GstPad:sink: caps = video/x-raw.*?width=\(int\)(\d+), height=\(int\)(\d+)"
)
_APPSINK = re.compile(r"!\s*appsink\b[^!]*$")
_ANY_SINK = re.compile(r"!\s*(?!appsink)\w*sink\b[^!]*$")
_MAX_PIXELS = 64_000_000
"""The limit of pictures in files holds for cameras, too."""
_MAX_ERRORS = 3
"""The first errors name the cause; those behind them are its consequences."""
_WAIT_S = 0.2
"""How late `stop` is seen while nothing arrives."""
_END_S = 3.0
"""A camera's driver may take seconds to release it; after that the process is killed."""


@register
class GStreamerPipeline(SourceKind):
    """Yields frames of a pipeline; restarts it when it ends, fails, or gives nothing for `silence_s`."""

    prefixes = (_PREFIX,)
    live = True

    def __init__(
        self,
        pipeline: str,
        *,
        name: str = "gstreamer",
        silence_s: float = 10.0,
        max_wait_s: float = 30.0,
    ) -> None:
        """Checks the pipeline; it is started by `frames`.

        Args:
            pipeline: as for gst-launch-1.0, without a sink.
            name: what offers call it.
            silence_s: a pipeline that gives nothing for this long is started again.
            max_wait_s: longest wait before it is started again.

        Raises:
            SourceError: GStreamer is not installed, or the pipeline has a sink of its own.
        """
        if _ANY_SINK.search(pipeline):
            raise SourceError(f"GStreamer pipeline {pipeline!r} must end in video, without a sink of its own")
        program = shutil.which(PROGRAM)
        if program is None:
            raise SourceError(f"{PROGRAM} is not here; install GStreamer: apt-get install gstreamer1.0-tools")
        try:
            # A list, not a shell: nothing in a configuration can start another program.
            self._command = [program, "-v", *shlex.split(_APPSINK.sub("", pipeline))]
        except ValueError as error:
            raise SourceError(f"GStreamer pipeline {pipeline!r}: {error}") from error
        self.name = name
        self.counts = SourceCounts()
        self._silence_s = silence_s
        self._max_wait_s = max_wait_s

    @classmethod
    def open(cls, settings: SourceTable) -> Source:
        """See SourceKind. The input is the pipeline behind `gst:`."""
        return cls(settings.input.removeprefix(_PREFIX), name=settings.name or "gstreamer")

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Yields frames as they arrive, across restarts of the pipeline; the index goes on counting."""
        index, failures = start, 0
        while not stop.is_set():
            before = index
            running = _Running(self._command, silence_s=self._silence_s)
            try:
                for image in running.images(stop):
                    self.counts.read += 1
                    yield Frame(image, self.name, index, self.name, monotonic=time.monotonic())
                    index += 1
            finally:
                running.close()
            if stop.is_set():
                return
            # One frame proves that the pipeline works, so the waits begin anew.
            failures = 1 if index > before else failures + 1
            self.counts.reconnects += 1
            self.counts.problems.append(f"{self.name}: {running.problem}")
            _LOG.warning("source_lost", extra={"fields": {"source": self.name, "problem": running.problem}})
            stop.wait(random.uniform(0, min(self._max_wait_s, 0.5 * 2 ** min(failures, 16))))

    def close(self) -> None:
        """Does nothing: the thread that reads the process ends it."""


class _Running:
    """Runs the pipeline once. `problem` says why it is over."""

    def __init__(self, command: list[str], *, silence_s: float) -> None:
        self._silence_s = silence_s
        self._frames, into = os.pipe()
        # sync=false: frames are written when they arrive, not when they are due.
        tail = f"! videoconvert ! video/x-raw,format=RGB ! fdsink name={_SINK} fd={into} sync=false"
        try:
            self._process = subprocess.Popen(
                [*command, *tail.split()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                # GStreamer prints errors on one and the format on the other; one pipe keeps them in order.
                stderr=subprocess.STDOUT,
                pass_fds=(into,),
                start_new_session=True,  # Ctrl-C is for the vehicle, which then ends the pipeline
            )
        finally:
            # Only the child writes: otherwise its end would never be seen as the end of the pipe.
            os.close(into)
        assert self._process.stdout is not None
        self._words = self._process.stdout.fileno()
        self._line = b""
        self._errors: list[str] = []
        self._size: tuple[int, int] | None = None
        self._picture = bytearray()
        self._filled = 0
        self._ended = ""

    @property
    def problem(self) -> str:
        """GStreamer's own errors, else how it ended."""
        return "; ".join(self._errors) or self._ended

    def images(self, stop: threading.Event) -> Iterator[Image]:
        """Yields [H,W,3] uint8 RGB until it ends, falls silent, changes its size, or `stop`."""
        last = time.monotonic()
        while not (stop.is_set() or self._ended):
            # The size is printed, not part of the pictures: none is read before it is known.
            wanted = [self._words] if self._size is None else [self._frames, self._words]
            ready, _, _ = select.select(wanted, [], [], _WAIT_S)
            if self._words in ready:
                self._listen()
            if self._frames in ready and not self._ended:
                image = self._read()
                if image is not None:
                    last = time.monotonic()
                    yield image
            elif self._size is None and self._process.poll() is not None:
                self._listen()
                self._ended = f"{PROGRAM} ended with status {self._process.returncode}"
            elif time.monotonic() - last > self._silence_s:
                self._ended = f"no frame for {self._silence_s:g} s"

    def close(self) -> None:
        """Ends the process: asked first, so that the driver can release the camera."""
        # gst-launch shuts a pipeline down in order at SIGINT, as at Ctrl-C.
        for number in (signal.SIGINT, signal.SIGKILL):
            self._process.send_signal(number)
            try:
                self._process.wait(_END_S)
                break
            except subprocess.TimeoutExpired:
                continue
        os.close(self._frames)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> Image | None:
        """Reads what has arrived of a picture; returns the picture once it is complete."""
        assert self._size is not None
        width, height = self._size
        stride = (3 * width + 3) // 4 * 4  # rows begin at multiples of four bytes
        if not self._filled:
            self._picture = bytearray(stride * height)
        # readv fills the picture in place: no copy of several MB per frame.
        count = os.readv(self._frames, [memoryview(self._picture)[self._filled :]])
        self._filled += count
        if count == 0:
            self._listen()
            self._ended = self._ended or "the pipeline ended"
        if self._filled < len(self._picture):
            return None
        self._filled = 0
        rows = np.frombuffer(self._picture, np.uint8).reshape(height, stride)
        # Without the padding at the ends of rows.
        return np.ascontiguousarray(rows[:, : 3 * width]).reshape(height, width, 3)

    def _listen(self) -> None:
        """Reads what the pipeline prints: the size of its pictures, and what is wrong."""
        while select.select([self._words], [], [], 0)[0]:
            # 65536 is the size of a pipe on Linux: all that waits, in one read.
            data = os.read(self._words, 65536)
            if not data:
                return
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                self._hear(line.decode("utf-8", "replace").strip())

    def _hear(self, line: str) -> None:
        found = _CAPS.search(line)
        if found is not None:
            size = (int(found[1]), int(found[2]))
            if size[0] * size[1] > _MAX_PIXELS:
                self._ended = f"pictures of {size[0]}x{size[1]} are above the limit of {_MAX_PIXELS} pixels"
            elif self._size not in (None, size):
                self._ended = "the pictures changed their size"
            self._size = size
        elif line.startswith(("ERROR", "WARNING: erroneous pipeline")):
            self._errors = [*self._errors, line[:300]][:_MAX_ERRORS]
