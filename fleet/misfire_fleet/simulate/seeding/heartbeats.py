"""Keeps the counters of a drawn vehicle and makes its heartbeats, so that they add up with what is stored."""

from __future__ import annotations

import numpy as np

from misfire_fleet.simulate.seeding.plan import SLOT_S, SeededVehicle, SeedPlan, drift
from misfire_fleet.simulate.seeding.scores import Array, pack
from misfire_runtime.messages import Clock, Counters, Place, State, Telemetry

_PICTURE_BYTES = 8_700
_REFUSALS = (("declined", "near-duplicate", 0.04), ("declined", "quota", 0.02), ("rejected", "image", 0.0006))
SOFTWARE = "misfire 1.0.0"


class HeartbeatPress:
    """Makes the heartbeats of one vehicle, slot after slot."""

    def __init__(self, plan: SeedPlan, vehicle: SeededVehicle) -> None:
        self._plan, self.vehicle = plan, vehicle
        self._chance = np.random.default_rng((plan.seed, 9, vehicle.number))
        self._counts = {name: 0 for name in Counters.model_fields if name != "lost"}
        self._lost = {"disk full": 0, "writer queue full": 0}
        self._waiting_s = 0.0
        self.refusals: dict[tuple[str, str, str], int] = {}
        self._full = vehicle.number % 23 == 7
        """A vehicle whose spool is nearly full."""

    def beat(
        self, slot: int, scores: dict[str, Array], *, stored: int, size: int, place: Place | None
    ) -> tuple[str, Telemetry]:
        """Returns (vehicle, heartbeat) at the end of a slot.

        Args:
            slot: its number.
            scores: of all its frames.
            stored: uploads of the slot.
            size: their bytes.
            place: where the vehicle is.
        """
        frames = len(scores["stacked"])
        self._count(slot, frames, stored=stored, size=size)
        pending = self._counts["pending"]
        self._waiting_s = self._waiting_s + SLOT_S if pending else 0.0
        slow = 1 + 0.6 * drift(self._plan, self.vehicle, slot)
        latency = float(self._chance.normal(21, 1.5)) * slow
        return self.vehicle.name, Telemetry(
            at=Clock(wall=self._plan.end_of(slot), monotonic=(slot + 1) * SLOT_S, boot_id="drawn"),
            bundle=self.vehicle.bundle(slot),
            counters=Counters(**self._counts, lost={name: n for name, n in self._lost.items() if n}),
            disk_free_bytes=int(3.1e7 if self._full else 6e10 - 4e8 * slot),
            latency_ms_p50=round(latency, 2),
            latency_ms_p99=round(latency * float(self._chance.uniform(1.6, 2.4)), 2),
            thresholds={"target-rate": round(float(np.quantile(scores["stacked"], 0.98)), 4)}
            if frames
            else {},
            sketches={name: pack(values) for name, values in scores.items()} if frames else {},
            pending_bytes=pending * _PICTURE_BYTES,
            pending_age_s=min(self._waiting_s, 6 * 86_400.0) * float(self._chance.uniform(0.4, 0.9)),
            degradation=2 if slow > 1.5 else 1 if latency > 24 else 0,
            place=place,
        )

    def state(self, slot: int, *, online: bool) -> State:
        """Returns the state that begins or ends its session."""
        return State(
            online=online,
            boot_id=f"{self.vehicle.number:08x}",
            session=1 + self.vehicle.number % 7,
            bundle=self.vehicle.bundle(slot),
            software=SOFTWARE,
        )

    def _count(self, slot: int, frames: int, *, stored: int, size: int) -> None:
        chance, counts, vehicle = self._chance, self._counts, self.vehicle
        counts["frames"] += frames
        counts["frames_dropped"] += int(chance.poisson(frames * (0.002 + 0.02 * (vehicle.uplink < 0.9))))
        counts["frames_unreadable"] += int(chance.poisson(frames * 2e-5))
        ended = 0
        for verdict, cause, rate in _REFUSALS:
            refused = int(chance.poisson(stored * rate))
            counts[verdict] += refused
            ended += refused
            if refused:
                key = vehicle.name, verdict, cause
                self.refusals[key] = self.refusals.get(key, 0) + refused
        evicted = int(chance.poisson(stored * 0.03)) if self._full else 0
        counts["evicted"] += evicted
        backlog = chance.poisson((1 - vehicle.uplink) * 400 * (0.3 + frames / 2500)) + 900 * self._full
        # What leaves the backlog was uploaded: never more than the uploads of this slot.
        before = counts["pending"]
        counts["pending"] = max(0, before - stored, int(backlog if frames or self._full else before))
        counts["stored"] += stored
        counts["captured"] += stored + ended + evicted + counts["pending"] - before
        counts["bytes_stored"] += size
        counts["bytes_sent"] += int(size * 1.02)
        if self._full:
            self._lost["disk full"] += int(chance.poisson(0.4))
        if vehicle.uplink < 0.9:
            self._lost["writer queue full"] += int(chance.poisson(0.1))
