"""Measures whether the collector serves its vehicles, from the verdicts of the last five minutes.

Every vehicle has the same weight: one vehicle that is refused a thousand times raises no alarm for the fleet.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field

_SLICE_S, _SLICES = 30.0, 10
"""Ten slices of 30 s make the five minutes; old verdicts are dropped slice by slice."""
# Bounds memory: the names are foreign. Each slice counts its own.
_MAX_VEHICLES = 10_000
_FEW = 10
"""Fewer verdicts than this are no reason for an alarm."""
# The majority, both of all answers and of the last ones: a past problem raises no alarm.
_MOST = 0.5
OURS = frozenset({"store", "room", "failed"})
"""Causes of `busy` for which the collector is responsible; a vehicle's own rate or share is not one."""


@dataclass
class _Heard:
    """Counts the verdicts that one vehicle received, and holds the last one."""

    counts: Counter[str] = field(default_factory=Counter)
    last: str = ""

    def add(self, other: _Heard) -> None:
        self.counts += other.counts
        self.last = other.last

    def share(self, verdict: str) -> float:
        return self.counts[verdict] / self.counts.total()


@dataclass(frozen=True)
class Share:
    """Holds the share of a verdict, 0..1: of all verdicts (`share`) and of vehicles' last ones (`last`)."""

    verdict: str
    answers: int
    share: float
    last: float

    @property
    def problem(self) -> str | None:
        """Returns a sentence if this verdict is the majority, of enough verdicts, and still is at the end."""
        if self.answers < _FEW or self.share <= _MOST or self.last <= _MOST:
            return None
        return f"{self.share:.0%} of the answers of the last five minutes were `{self.verdict}`"


class Answers:
    """Counts verdicts of the last five minutes. Thread-safe. Times are monotonic seconds from the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slices: deque[tuple[float, dict[str, _Heard]]] = deque(maxlen=_SLICES)

    def count(self, vehicle: str, verdict: str, cause: str, now: float) -> None:
        """Counts a verdict, except `send` and a `busy` that the vehicle caused."""
        if verdict == "send" or (verdict == "busy" and cause not in OURS):
            return
        with self._lock:
            if not self._slices or now - self._slices[-1][0] >= _SLICE_S:
                self._slices.append((now, {}))
            heard = self._slices[-1][1]
            if vehicle in heard or len(heard) < _MAX_VEHICLES:
                mine = heard.setdefault(vehicle, _Heard())
                mine.counts[verdict] += 1
                mine.last = verdict

    def shares(self, now: float) -> tuple[Share, Share]:
        """Returns the shares of `busy` and of `rejected` in the last five minutes."""
        heard: dict[str, _Heard] = {}
        with self._lock:
            for began_at, part in self._slices:
                if now - began_at < _SLICE_S * _SLICES:
                    for vehicle, each in part.items():
                        heard.setdefault(vehicle, _Heard()).add(each)
        busy, rejected = (_share(verdict, list(heard.values())) for verdict in ("busy", "rejected"))
        return busy, rejected

    def problems(self, now: float) -> list[str]:
        """Returns the problems as sentences; empty if vehicles are served."""
        return [share.problem for share in self.shares(now) if share.problem is not None]


def _share(verdict: str, heard: list[_Heard]) -> Share:
    vehicles = max(1, len(heard))
    return Share(
        verdict,
        answers=sum(each.counts.total() for each in heard),
        share=sum(each.share(verdict) for each in heard) / vehicles,
        last=sum(each.last == verdict for each in heard) / vehicles,
    )
