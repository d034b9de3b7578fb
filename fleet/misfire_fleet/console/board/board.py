"""Holds the rows of the fleet for all pages of one console, read again when they are 2 s old."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from misfire_fleet.console.board.calibration import Calibrations
from misfire_fleet.console.board.live import Broadcaster
from misfire_fleet.console.board.rates import FailureRates
from misfire_fleet.console.board.rolling import Rolling
from misfire_fleet.console.board.rows import VehicleRow, read_rows
from misfire_fleet.console.board.slices import SliceTruths
from misfire_fleet.console.format import byte_count, duration, number
from misfire_fleet.console.recent import Recent
from misfire_fleet.store import Store
from misfire_fleet.truth.rollups import choices

_ROWS_S = 2.0
_CHOICES_S = 10.0


@dataclass(frozen=True)
class RegionRow:
    """Counts the vehicles of a region, and their uploads of the last 24 hours."""

    name: str
    vehicles: int
    online: int
    silent: int
    pending: int
    day_samples: int


class Board:
    """Serves rows, failure rates and live events. `close` ends the threads and streams."""

    def __init__(self, store: Store) -> None:
        self.rows = Recent(lambda: read_rows(store), max_age_s=_ROWS_S)
        self.rates = FailureRates(store)
        self.live = Broadcaster(lambda: {row.name: cells(row) for row in self.rows()})
        self.rolling = Rolling(store)
        self.calibrations = Calibrations(store)
        self.slices = SliceTruths(store)
        self.choices = Recent(lambda: choices(store), max_age_s=_CHOICES_S)

    def close(self) -> None:
        """Ends what runs in the background."""
        self.live.close()
        self.rolling.close()
        self.slices.close()
        self.rates.close()


def regions_of(rows: Sequence[VehicleRow]) -> list[RegionRow]:
    """Returns the regions of the rows, the largest first."""
    groups: dict[str, list[VehicleRow]] = {}
    for row in rows:
        groups.setdefault(row.region, []).append(row)
    made = []
    for name, found in groups.items():
        states = Counter(row.state for row in found)
        made.append(
            RegionRow(
                name=name,
                vehicles=len(found),
                online=states["online"],
                silent=states["silent"],
                pending=sum(row.pending or 0 for row in found),
                day_samples=sum(row.day_samples for row in found),
            )
        )
    return sorted(made, key=lambda each: (-each.vehicles, each.name))


def cells(row: VehicleRow) -> dict[str, Any]:
    """Returns the texts of a row that change, for the page and for live events; `seen` is a time."""
    spool = "" if row.pending is None else number(row.pending)
    if row.pending_bytes:
        spool += f", {byte_count(row.pending_bytes)}"
    top = next(iter(row.drops.items()), None)
    return {
        "state": row.state,
        "seen": row.seen_at,
        "bundle": row.bundle,
        "spool": spool,
        "age": duration(row.pending_age_s) if row.pending and row.pending_age_s is not None else "",
        "drops": number(row.dropped) if row.dropped else "",
        "why": "" if top is None else f"{top[0]} {number(top[1])}",
        "rate": f"{number(row.day_samples)}/d" if row.day_samples else "",
        "volume": byte_count(row.day_bytes) if row.day_bytes else "",
        "lat": row.lat,
        "lon": row.lon,
    }
