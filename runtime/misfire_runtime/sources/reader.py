"""Merges the frames of one or several sources into one stream.

source --own thread--> feed --> `FrameReader.next` (taken by the pipeline, in turn)

A single recorded source is read by the pipeline's own thread: where all cores are busy, handing every frame
from thread to thread under Python's lock costs more than decoding ahead gains. Several recorded sources have
feeds that hold a few frames and make their threads wait: nothing is lost. The feed of a live source holds the
newest frame alone: what it replaces is counted as dropped. A live source that gives nothing for `stall_s` is
stalled (counted, reported, not ended); only a recorded source ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from misfire_runtime.errors import SourceError
from misfire_runtime.service.worker import Worker
from misfire_runtime.sources.frame import Frame, Source

_LOG = logging.getLogger(__name__)
AHEAD = 4
"""Frames decoded ahead per recorded source: 25 MB at 1080p. More only hide a slow engine."""


class _Feed:
    """Owns the thread of one source, and holds what it read last."""

    def __init__(
        self, source: Source, *, ready: threading.Condition, stop: threading.Event, start: int
    ) -> None:
        self.source = source
        self.frames: deque[Frame] = deque()
        self.ended = False
        self.error: Exception | None = None
        self.last_s = time.monotonic()
        self.stalled = False
        self._ready = ready
        self._stop = stop
        self._start = start
        self.worker = Worker(f"source-{source.name}", self._run, stop=stop, wake=self._notify)

    def _run(self, _stop: threading.Event) -> None:
        try:
            for frame in self.source.frames(self._stop, start=self._start):
                if not self._put(frame):
                    break
        except Exception as error:  # noqa: BLE001  (a decoder's crash must not be silent: next() raises it)
            self.error = error
        finally:
            with self._ready:
                self.ended = True
                self._ready.notify_all()

    def _notify(self) -> None:
        with self._ready:
            self._ready.notify_all()

    def _put(self, frame: Frame) -> bool:
        with self._ready:
            self.last_s = time.monotonic()
            self.stalled = False
            # A vehicle wants the newest frame: an old one would only delay the next decision.
            if self.source.live:
                self.source.counts.dropped += len(self.frames)
                self.frames.clear()
            while len(self.frames) >= AHEAD and not self._stop.is_set():
                self._ready.wait(0.5)
            self.frames.append(frame)
            self._ready.notify_all()
        return not self._stop.is_set()


class _Inline:
    """Reads a recorded source in the thread that asks for its frames."""

    def __init__(self, source: Source, *, stop: threading.Event, start: int) -> None:
        self.source = source
        self.ended = False
        self.error: Exception | None = None
        self._frames = iter(source.frames(stop, start=start))

    def take(self) -> Frame | None:
        """Returns the next frame; None at the end, or if the source failed."""
        if self.ended:
            return None
        try:
            return next(self._frames)
        except StopIteration:
            self.ended = True
        except Exception as error:  # noqa: BLE001  (as in _Feed: raised by FrameReader.next)
            self.ended, self.error = True, error
        return None


class FrameReader:
    """Reads the frames of all sources in turn. Frames of one source keep their order."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        start: Mapping[str, int] | None = None,
        stall_s: float = 10.0,
    ) -> None:
        """Starts a thread for every source, but for a single recorded one.

        Args:
            sources: live and recorded ones may be mixed.
            start: first index per source name, to go on where an earlier run was stopped.
            stall_s: a live source that gives nothing for this long is stalled.
        """
        self.sources = tuple(sources)
        self._stall_s = stall_s
        self._ready = threading.Condition()
        self._stop = threading.Event()
        at = start or {}
        self._inline: _Inline | None = None
        if len(self.sources) == 1 and not self.sources[0].live:
            source = self.sources[0]
            self._inline = _Inline(source, stop=self._stop, start=at.get(source.name, 0))
            sources = ()
        self._feeds = [
            _Feed(source, ready=self._ready, stop=self._stop, start=at.get(source.name, 0))
            for source in sources
        ]
        self._turn = 0
        for feed in self._feeds:
            feed.worker.start()

    def next(self, timeout_s: float) -> Frame | None:
        """Returns the next frame; None if there is none within `timeout_s`, or ever (`ended`).

        Raises:
            SourceError: every source has ended, and at least one of them by an error.
        """
        if self._inline is not None:
            frame = self._inline.take()
            if frame is None:
                self._raise_error()
            return frame
        with self._ready:
            frame = self._take()
            if frame is None and not self._all_ended():
                self._ready.wait(timeout_s)
                frame = self._take()
            if frame is not None:
                return frame
            self._watch()
            if self._all_ended():
                self._raise_error()
            return None

    @property
    def ended(self) -> bool:
        """Returns True if all sources ended and every frame was taken."""
        if self._inline is not None:
            return self._inline.ended
        with self._ready:
            return self._all_ended()

    def finished(self, name: str) -> bool:
        """Returns True if that source came to its own end: not by an error, not by `close`."""
        own_end = any(r.source.name == name and r.ended and r.error is None for r in self._readers())
        return own_end and not self._stop.is_set()

    @property
    def stalled(self) -> tuple[str, ...]:
        """Returns the names of live sources that have given nothing for `stall_s`."""
        with self._ready:
            self._watch()
            return tuple(feed.source.name for feed in self._feeds if feed.stalled)

    @property
    def lost(self) -> tuple[str, ...]:
        """Returns the names of sources that ended by an error; the others go on."""
        return tuple(reader.source.name for reader in self._readers() if reader.error is not None)

    def close(self) -> None:
        """Ends the threads; frames not yet taken are dropped."""
        self._stop.set()
        with self._ready:
            self._ready.notify_all()
        for source in self.sources:
            source.close()
        for feed in self._feeds:
            # A driver may hang in a read; its thread is a daemon and does not keep the process.
            feed.worker.close(timeout_s=5.0)

    def _take(self) -> Frame | None:
        for step in range(len(self._feeds)):
            feed = self._feeds[(self._turn + step) % len(self._feeds)]
            if feed.frames:
                # The next source has the next turn: a fast one must not starve the others.
                self._turn = (self._turn + step + 1) % len(self._feeds)
                frame = feed.frames.popleft()
                # Only a feed that was full has a thread that waits for room.
                if not feed.source.live and len(feed.frames) == AHEAD - 1:
                    self._ready.notify_all()
                return frame
        return None

    def _all_ended(self) -> bool:
        return all(feed.ended and not feed.frames for feed in self._feeds)

    def _watch(self) -> None:
        now = time.monotonic()
        for feed in self._feeds:
            if feed.source.live and not feed.ended and not feed.stalled and now - feed.last_s > self._stall_s:
                feed.stalled = True
                feed.source.counts.stalls += 1
                _LOG.warning("source_stalled", extra={"fields": {"source": feed.source.name}})

    def _readers(self) -> list[_Feed | _Inline]:
        return [*self._feeds, self._inline] if self._inline is not None else list(self._feeds)

    def _raise_error(self) -> None:
        for reader in self._readers():
            if reader.error is not None:
                error = reader.error
                if isinstance(error, SourceError):
                    raise error
                raise SourceError(f"{reader.source.name}: {type(error).__name__}: {error}") from error
