"""Does the collector serve its vehicles? What was said to them in the last five minutes.

Every vehicle weighs the same, so that one that is refused a thousand times does not make the fleet look ill.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

_SLICE_S, _SLICES = 30.0, 10
_MAX_VEHICLES = 10_000
_FEW = 10
_MOST = 0.5
OURS = frozenset({"store", "room", "failed"})
"""Causes of `busy` that are the collector's; a vehicle's rate or share, say, is not."""


@dataclass
class _Slice:
    """(answers, busy, rejected) per vehicle since `began_at`."""

    began_at: float
    of: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shares:
    """Shares of the vehicles' answers, 0..1; `answers` is how many there were. `send` is no answer yet."""

    answers: int
    busy: float
    rejected: float

    def problems(self) -> list[str]:
        """In sentences, where most of a number worth counting went wrong."""
        if self.answers < _FEW:
            return []
        shares = {"`busy`": self.busy, "`rejected`": self.rejected}
        return [
            f"{share:.0%} of the answers of the last five minutes were {what}"
            for what, share in shares.items()
            if share > _MOST
        ]


class Answers:
    """Thread-safe. Times are monotonic seconds given by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slices: deque[_Slice] = deque(maxlen=_SLICES)

    def count(self, vehicle: str, verdict: str, cause: str, now: float) -> None:
        """One verdict; `send` and a `busy` that the vehicle itself brought about are passed over."""
        if verdict == "send" or (verdict == "busy" and cause not in OURS):
            return
        with self._lock:
            if not self._slices or now - self._slices[-1].began_at >= _SLICE_S:
                self._slices.append(_Slice(now))
            of = self._slices[-1].of
            if vehicle in of or len(of) < _MAX_VEHICLES:
                counts = of.setdefault(vehicle, [0, 0, 0])
                counts[0] += 1
                counts[1] += verdict == "busy"
                counts[2] += verdict == "rejected"

    def shares(self, now: float) -> Shares:
        """Of the last five minutes."""
        total: dict[str, list[int]] = {}
        with self._lock:
            for part in self._slices:
                if now - part.began_at < _SLICE_S * _SLICES:
                    for vehicle, counts in part.of.items():
                        mine = total.setdefault(vehicle, [0, 0, 0])
                        for at, count in enumerate(counts):
                            mine[at] += count
        if not total:
            return Shares(0, 0.0, 0.0)
        busy, rejected = (sum(c[at] / c[0] for c in total.values()) / len(total) for at in (1, 2))
        return Shares(sum(c[0] for c in total.values()), busy, rejected)
