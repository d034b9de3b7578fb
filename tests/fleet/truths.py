"""Fleets whose true failure rate is known: frames with scores and classes, of which vehicles upload some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.fleet.stores import NOON, at

from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.offers import offer_record, row_of
from misfire_fleet.store.records import NewSample
from misfire_fleet.store.schema import samples
from misfire_runtime.messages import Counters, Telemetry, Trigger
from misfire_runtime.state.statistics import Statistics
from misfire_runtime.testing import make_offer

BUNDLE = "lights@1.0.0"
WEATHER = ("sun", "fog")
LABELLED_AT = datetime(2023, 11, 20, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Field:
    """Holds all frames of a fleet: scores, failures, and vehicle, day and weather of each, all 0 or 1."""

    score: NDArray[np.float64]
    failed: NDArray[np.bool_]
    vehicle: NDArray[np.int64]
    day: NDArray[np.int64]
    weather: NDArray[np.int64]

    @property
    def rate(self) -> float:
        return float(self.failed.mean())

    @cached_property
    def heartbeats(self) -> list[tuple[str, Telemetry]]:
        return heartbeats(self)


def make_field(frames: int, *, rate: float, seed: int) -> Field:
    """Frames whose failures have higher scores (AUROC .9); fog, vehicle 1 and day 1 fail more often."""
    rng = np.random.default_rng(seed)
    vehicle, day, weather = (rng.integers(0, 2, frames) for _ in range(3))
    odds = rate / (1 - rate) * np.exp(0.8 * weather + 0.3 * vehicle + 0.3 * day - 0.7)
    failed = rng.random(frames) < odds / (1 + odds)
    return Field(rng.normal(size=frames) + 1.81 * failed, failed, vehicle, day, weather)


def second_of(field: Field, index: int) -> float:
    """Seconds after NOON (22:13 UTC of 14 November 2023): within the hour, today or tomorrow."""
    return float(field.day[index]) * 86_400 + index % 3600


def drive(
    store: Store,
    field: Field,
    *,
    seed: int = 0,
    share: float = 0.1,
    drawn: NDArray[np.bool_] | None = None,
    beats: bool = True,
) -> dict[str, int]:
    """Uploads the random stream and sends heartbeats with the sketches of all frames; frame by sample id."""
    rng = np.random.default_rng([seed, 1])
    taken = rng.random(len(field.score)) < share if drawn is None else drawn
    new, ids = [], {}
    for index in np.flatnonzero(taken):
        data = b"frame %d of %d" % (index, seed)
        offer = make_offer(
            data,
            vehicle=f"car-{field.vehicle[index]}",
            scores={"entropy": float(field.score[index])},
            captured_at=at(second_of(field, int(index))),
            trigger=Trigger(name="random", random=True, rate=share),
            prediction={"class": "red" if index % 2 else "green", "confidence": 0.9},
            context={"weather": WEATHER[field.weather[index]]},
            embedding=None,
        )
        ids[offer.id] = int(index)
        new.append(NewSample(offer, data, 64, 48, "collector-1"))
    # Rows without blobs: thousands of files would take most of a test's time, and nobody reads them here.
    rows = [row_of(offer_record(sample), offers="test") for sample in new]
    with store.database.write() as connection:
        connection.execute(samples.insert(), rows)
    if beats:
        store.vehicles.record_telemetry(field.heartbeats)
    return ids


def heartbeats(field: Field) -> list[tuple[str, Telemetry]]:
    """Three per vehicle and day: the first has counters only, the others half of the day's frames each."""
    found = []
    for vehicle in (0, 1):
        frames = 0
        for day in (0, 1):
            index = np.flatnonzero((field.vehicle == vehicle) & (field.day == day))
            halves: Sequence[NDArray[np.int64]] = [index[:0], *np.array_split(index, 2)]
            for number, part in enumerate(halves):
                statistics = Statistics()
                for score in field.score[part]:
                    statistics.frame({"entropy": float(score)}, latency_s=0.01)
                frames += len(part)
                found.append(
                    (
                        f"car-{vehicle}",
                        Telemetry(
                            at=at(day * 86_400 + 1800.0 * number),
                            bundle=BUNDLE,
                            counters=Counters(frames=frames),
                            sketches=statistics.sketches(),
                        ),
                    )
                )
    return found


def label(
    store: Store, field: Field, ids: dict[str, int], some: Sequence[str], *, source: str = "person"
) -> None:
    """Labels samples with the truth: where the frame failed, the other class is right."""
    new = []
    for name in some:
        index = ids[name]
        answer, other = ("red", "green") if index % 2 else ("green", "red")
        right = ClassLabel(name=other if field.failed[index] else answer)
        new.append(NewLabel(name, right, source=source, annotator="ada", at=LABELLED_AT))
    added = LabelLedger(store).add(new, add_classes=True, actor="test")
    assert added.ok, added.problems()


def open_store(folder: Path) -> Store:
    return Store.open_folder(folder)


__all__ = ["BUNDLE", "NOON", "Field", "drive", "heartbeats", "label", "make_field", "open_store"]
