"""Reads live video through FFmpeg: network streams and V4L2 cameras, opened again when they are lost.

open --decode--> frames; on an error, an end or a silence longer than `silence_s`: wait (full jitter, doubling
up to a cap), open again, count it. FFmpeg's own timeout turns a silent peer into an error.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping

import av

from misfire_runtime.sources.frame import Frame, Source, SourceCounts
from misfire_runtime.sources.registry import SourceKind, SourceTable, register
from misfire_runtime.sources.video import PictureDecoder, upright

_LOG = logging.getLogger(__name__)

NETWORK_SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "tcp", "udp", "srt")
_CAMERAS = ("v4l2:", "/dev/video")
_RTSP_OVER_TCP = {"rtsp_transport": "tcp"}
"""Over UDP, FFmpeg's default, a lost packet is a damaged picture, and firewalls are in the way."""
_LOW_DELAY = {"fflags": "nobuffer", "flags": "low_delay"}
"""A vehicle wants the newest picture; FFmpeg would buffer some first."""


@register
class LiveStream(SourceKind):
    """Reads a stream or camera that FFmpeg can open. It never ends by itself; `stop` ends it."""

    prefixes = (*_CAMERAS, *(f"{scheme}://" for scheme in NETWORK_SCHEMES))
    live = True

    def __init__(
        self,
        url: str,
        *,
        name: str = "",
        format_name: str | None = None,
        options: Mapping[str, str] | None = None,
        silence_s: float = 5.0,
        max_wait_s: float = 30.0,
    ) -> None:
        """Opens nothing yet.

        Args:
            url: what FFmpeg opens, e.g. rtsp://camera/stream, or /dev/video0 with format_name "v4l2".
            name: what offers call it.
            format_name: FFmpeg's input format, if the URL does not tell.
            options: FFmpeg's options of that protocol, added to the ones set here.
            silence_s: a stream that gives nothing for this long is opened again.
            max_wait_s: longest wait before it is opened again.
        """
        self.url = url
        # Without what precedes the @: it may be a password, and names appear in logs and offers.
        self.name = name or url.rsplit("@", 1)[-1]
        self.counts = SourceCounts()
        self._format = format_name
        self._options = {
            **(_RTSP_OVER_TCP if url.startswith("rtsp") else {}),
            **_LOW_DELAY,
            **(options or {}),
        }
        self._silence_s = silence_s
        self._max_wait_s = max_wait_s

    @classmethod
    def open(cls, settings: SourceTable) -> Source:
        """See SourceKind. The input is a URL, or a V4L2 device with or without `v4l2:`."""
        where = settings.input
        camera = "v4l2" if where.startswith(_CAMERAS) else None
        url = where.removeprefix("v4l2:")
        return cls(url, name=settings.name, format_name=camera, options=settings.options)

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Yields frames as they arrive, across reconnects; the index goes on counting."""
        index, failures = start, 0
        while not stop.is_set():
            before = index
            try:
                for frame in self._session(index, stop):
                    index = frame.index + 1
                    yield frame
                problem = "the stream ended"
            except (av.error.FFmpegError, OSError) as error:
                problem = str(error.strerror or error)
            if stop.is_set():
                return
            # One frame proves that the stream works, so the waits begin anew.
            failures = 1 if index > before else failures + 1
            self.counts.reconnects += 1
            self.counts.problems.append(f"{self.name}: {problem}")
            _LOG.warning("source_lost", extra={"fields": {"source": self.name, "problem": problem}})
            # Full jitter: streams that were lost together must not all come back at once.
            stop.wait(random.uniform(0, min(self._max_wait_s, 0.5 * 2 ** min(failures, 16))))

    def close(self) -> None:
        """Does nothing: its own thread closes the container, at the latest after `silence_s`."""

    def _session(self, index: int, stop: threading.Event) -> Iterator[Frame]:
        # PyAV's two timeouts: to open, and to read; without them FFmpeg may wait for ever.
        timeout = (self._silence_s, self._silence_s)
        with av.open(
            self.url, format=self._format, options=dict(self._options), timeout=timeout
        ) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise OSError(f"{self.name} carries no video")
            decoder = PictureDecoder(stream)
            for packet in container.demux(stream):
                if stop.is_set():
                    return
                for picture in decoder.pictures(packet):
                    if picture is None:
                        self.counts.unreadable += 1
                        continue
                    self.counts.read += 1
                    yield Frame(upright(picture), self.name, index, self.name, monotonic=time.monotonic())
                    index += 1
