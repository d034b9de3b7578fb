"""Defines a frame, what a source is, and what a source counts.

Recorded sources (files, replays) give every frame and end; live sources (cameras, streams) may stall, go
away and come back, and only their newest frame is of interest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from misfire_runtime.clock import wall_time
from misfire_runtime.encoded import picture_format
from misfire_runtime.preprocess import Image

MAX_NAMED_PROBLEMS = 100
"""Of a source: a folder of damaged files must not fill the memory. All are counted."""
MAX_POSITION_S = 1e9
"""What an offer takes: 30 years."""
# The pictures that collectors take; others are encoded anew.
_UPLOADED = frozenset({"image/jpeg", "image/png", "image/webp"})


@dataclass(frozen=True, slots=True)
class Frame:
    """Holds one picture on its way through the vehicle.

    image: [H,W,3] uint8 RGB.  index: counted per source from 0.  name: file or topic it was read from.
    pts_s: position in a recording, seconds from its start; None if the source has no times.
    recorded_at: seconds since 1970 when it was recorded; None for live sources and if it is not known.
    original: the encoded bytes it was decoded from, if it was one image; media_type names their format.
    wall, monotonic: when it was taken off the source.
    """

    image: Image
    source: str
    index: int
    name: str
    pts_s: float | None = None
    original: bytes | None = None
    media_type: str = ""
    recorded_at: float | None = None
    wall: float = field(default_factory=wall_time)
    monotonic: float = field(default_factory=time.monotonic)

    @property
    def time_s(self) -> float:
        """Returns the time for cool-downs: that of the recording if it has one, else monotonic."""
        return self.monotonic if self.pts_s is None else self.pts_s

    @property
    def position_s(self) -> float | None:
        """Returns `pts_s` as offers carry it; None for times before the start of the recording."""
        return self.pts_s if self.pts_s is not None and 0 <= self.pts_s <= MAX_POSITION_S else None


@dataclass
class SourceCounts:
    """Counts what happened at a source; written only by its reader."""

    read: int = 0
    unreadable: int = 0
    dropped: int = 0
    stalls: int = 0
    reconnects: int = 0
    problems: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_NAMED_PROBLEMS))

    def skip(self, problem: str, *, frames: int = 1) -> None:
        """Counts frames that could not be read, and keeps the reason."""
        self.unreadable += frames
        self.problems.append(problem)


class Source(Protocol):
    """Defines where frames come from.

    name: what offers call it.  live: never ends by itself, and only its newest frame counts.
    identity: of a recording and its content, so that an interrupted run goes on where it stopped;
    "" for live sources, and for recordings that begin anew in every run.
    """

    name: str
    live: bool
    identity: str
    counts: SourceCounts

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Yields frames from index `start` on until the end or `stop`.

        Raises:
            SourceError: it cannot be opened, or is lost for good.
        """
        ...

    def close(self) -> None:
        """Releases what it holds; safe to call twice."""
        ...


def sniff_media_type(data: bytes) -> str:
    """Returns the media type of encoded image bytes; "" for a format that collectors do not take.

    Pictures of other kinds (BMP, TIFF, ...) are read all the same, and encoded anew if they are chosen.
    """
    media_type = picture_format(data)
    return media_type if media_type in _UPLOADED else ""
