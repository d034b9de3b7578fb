"""A frame, what a source is, and what a source counts.

Recorded sources (files, replays) give every frame and end; live sources (cameras, streams) may stall, go
away and come back, and whoever reads them is interested in the newest frame alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from misfire_runtime.clock import wall_time
from misfire_runtime.preprocess import Image

MAX_NAMED_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture on its way through the vehicle.

    image: [H,W,3] uint8 RGB.  index: counted per source from 0.  name: file or topic it was read from.
    pts_s: presentation time of a recording, seconds; None where the source has none.
    original: the encoded bytes it was decoded from, where that is one image; media_type names their format.
    wall, monotonic: when it was taken off the source.
    """

    image: Image
    source: str
    index: int
    name: str
    pts_s: float | None = None
    original: bytes | None = None
    media_type: str = ""
    wall: float = field(default_factory=wall_time)
    monotonic: float = field(default_factory=time.monotonic)

    @property
    def time_s(self) -> float:
        """The time base of cool-downs: the recording's own where it has one, so that a replay repeats."""
        return self.monotonic if self.pts_s is None else self.pts_s


@dataclass
class SourceCounts:
    """What happened at a source; written by its reader alone."""

    read: int = 0
    unreadable: int = 0
    dropped: int = 0
    stalls: int = 0
    reconnects: int = 0
    problems: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_NAMED_PROBLEMS))

    def skip(self, problem: str, *, frames: int = 1) -> None:
        """Counts `frames` that could not be read and keeps the reason."""
        self.unreadable += frames
        self.problems.append(problem)


class Source(Protocol):
    """Where frames come from. `live` sources never end by themselves."""

    name: str
    live: bool
    counts: SourceCounts

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Yields frames from index `start` on until the end or `stop`.

        Raises SourceError where it cannot be opened, or went away for good.
        """
        ...

    def close(self) -> None:
        """Releases what it holds; safe to call twice."""
        ...


def sniff_media_type(data: bytes) -> str:
    """The media type of encoded image bytes by their first bytes; "" for a kind that collectors do not take.

    Pictures of other kinds (BMP, TIFF, ...) are read all the same, and encoded anew where they are chosen.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return ""
