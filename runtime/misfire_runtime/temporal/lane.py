"""Watches one source: hands its answers to the comparison, and says where they cannot be compared.

answer, picture, time --rate? gap? cut?--> Comparison --> findings, in the order of the frames

Answers are comparable only if they follow each other closely: at least 8 frames a second, without a gap, a
jump back, or a cut to another scene. Whatever breaks the sequence makes the frames that wait "not known".
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import Image
from misfire_runtime.temporal.base import Comparison, Finding

MIN_RATE = 8.0
"""Frames per second. Below it an object moves too far from frame to frame to be recognised by its place."""
_RATE_TOLERANCE = 1.02
"""Times of recordings are rounded: 8 frames per second must count as 8."""
_INTERVALS = 8
"""Of which the median is the period: a frame that was dropped does not change it."""
GAP_PERIODS = 3.0
"""An interval above so many periods is a gap: a track could not be missed that long and return."""
CUT_DIFFERENCE = 0.1
"""Mean difference of two frames' thumbnails, of 0..1, from which on they show another scene.

Frames that follow each other in real video differ by at most 0.06, two scenes by 0.12 in the median.
"""
_THUMBNAIL = (16, 9)
_ROWS = 108
"""That the thumbnail is made of, at least: to average all of a large picture takes longer than tracking."""


class Lane:
    """Compares the answers of one source. Every frame that is put in comes out once, as a finding."""

    def __init__(self, comparison: Comparison[Any]) -> None:
        self._comparison = comparison
        self._pending = 0
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)
        self._last_s: float | None = None
        self._scene: NDArray[np.float32] | None = None
        self._size: tuple[int, ...] = ()
        self.problem: str | None = None
        """Why findings are not available now, for a person; None if they are."""

    def see(self, answer: NDArray[Any] | None, image: Image, time_s: float | None) -> list[Finding | None]:
        """Takes the next frame.

        Args:
            answer: of the graph for this frame, a batch of one; None if it has none.
            image: the picture, [H,W,3] uint8.
            time_s: of the frame; None if its source has no times.

        Returns:
            The findings of the frames that are settled now, oldest first; None for one that is not known.
        """
        elapsed_s = self._elapsed(time_s)
        continues = self._continues(elapsed_s)
        # Always: the next frame is compared with this one.
        cut = self._is_cut(image)
        self.problem = self._find_problem(time_s)
        reading = None if answer is None else self._comparison.read(answer)
        if reading is None or self.problem is not None:
            return [*self.flush(), None]
        settled: list[Finding | None] = [] if continues and not cut else self.flush()
        finding = self._comparison.compare(reading, elapsed_s=elapsed_s)
        self._pending += 1
        if self._pending > self._comparison.delay:
            self._pending -= 1
            settled.append(finding)
        return settled

    def flush(self) -> list[Finding | None]:
        """Gives up on the frames that wait: returns None for each, and begins anew."""
        pending, self._pending = self._pending, 0
        self._comparison.reset()
        return [None] * pending

    def _elapsed(self, time_s: float | None) -> float:
        """Returns the seconds since the frame before; 0 at the first, and without times."""
        last, self._last_s = self._last_s, time_s
        return 0.0 if last is None or time_s is None else time_s - last

    def _continues(self, elapsed_s: float) -> bool:
        """Returns whether a frame follows the last without a gap or a jump back, and learns the period."""
        if elapsed_s <= 0:
            self._intervals.clear()
            return False
        # Judged by the intervals before it. A gap counts as an interval too: a source may have become slow.
        period_s = statistics.median(self._intervals) if self._intervals else elapsed_s
        self._intervals.append(elapsed_s)
        return elapsed_s <= GAP_PERIODS * period_s

    def _find_problem(self, time_s: float | None) -> str | None:
        if time_s is None:
            return "its frames have no times"
        if not self._intervals:
            return None
        period_s = statistics.median(self._intervals)
        if period_s * MIN_RATE <= _RATE_TOLERANCE:
            return None
        return f"{1.0 / period_s:.3g} frames per second; at least {MIN_RATE:g} are needed"

    def _is_cut(self, image: Image) -> bool:
        """Returns whether the picture differs from the one before as another scene would."""
        step = max(1, min(image.shape[:2]) // _ROWS)
        thin = np.ascontiguousarray(image[::step, ::step])
        scene = cv2.resize(thin, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
        before, self._scene = self._scene, scene
        size, self._size = self._size, image.shape
        if before is None or size != image.shape:
            self._comparison.picture = self._picture(image)
            return True
        return float(np.abs(scene - before).mean()) > CUT_DIFFERENCE

    def _picture(self, image: Image) -> tuple[float, float, float, float]:
        """Returns where the picture lies in the network's input; what is cropped away is outside."""
        height, width = image.shape[:2]
        contract = self._comparison.form.contract
        x0, y0, x1, y1 = Placement.of(width, height, contract).to_network(np.array([0, 0, width, height]))
        return (
            float(max(0.0, x0)),
            float(max(0.0, y0)),
            float(min(contract.width, x1)),
            float(min(contract.height, y1)),
        )
