"""Vehicles' books beside the fleet's: what is missing shows, and what is in order does not."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text
from tests.fleet.conftest import CollectorMaker
from tests.fleet.stores import again, at, sample

from misfire_fleet.store import Store
from misfire_fleet.store.counts import VehicleCounts
from misfire_runtime.messages import Counters, Stored, Telemetry
from proving_ground.client import Vehicle


def beat(store: Store, vehicle: str, **counters: object) -> None:
    counted = Counters.model_validate(counters)
    store.vehicles.record_telemetry([(vehicle, Telemetry(at=at(0), bundle="x@1", counters=counted))])


def books(store: Store) -> dict[str, VehicleCounts]:
    return {each.vehicle: each for each in store.vehicle_counts()}


def missing(store: Store) -> dict[str, int]:
    return {name: each.missing for name, each in books(store).items()}


def test_a_vehicle_that_was_told_more_than_the_fleet_has_is_found(anywhere: Store) -> None:
    anywhere.add_many([sample(n, vehicle=f"car-{n % 2}") for n in range(10)])
    for vehicle in ("car-0", "car-1"):
        beat(anywhere, vehicle, captured=6, stored=5, pending=1)
    assert missing(anywhere) == {"car-0": 0, "car-1": 0}
    beat(anywhere, "car-1", captured=40, stored=40, lost={"disk full": 3})
    beat(anywhere, "car-9", captured=40, stored=40)
    assert missing(anywhere) == {"car-0": 0, "car-1": 35, "car-9": 40}
    book = books(anywhere)["car-1"]
    assert book.counters is not None and book.counters.lost == {"disk full": 3}
    assert (book.stored, book.deleted, book.copies) == (5, 0, 0) and book.counted_at is not None


def test_a_database_from_an_old_backup_is_found(anywhere: Store) -> None:
    anywhere.add_many([sample(n) for n in range(10)])
    beat(anywhere, "car-1", captured=10, stored=10)
    with anywhere.database.write() as connection:
        connection.execute(text("DELETE FROM samples WHERE seq > 7"))
    assert missing(anywhere) == {"car-1": 3}


def test_deleted_samples_are_not_missing(anywhere: Store) -> None:
    anywhere.add_many([sample(n) for n in range(6)])
    anywhere.deletion.delete(sample=sample(2).offer.id, reason="asked for")
    anywhere.deletion.apply_retention(max_bytes=40)
    beat(anywhere, "car-1", captured=6, stored=6)
    book = books(anywhere)["car-1"]
    assert book.stored + book.deleted == 6 and book.deleted > 1 and book.missing == 0


def test_a_sample_of_two_vehicles_counts_for_both(anywhere: Store) -> None:
    assert anywhere.add_many([sample(1, vehicle="car-a"), sample(1, vehicle="car-b")]) == [
        "stored",
        "duplicate",
    ]
    with again(anywhere) as other:
        assert other.add_many([sample(1, vehicle="car-c"), sample(2, vehicle="car-c")]) == [
            "duplicate",
            "stored",
        ]
    offered = [sample(n).offer.id for n in (1, 2, 3)]
    for _ in range(2):
        known, _ = anywhere.known_and_tombstoned(offered, vehicles=["car-d", "car-c", "car-d"])
        assert known == set(offered[:2])
    for vehicle, told in (("car-a", 1), ("car-b", 1), ("car-c", 2), ("car-d", 1)):
        beat(anywhere, vehicle, captured=told, stored=told)
    assert missing(anywhere) == {"car-a": 0, "car-b": 0, "car-c": 0, "car-d": 0}
    assert sum(book.stored for book in books(anywhere).values()) == 2
    assert sum(book.copies for book in books(anywhere).values()) == 3
    anywhere.deletion.delete(sample=offered[0], reason="asked for")
    assert not any(missing(anywhere).values())


def test_a_collector_keeps_the_books_of_vehicles_that_send_the_same(
    store: Store,
    start_collector: CollectorMaker,
    vehicle: Callable[[str], Vehicle],
    jpeg: Callable[[int], bytes],
) -> None:
    start_collector()
    for name in ("car-1", "car-2"):
        car = vehicle(name)
        assert isinstance(car.upload(jpeg(1)), Stored)
        beat(store, name, captured=1, stored=1)
    assert missing(store) == {"car-1": 0, "car-2": 0}
    assert {name: book.copies for name, book in books(store).items()} == {"car-1": 0, "car-2": 1}


def test_a_heartbeat_outside_of_todays_bounds_takes_no_books_down(anywhere: Store) -> None:
    beat(anywhere, "car-1", captured=1, stored=1)
    beat(anywhere, "car-2", captured=1, stored=1)
    with anywhere.database.write() as connection:
        connection.execute(text("UPDATE vehicles SET telemetry = '{}' WHERE name = 'car-1'"))
    assert missing(anywhere) == {"car-1": 0, "car-2": 1}
    assert books(anywhere)["car-1"].counters is None
