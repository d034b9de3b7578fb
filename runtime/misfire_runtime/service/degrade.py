"""Reduces the work under load, in steps.

0 everything; 1 no clips; 2 every second frame scored; 3 every fourth; 4 only the random stream. Frames of the
random stream are scored at every step, so it stays complete. Only live sources skip frames, never recordings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from misfire_runtime.files import read_bounded
from misfire_runtime.tables import RelativePath, Table

_LOG = logging.getLogger(__name__)
STEPS = ("normal", "no clips", "every 2nd frame", "every 4th frame", "random stream only")
_LEAVE_AT = 0.8
"""Hysteresis: a step back at the limit itself would bring the load back, and the step would alternate."""
_MAX_READING = 32
"""Maximum bytes of a temperature file."""


class DegradeTable(Table):
    """Configures degradation: above a limit the vehicle does less, below 80 % of it more again."""

    enabled: bool = True
    latency_ms: float | None = Field(default=None, gt=0)
    temperature_c: float | None = Field(default=None, gt=0)
    temperature_file: RelativePath = Path("/sys/class/thermal/thermal_zone0/temp")
    hold_s: float = Field(default=10.0, ge=0)


class DegradationLadder:
    """Chooses the step. The strain is the largest ratio of an input to its limit; above 1, the step rises.

    Args:
        table: the limits.
        now: returns monotonic seconds.
    """

    def __init__(self, table: DegradeTable, *, now: Callable[[], float] = time.monotonic) -> None:
        self.step = 0
        self.table = table
        self._now = now
        self._changed_s = float("-inf")

    def update(self, *, latency_ms: float, queue_fill: float) -> int:
        """Updates the step by at most one per `hold_s`, and returns it.

        Args:
            latency_ms: mean latency of recent frames.
            queue_fill: fill of the writer's queue, 0..1.
        """
        if not self.table.enabled:
            return 0
        strain = self._strain(latency_ms, queue_fill)
        now = self._now()
        # A step needs time to show its effect before the next one.
        if now - self._changed_s >= self.table.hold_s:
            if strain > 1.0 and self.step < len(STEPS) - 1:
                self._move(self.step + 1, strain, now)
            elif strain < _LEAVE_AT and self.step > 0:
                self._move(self.step - 1, strain, now)
        return self.step

    @property
    def random_only(self) -> bool:
        """Returns True at the last step, at which triggers are not evaluated."""
        return self.step == len(STEPS) - 1

    def scores(self, index: int) -> bool:
        """Returns True if frame `index` of a live source is scored at this step, even if it is not random."""
        if self.step < 2:
            return True
        # By index, so that the choice does not depend on when the step changed.
        return self.step < 4 and index % (2 if self.step == 2 else 4) == 0

    def _strain(self, latency_ms: float, queue_fill: float) -> float:
        strains = [queue_fill / 0.9]  # reacts before the queue is full and drops frames
        if self.table.latency_ms is not None:
            strains.append(latency_ms / self.table.latency_ms)
        if self.table.temperature_c is not None:
            heat = read_temperature_c(self.table.temperature_file)
            if heat is not None:
                strains.append(heat / self.table.temperature_c)
        return max(strains)

    def _move(self, step: int, strain: float, now: float) -> None:
        self.step, self._changed_s = step, now
        _LOG.warning(
            "degradation", extra={"fields": {"step": step, "does": STEPS[step], "strain": round(strain, 2)}}
        )


def read_temperature_c(file: Path) -> float | None:
    """Returns a Linux thermal zone in degrees Celsius; None if there is none, or it is not a regular file."""
    try:
        # The kernel writes thousandths of a degree.
        return int(read_bounded(file, max_bytes=_MAX_READING)) / 1000.0
    except (OSError, ValueError):
        return None
