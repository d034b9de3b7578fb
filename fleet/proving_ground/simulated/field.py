"""Simulates weeks of a fleet whose every frame is known, records what it would know, and runs campaigns.

Field --record: hourly sketches, random stream, labels--> store --dry run--> prediction
Field --collect: the vehicle's own triggers on every frame of later days--> what the campaign then costs

Vehicles differ, and so do days: scores, fog and failures rise and fall together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.campaigns.spec import CampaignSpec, tables
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.offers import offer_record, row_of
from misfire_fleet.store.records import NewSample
from misfire_fleet.store.schema import samples, telemetry
from misfire_runtime.config.desired import with_desired
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.messages import Clock, Counters, State, Telemetry, Trigger, encode
from misfire_runtime.state.statistics import Statistics
from misfire_runtime.testing import FakeEngine, make_bundle, make_offer
from misfire_runtime.triggers import build_triggers

START = 1_700_006_400.0
"""A midnight, UTC."""
DAY_S = 86_400.0
SCORE = "entropy"
BUNDLE = "fake@1.0.0"


@dataclass(frozen=True)
class Field:
    """Holds all frames by time: [N] vehicle, seconds after START, score, fog, failed and bytes."""

    vehicle: NDArray[np.int64]
    at: NDArray[np.float64]
    score: NDArray[np.float64]
    fog: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    size: NDArray[np.int64]

    @property
    def day(self) -> NDArray[np.int64]:
        """Returns the day of each frame, from 0."""
        return (self.at // DAY_S).astype(np.int64)

    @property
    def now(self) -> float:
        """Returns the end of the last day, in seconds since 1970."""
        return START + DAY_S * float(self.day.max() + 1)


def make_field(*, vehicles: int, days: int, frames: int, seed: int) -> Field:
    """Returns a field; frames: of each vehicle and day, on average."""
    rng = np.random.default_rng(seed)
    own, daily = rng.normal(0, 0.3, vehicles), rng.normal(0, 0.25, days)
    foggy = rng.beta(2, 8, days)
    parts = []
    for day in range(days):
        for vehicle in range(vehicles):
            count = int(rng.poisson(frames * np.exp(rng.normal(0, 0.1))))
            fog = rng.random(count) < foggy[day]
            level = rng.normal(size=count) + own[vehicle] + daily[day] + 0.8 * fog
            odds = np.exp(-4.5 + 1.3 * level)
            failed = rng.random(count) < odds / (1 + odds)
            size = (60_000 + 40_000 * rng.random(count) - 15_000 * fog).astype(np.int64)
            at = day * DAY_S + rng.random(count) * DAY_S
            parts.append((np.full(count, vehicle), at, np.exp(0.5 * level), fog, failed, size))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[1], kind="stable")
    return Field(*(column[order] for column in columns))


def before(field: Field, day: int) -> Field:
    """Returns the frames before a day."""
    return _only(field, field.day < day)


def since(field: Field, day: int) -> Field:
    """Returns the frames from a day on."""
    return _only(field, field.day >= day)


def record(store: Store, field: Field, *, share: float, labelled: float, seed: int) -> None:
    """Stores what the fleet knows: a random stream of this share, labels for a part of it, hourly sketches.

    Rows of samples have no blobs: thousands of files would take most of a run's time.
    """
    rng = np.random.default_rng([seed, 7])
    drawn = np.flatnonzero(rng.random(len(field.score)) < share)
    rows, ids = [], []
    for index in drawn:
        sample = _sample(field, int(index), seed, share)
        ids.append(sample.offer.id)
        rows.append(row_of(offer_record(sample), offers="simulated"))
    names = [f"car-{number}" for number in range(int(field.vehicle.max()) + 1)]
    store.vehicles.record_states({name: State(online=True, bundle=BUNDLE) for name in names})
    beats = [
        {"vehicle": name, "received_at": received_at, "payload": encode(beat).decode()}
        for name, received_at, beat in _beats(field)
    ]
    with store.database.write() as connection:
        connection.execute(samples.insert(), rows)
        connection.execute(telemetry.insert(), beats)
    at = datetime.fromtimestamp(START, timezone.utc)
    new = [
        NewLabel(key, ClassLabel(name="red" if field.failed[index] else "green"), source="person", at=at)
        for key, index in zip(ids, drawn, strict=True)
        if rng.random() < labelled
    ]
    if new:
        assert LabelLedger(store).add(new, add_classes=True, actor="simulation").ok


def _sample(field: Field, index: int, seed: int, share: float) -> NewSample:
    data = b"frame %d of %d" % (index, seed)
    at = START + float(field.at[index])
    offer = make_offer(
        data,
        vehicle=f"car-{field.vehicle[index]}",
        bundle=BUNDLE,
        scores={SCORE: float(field.score[index])},
        percentiles={SCORE: float(np.clip(field.score[index] / 8, 0, 1))},
        captured_at=Clock(wall=at, monotonic=0.0, boot_id="boot"),
        trigger=Trigger(name="random", random=True, rate=share),
        prediction={"class": "green", "confidence": 0.9},
        context={"weather": "fog" if field.fog[index] else "clear"},
        embedding=None,
    ).model_copy(update={"id": hashlib.sha256(data).hexdigest(), "size": int(field.size[index])})
    return NewSample(offer, data, 64, 48, "collector-1", stored_at=at + 60)


def _beats(field: Field) -> Iterable[tuple[str, float, Telemetry]]:
    """Yields hourly heartbeats with the sketches of all frames."""
    hour = (field.at // 3600).astype(np.int64)
    order = np.lexsort((hour, field.vehicle))
    keys = np.stack([field.vehicle[order], hour[order]])
    cuts = np.flatnonzero((np.diff(keys) != 0).any(axis=0)) + 1
    frames: dict[int, int] = {}
    for part in np.split(order, cuts):
        vehicle = int(field.vehicle[part[0]])
        statistics = Statistics()
        for score in field.score[part]:
            statistics.frame({SCORE: float(score)}, latency_s=0.01)
        frames[vehicle] = frames.get(vehicle, 0) + len(part)
        # A minute before the next hour, so that the last one of a day is of that day.
        at = START + 3600.0 * (int(hour[part[0]]) + 1) - 60
        yield (
            f"car-{vehicle}",
            at,
            Telemetry(
                at=Clock(wall=at, monotonic=0.0, boot_id="boot"),
                bundle=BUNDLE,
                counters=Counters(frames=frames[vehicle]),
                sketches=statistics.sketches(),
            ),
        )


def collect(field: Field, spec: CampaignSpec, folder: Path) -> NDArray[np.bool_]:
    """Returns which frames the vehicles' own triggers take for a campaign, [N]."""
    scorer = Scorer(make_bundle(folder, scores=(SCORE,)), FakeEngine({SCORE: 0.5}))
    config = with_desired(VehicleConfig(), {"campaigns": tables(spec)})
    by_vehicle = {
        vehicle: build_triggers(config.campaigns, scorer=scorer) for vehicle in set(field.vehicle.tolist())
    }
    taken = np.zeros(len(field.score), bool)
    for index, vehicle in enumerate(field.vehicle.tolist()):
        frame: Any = SimpleNamespace(
            scored=SimpleNamespace(scores={SCORE: float(field.score[index])}, prediction={}, boxes=None),
            context={"weather": "fog" if field.fog[index] else "clear"},
            source="camera",
            time_s=float(field.at[index]),
            count=index,
        )
        for trigger in by_vehicle[vehicle]:
            if trigger.look(frame) is not None:
                trigger.taken(frame)
                taken[index] = True
    scorer.close()
    return taken


def _only(field: Field, chosen: NDArray[np.bool_]) -> Field:
    return Field(**{name: value[chosen] for name, value in vars(field).items()})
