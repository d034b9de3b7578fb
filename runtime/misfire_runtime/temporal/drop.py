"""Compares what a detector sees now with what it saw in the last minutes: the score `box_drop`.

detections --sum of box scores--> mean of each second --last 3 seconds / median of 5 minutes--> 1 - ratio

A detector that goes blind shows less and less, frame by frame, and no single frame is strange by itself. The
score is 0 while as much is seen as usual, and 1 once nothing is. It is known at once, needs no calibration,
and is missing in the first minute, because nothing is usual yet. An empty road is a drop as well: combine it
with `silence`, or with the vehicle's own signals, in a rule.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "box_drop"
WINDOW_S = 300
"""Seconds that are usual: of a drive's scene, not of its day."""
RECENT_S = 3
"""Seconds that are compared: a gap in the traffic is longer than a frame, and fog longer than this."""
LEARNING_S = 60
"""Seconds seen before anything is usual."""
LEAST_USUAL = 0.5
"""Sum of scores below which nothing could drop: half a box."""


class BoxDrop:
    """Holds the last minutes of every source, at most WINDOW_S numbers each."""

    def __init__(self, *, threshold: float) -> None:
        """Takes the score from which on a box is kept."""
        self._threshold = threshold
        self._sources: dict[str, _Minutes] = {}

    def see(self, source: str, detections: NDArray[Any] | None, time_s: float | None) -> float | None:
        """Takes the next frame of a source.

        Args:
            source: its name.
            detections: [1,M,6], of a batch of one; None if there are none.
            time_s: of the frame; None if its source has no times.

        Returns:
            The score, 0..1; None while nothing is usual yet, or without detections or times.
        """
        if detections is None or time_s is None or not math.isfinite(time_s):
            return None
        scores = np.asarray(detections[0, :, 4], np.float64)
        kept = scores[np.isfinite(scores) & (scores >= self._threshold)]
        return self._sources.setdefault(source, _Minutes()).add(float(kept.sum()), time_s)


class _Minutes:
    """Holds the means of past seconds, oldest first, and the running second."""

    def __init__(self) -> None:
        self._means: deque[float] = deque(maxlen=WINDOW_S)
        self._second = -math.inf
        self._sum, self._count = 0.0, 0
        self._usual: float | None = None

    def add(self, amount: float, time_s: float) -> float | None:
        """Takes what one frame shows, and returns its drop; None if nothing is usual yet."""
        second = math.floor(time_s)
        if second < self._second:
            # A jump back is another drive.
            self._means.clear()
            self._usual = None
        if second != self._second:
            self._close(second)
        self._sum += amount
        self._count += 1
        if self._usual is None:
            return None
        if self._usual < LEAST_USUAL:
            return 0.0
        recent = [*list(self._means)[-(RECENT_S - 1) :], self._sum / self._count]
        return min(1.0, max(0.0, 1.0 - statistics.fmean(recent) / self._usual))

    def _close(self, second: int) -> None:
        """Begins another second."""
        if self._count and second > self._second:
            self._means.append(self._sum / self._count)
        self._second, self._sum, self._count = second, 0.0, 0
        # Without the seconds that are compared with it.
        before = list(self._means)[: -(RECENT_S - 1)]
        self._usual = statistics.median(before) if len(before) >= LEARNING_S else None
