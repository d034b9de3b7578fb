"""Does the collector serve its vehicles? What was said to them in the last five minutes.

Every vehicle weighs the same, so that one that is refused a thousand times does not make the fleet look ill.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field

_SLICE_S, _SLICES = 30.0, 10
_MAX_VEHICLES = 10_000
_FEW = 10
_MOST = 0.5
OURS = frozenset({"store", "room", "failed"})
"""Causes of `busy` that are the collector's; a vehicle's rate or share, say, is not."""


@dataclass
class _Heard:
    """What one vehicle heard, by verdict, and last."""

    counts: Counter[str] = field(default_factory=Counter)
    last: str = ""

    def add(self, other: _Heard) -> None:
        self.counts += other.counts
        self.last = other.last

    def share(self, verdict: str) -> float:
        return self.counts[verdict] / self.counts.total()


@dataclass(frozen=True)
class Share:
    """How much of what vehicles heard was this verdict, 0..1, and for how many it was the last word."""

    verdict: str
    answers: int
    share: float
    last: float

    @property
    def problem(self) -> str | None:
        """A sentence if most of a number worth counting went wrong, and still does."""
        if self.answers < _FEW or self.share <= _MOST or self.last <= _MOST:
            return None
        return f"{self.share:.0%} of the answers of the last five minutes were `{self.verdict}`"


class Answers:
    """Thread-safe. Times are monotonic seconds given by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slices: deque[tuple[float, dict[str, _Heard]]] = deque(maxlen=_SLICES)

    def count(self, vehicle: str, verdict: str, cause: str, now: float) -> None:
        """One verdict; `send` and a `busy` that the vehicle itself brought about are passed over."""
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
        """Of `busy` and of `rejected` in the last five minutes."""
        heard: dict[str, _Heard] = {}
        with self._lock:
            for began_at, part in self._slices:
                if now - began_at < _SLICE_S * _SLICES:
                    for vehicle, each in part.items():
                        heard.setdefault(vehicle, _Heard()).add(each)
        busy, rejected = (_share(verdict, list(heard.values())) for verdict in ("busy", "rejected"))
        return busy, rejected

    def problems(self, now: float) -> list[str]:
        """In sentences; empty if vehicles are served."""
        return [share.problem for share in self.shares(now) if share.problem is not None]


def _share(verdict: str, heard: list[_Heard]) -> Share:
    vehicles = max(1, len(heard))
    return Share(
        verdict,
        answers=sum(each.counts.total() for each in heard),
        share=sum(each.share(verdict) for each in heard) / vehicles,
        last=sum(each.last == verdict for each in heard) / vehicles,
    )
