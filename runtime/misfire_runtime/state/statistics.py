"""Measures a vehicle: counts, latency and the distribution of every score.

Sketches are DDSketches of one relative accuracy, so the fleet can merge those of all vehicles. Sketches and
latency cover the frames since the last heartbeat that was sent.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter
from collections.abc import Mapping

from ddsketch import LogCollapsingLowestDenseDDSketch
from ddsketch.ddsketch import BaseDDSketch
from ddsketch.pb.proto import DDSketchProto
from ddsketch.pb.proto import pb as schema
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

SKETCH_ACCURACY = 0.01
"""Relative error of a quantile. All vehicles need the same one: others cannot be merged."""
_BINS = 2048
"""Bounds a sketch's size; with more, the bins of the lowest values are merged."""
_RECENT_FRAMES = 20


class Statistics:
    """Holds the counts since the process began. The pipeline's threads write them, telemetry reads them."""

    def __init__(self) -> None:
        self.frames = 0
        self.refused_scores: Counter[str] = Counter()
        self.chosen: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.engine_failures = 0
        self.spooled = 0
        self.duplicates = 0
        self.skipped = 0
        self.last_frame_s = time.monotonic()
        """Monotonic time of the last frame that was scored, or skipped on purpose."""
        self.started_s = time.monotonic()
        self._lock = threading.Lock()
        self._scores: dict[str, LogCollapsingLowestDenseDDSketch] = {}
        self._latency = _sketch()
        self.recent_latency_ms = 0.0
        """Moving average over about twenty frames; the degradation ladder uses it."""

    def frame(self, scores: Mapping[str, float], *, latency_s: float) -> None:
        """Counts a scored frame.

        Args:
            scores: value by score name.
            latency_s: seconds from the start of preprocessing to the decision.
        """
        with self._lock:
            self.frames += 1
            self.last_frame_s = time.monotonic()
            self._latency.add(latency_s * 1000.0)
            # An exponential average: it needs no memory of single frames.
            self.recent_latency_ms += (latency_s * 1000.0 - self.recent_latency_ms) / _RECENT_FRAMES
            for name, value in scores.items():
                self._add(name, value)

    def late_score(self, name: str, value: float) -> None:
        """Adds a score of a frame that was counted before the score was known."""
        with self._lock:
            self._add(name, value)

    def _add(self, name: str, value: float) -> None:
        if name not in self._scores:
            self._scores[name] = _sketch()
        self._scores[name].add(value)

    def skip(self) -> None:
        """Counts a frame of a live source that the degradation ladder skips."""
        with self._lock:
            self.skipped += 1
            self.last_frame_s = time.monotonic()

    def latency_ms(self) -> tuple[float, float]:
        """Returns median and 99th percentile since the last heartbeat; zeros before the first frame."""
        with self._lock:
            if self._latency.count == 0:
                return 0.0, 0.0
            return float(self._latency.get_quantile_value(0.5)), float(self._latency.get_quantile_value(0.99))

    def sketches(self) -> dict[str, str]:
        """Returns each score's sketch as DDSketch protobuf in base64."""
        with self._lock:
            return {name: pack_sketch(sketch) for name, sketch in self._scores.items()}

    def quantiles(self, level: float) -> dict[str, float]:
        """Returns a quantile of each score since the last heartbeat; `level` is in 0..1."""
        with self._lock:
            return {name: float(sketch.get_quantile_value(level)) for name, sketch in self._scores.items()}

    def begin_stretch(self) -> None:
        """Clears sketches and latency after a heartbeat was sent."""
        with self._lock:
            self._scores = {}
            self._latency = _sketch()


def pack_sketch(sketch: BaseDDSketch) -> str:
    """Returns a sketch as DDSketch protobuf in base64."""
    return base64.b64encode(DDSketchProto.to_proto(sketch).SerializeToString()).decode("ascii")


def unpack_sketch(text: str, *, accuracy: float) -> BaseDDSketch:
    """Returns the sketch of a text made by `pack_sketch`.

    Args:
        text: protobuf in base64.
        accuracy: the expected relative accuracy.

    Raises:
        ValueError: the text is not a sketch, has another accuracy, or a negative or infinite count.
    """
    proto = schema.DDSketch()
    try:
        proto.ParseFromString(base64.b64decode(text, validate=True))
    except DecodeError as error:
        raise ValueError(f"not a sketch: {error}") from error
    # DDSketch's gamma is (1 + accuracy) / (1 - accuracy).
    if abs(proto.mapping.gamma * (1 - accuracy) / (1 + accuracy) - 1) > 1e-9:
        raise ValueError(f"not a sketch of relative accuracy {accuracy}")
    # A sketch may come from another machine; a negative count would break every quantile.
    counts = [*proto.positiveValues.contiguousBinCounts, *proto.negativeValues.contiguousBinCounts]
    if not all(0 <= count < float("inf") for count in (*counts, proto.zeroCount)):
        raise ValueError("not a sketch: a count is negative or not finite")
    return DDSketchProto.from_proto(proto)


def _sketch() -> LogCollapsingLowestDenseDDSketch:
    return LogCollapsingLowestDenseDDSketch(relative_accuracy=SKETCH_ACCURACY, bin_limit=_BINS)
