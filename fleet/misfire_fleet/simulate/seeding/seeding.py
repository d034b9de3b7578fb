"""Fills a store with a drawn fleet, through the store's own code paths.

plan --slot by slot--> samples, heartbeats --> states, refusals --> labels, verdicts
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import BoxesLabel, ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.labels.verdicts.ledger import NewVerdict, Verdict, VerdictLedger
from misfire_fleet.simulate.seeding.heartbeats import HeartbeatPress
from misfire_fleet.simulate.seeding.pictures import CLASSES, LIGHTS, Scenes
from misfire_fleet.simulate.seeding.plan import (
    RANDOM_RATE,
    RANDOM_SHARE,
    SeedPlan,
    Weather,
    activity,
    drift,
    vehicles_of,
)
from misfire_fleet.simulate.seeding.scores import Calibration
from misfire_fleet.simulate.seeding.uploads import Slot, Upload, UploadPress
from misfire_fleet.store import Store

_GROUP = 500
"""Samples per transaction and document."""
_STAGE = 4000
"""Blobs per sync."""
_PEOPLE = ("ana", "ben", "chi")


@dataclass
class Seeded:
    """Counts what was written."""

    vehicles: int = 0
    samples: int = 0
    bytes: int = 0
    random: int = 0
    heartbeats: int = 0
    frames: int = 0
    labels: int = 0
    verdicts: int = 0


def seed_store(
    store: Store,
    plan: SeedPlan,
    *,
    images: Path | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Seeded:
    """Fills an empty store; returns what was written.

    Args:
        store: the store.
        plan: of the fleet.
        images: a folder with pictures; None to draw them.
        stop: ends the run early.
        progress: called with (samples written, samples planned).

    Raises:
        StoreError: the store has samples or vehicles already.
        ConfigError: the folder has no picture.
    """
    if store.totals().samples or store.vehicles.count():
        raise StoreError("the store is not empty; seed a new folder or database")
    return _Seeding(store, plan, images).run(stop or threading.Event(), progress)


class _Seeding:
    def __init__(self, store: Store, plan: SeedPlan, images: Path | None) -> None:
        self._store, self._plan = store, plan
        self._vehicles = vehicles_of(plan)
        weather, scenes = Weather(plan), Scenes(plan.seed, images)
        calibrations = {
            name: Calibration(name) for name in {v.bundle(s) for v in self._vehicles for s in (0, plan.slots)}
        }
        self._uploads = [
            UploadPress(plan, each, scenes=scenes, weather=weather, calibrations=calibrations)
            for each in self._vehicles
        ]
        self._beats = [HeartbeatPress(plan, each) for each in self._vehicles]
        self._slots = list(_slots(plan))
        self._staged: list[Upload] = []
        self._people: list[Upload] = []
        self._chance = np.random.default_rng((plan.seed, 13))
        self._done = Seeded(vehicles=len(self._vehicles))

    def run(self, stop: threading.Event, progress: Callable[[int, int], None]) -> Seeded:
        known = self._store.vehicles
        begins = self._plan.end_of(-1)
        known.record_states({b.vehicle.name: b.state(0, online=True) for b in self._beats}, at=begins)
        for number in range(self._plan.slots):
            if stop.is_set():
                break
            self._slot(number)
            progress(self._done.samples + len(self._staged), self._plan.samples)
        self._write()
        self._end(stop)
        return self._done

    def _slot(self, number: int) -> None:
        beats, fresh = [], []
        for press, hearts, slots in zip(self._uploads, self._beats, self._slots, strict=True):
            slot = slots[number]
            if number >= press.vehicle.ends:
                continue
            scores = press.scores(slot)
            made = press.uploads(slot, scores)
            size = sum(each.sample.offer.size for each in made)
            beats.append(hearts.beat(number, scores, stored=len(made), size=size, place=press.place()))
            self._done.frames += slot.frames
            fresh += made
        fresh.sort(key=lambda each: each.sample.stored_at)
        self._staged += fresh
        if len(self._staged) >= _STAGE:
            self._write()
        ended = self._plan.end_of(number)
        # Heartbeats arrive within a minute, in no particular order.
        at = sorted(ended - self._chance.uniform(0, 60, len(beats)))
        self._store.vehicles.record_telemetry(beats, at=[float(moment) for moment in at])
        self._done.heartbeats += len(beats)

    def _write(self) -> None:
        """Stores what waits: one sync of all bytes, then a transaction for each group."""
        waiting, self._staged = self._staged, []
        new = [each.sample for each in waiting]
        staged = self._store.blobs.stage_many({each.offer.id: each.data for each in new})
        for at in range(0, len(new), _GROUP):
            self._store.add_many(new[at : at + _GROUP], staged=staged[at : at + _GROUP])
        self._done.samples += len(new)
        self._done.bytes += sum(each.offer.size for each in new)
        drawn = [each for each in waiting if each.sample.offer.trigger.random]
        self._done.random += len(drawn)
        # Only pictures: label tools do not read clips.
        self._people += [each for each in drawn if each.sample.offer.media_type.startswith("image/")]

    def _end(self, stop: threading.Event) -> None:
        known = self._store.vehicles
        refusals: dict[tuple[str, str, str], int] = {}
        for hearts in self._beats:
            refusals |= hearts.refusals
        known.record_refusals(refusals)
        for ends, group in itertools.groupby(sorted(self._beats, key=_ends), key=_ends):
            gone = {b.vehicle.name: b.state(ends, online=False) for b in group if b.vehicle.offline}
            if gone:
                known.record_states(gone, at=self._plan.end_of(ends - 1))
        here = [b for b in self._beats if not b.vehicle.offline]
        last = self._plan.slots - 1
        # They began their session with the bundle that they run now.
        for begun, group in itertools.groupby(sorted(here, key=_begun), key=_begun):
            known.record_states(
                {b.vehicle.name: b.state(last, online=True) for b in group}, at=self._plan.end_of(begun)
            )
        if not stop.is_set():
            self._label()

    def _label(self) -> None:
        """Records labels of a part of the random stream, and verdicts of another part."""
        count = min(len(self._people), round(self._plan.labels * len(self._people)) + self._plan.verdicts)
        chosen = [self._people[i] for i in self._chance.permutation(len(self._people))[:count]]
        judged, labelled = chosen[: self._plan.verdicts], chosen[self._plan.verdicts :]
        ledger = LabelLedger(self._store)
        if chosen:
            ledger.add_classes(sorted({*CLASSES, *LIGHTS}), actor="seed")
        at = datetime.fromtimestamp(self._plan.until, timezone.utc)
        added = ledger.add(
            NewLabel(
                each.sample.offer.id, each.label, "person", annotator=_PEOPLE[number % len(_PEOPLE)], at=at
            )
            for number, each in enumerate(labelled)
        )
        self._done.labels = added.recorded
        verdicts = VerdictLedger(self._store)
        for number, each in enumerate(judged):
            verdicts.give(_verdict(each, number, took_s=float(self._chance.gamma(2, 2))))
        self._done.verdicts = len(judged)


def _verdict(upload: Upload, number: int, *, took_s: float) -> NewVerdict:
    wrong: Verdict = "missed" if isinstance(upload.label, BoxesLabel) else "wrong"
    label: BoxesLabel | ClassLabel | None = upload.label if upload.failed else None
    return NewVerdict(
        act=f"seeded-{number:06d}",
        annotator=_PEOPLE[number % len(_PEOPLE)],
        samples=(upload.sample.offer.id,),
        verdict=wrong if upload.failed else "right",
        label=label,
        took_s=took_s,
    )


def _ends(press: HeartbeatPress) -> int:
    return press.vehicle.ends


def _begun(press: HeartbeatPress) -> int:
    return press.vehicle.switches or 0


def _slots(plan: SeedPlan) -> Iterator[list[Slot]]:
    """Yields what each vehicle does, slot by slot; all uploads together are the plan's samples."""
    vehicles = vehicles_of(plan)
    chance = np.random.default_rng((plan.seed, 4))
    active = np.array([activity(plan, each) for each in vehicles])
    mean = plan.samples * RANDOM_SHARE / RANDOM_RATE / active.sum()
    frames = np.maximum(chance.poisson(active * mean), 1 * (active > 0))
    drawn = chance.binomial(frames, RANDOM_RATE)
    rest = plan.samples - int(drawn.sum())
    drifted = np.array([[drift(plan, each, slot) for slot in range(plan.slots)] for each in vehicles])
    weights = frames * (1 + 1.5 * drifted)
    chosen = _shared(chance, max(0, rest), weights, frames - drawn)
    for row in range(len(vehicles)):
        yield [
            Slot(slot, int(frames[row, slot]), int(drawn[row, slot]), int(chosen[row, slot]))
            for slot in range(plan.slots)
        ]


def _shared(
    chance: np.random.Generator, count: int, weights: NDArray[np.float64], room: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns `count` shared out by weights, never more than there is room."""
    shared = np.zeros(weights.shape, int)
    while count > 0 and (weights > 0).any():
        flat = chance.multinomial(count, (weights / weights.sum()).ravel()).reshape(weights.shape)
        taken = np.minimum(flat, room - shared)
        shared += taken
        count -= int(taken.sum())
        weights = np.where(shared < room, weights, 0.0)
    return shared
