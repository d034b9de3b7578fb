"""A final verdict is about the sample: whatever is wrong with collector or store, vehicles keep theirs.

Real SQLite and real PostgreSQL that fail in their own words, behind a real broker.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import cv2
import numpy as np
import psycopg
import pytest
from tests.fleet.conftest import CollectorMaker, eventually

from misfire_fleet.collector import Collector
from misfire_fleet.collector import committer as collector_committer
from misfire_fleet.decoding.decoder import Verified
from misfire_fleet.errors import CheckFailedError, RowRefusedError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import Staged
from misfire_runtime.messages import Busy, Rejected, Stored
from misfire_runtime.testing import make_offer
from proving_ground.client import Vehicle
from proving_ground.services import Postgres, postgres

pytestmark = pytest.mark.slow

VehicleMaker = Callable[..., Vehicle]


def picture(number: int) -> bytes:
    """A small JPEG of its own."""
    image = np.random.default_rng(number).integers(0, 255, (32, 48, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", image)[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        with psycopg.connect(running.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE fleet LOGIN")
        yield running


def administrate(server: Postgres, *statements: str) -> None:
    """As the operator would; clients have to connect again, so that every change counts at once."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'fleet'"
        ).fetchall()


@pytest.fixture
def remote(server: Postgres, tmp_path: Path) -> Iterator[Store]:
    """An empty store on PostgreSQL, of a role that is no superuser."""
    administrate(
        server, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public", "GRANT ALL ON SCHEMA public TO fleet"
    )
    url = server.url.replace("postgres@", "fleet@")
    with Store.open(url, tmp_path / "blobs") as store:
        yield store


def offer_and_send(car: Vehicle, numbers: range) -> None:
    """Offers some samples and sends every one that is asked for."""
    samples = {make_offer(picture(number)).id: picture(number) for number in numbers}
    for number in numbers:
        car.offer(make_offer(picture(number), vehicle=car.name))
    for _ in numbers:
        send = car.hear_send()
        car.send(samples[send.id], send)


def stored_at_last(car: Vehicle, data: bytes) -> bool:
    return eventually(lambda: isinstance(car.upload(data), Stored))


def assert_all_kept_then_stored(
    collector: Collector, car: Vehicle, store: Store, mend: Callable[[], None], *, says: str
) -> None:
    """While the store is ill nothing final is said and health is bad; mended, everything is stored."""
    offer_and_send(car, range(1, 6))
    assert eventually(lambda: collector.breaker.is_open)
    assert any(says in problem for problem in collector.problems()), collector.problems()
    late = car.upload(picture(9))
    assert isinstance(late, Busy), late
    assert car.silent(for_s=0.3)
    mend()
    verdicts = [car.hear() for _ in range(5)]
    assert {type(verdict) for verdict in verdicts} == {Stored}, verdicts
    assert eventually(lambda: not collector.problems())
    assert isinstance(car.upload(picture(9)), Stored)
    assert store.known([make_offer(picture(number)).id for number in range(1, 6)]) == {
        verdict.id for verdict in verdicts
    }


def test_a_database_that_became_read_only_rejects_nothing(
    remote: Store, start_collector: CollectorMaker, vehicle: VehicleMaker, server: Postgres
) -> None:
    collector, car = start_collector(into=remote), vehicle()
    administrate(server, "ALTER ROLE fleet SET default_transaction_read_only = on")
    try:
        assert_all_kept_then_stored(
            collector,
            car,
            remote,
            lambda: administrate(server, "ALTER ROLE fleet RESET default_transaction_read_only"),
            says="read-only transaction",
        )
    finally:
        administrate(server, "ALTER ROLE fleet RESET default_transaction_read_only")


def test_a_missing_grant_rejects_nothing(
    remote: Store, start_collector: CollectorMaker, vehicle: VehicleMaker, server: Postgres
) -> None:
    collector, car = start_collector(into=remote), vehicle()
    administrate(server, "REVOKE INSERT ON samples FROM fleet")
    assert_all_kept_then_stored(
        collector,
        car,
        remote,
        lambda: administrate(server, "GRANT INSERT ON samples TO fleet"),
        says="permission denied",
    )


def test_a_column_of_another_name_rejects_nothing(
    remote: Store, start_collector: CollectorMaker, vehicle: VehicleMaker, server: Postgres
) -> None:
    collector, car = start_collector(into=remote), vehicle()
    administrate(
        server, "ALTER TABLE samples ADD COLUMN extra text", "ALTER TABLE samples RENAME offer TO off"
    )
    assert_all_kept_then_stored(
        collector,
        car,
        remote,
        lambda: administrate(server, "ALTER TABLE samples RENAME off TO offer"),
        says="offer",
    )


def damage(file: Path, index: str) -> Callable[[], None]:
    """Overwrites the root page of an index with 0xff; returns what puts it back."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [index]).fetchone()
    with file.open("r+b") as raw:
        raw.seek((page - 1) * size)
        good = raw.read(size)
        raw.seek((page - 1) * size)
        raw.write(b"\xff" * size)

    def mend() -> None:
        with file.open("r+b") as raw:
            raw.seek((page - 1) * size)
            raw.write(good)
        with closing(sqlite3.connect(file)) as connection:  # so that others let go of their copies
            connection.execute("UPDATE alembic_version SET version_num = version_num")
            connection.commit()

    return mend


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Store]:
    with Store.open_folder(tmp_path / "fleet") as store:
        yield store


def test_a_damaged_page_rejects_nothing(
    start_collector: CollectorMaker, vehicle: VehicleMaker, tmp_path: Path
) -> None:
    Store.open_folder(tmp_path / "fleet").close()
    mend = damage(tmp_path / "fleet" / "fleet.sqlite", "ix_samples_stored_at")
    with Store.open_folder(tmp_path / "fleet") as store:
        collector, car = start_collector(into=store), vehicle()
        assert_all_kept_then_stored(collector, car, store, mend, says="malformed")
        collector.close()  # before its store


def test_a_database_file_that_may_not_be_written_rejects_nothing(
    local: Store, start_collector: CollectorMaker, vehicle: VehicleMaker
) -> None:
    collector, car = start_collector(into=local), vehicle()

    def set_read_only(value: str) -> None:
        """For each connection of the pool, which hands out the one that was used last."""
        with ExitStack() as stack:
            for _ in range(8):
                connection = stack.enter_context(local.database.engine.connect())
                connection.exec_driver_sql(f"PRAGMA query_only = {value}")

    set_read_only("ON")
    assert_all_kept_then_stored(collector, car, local, lambda: set_read_only("OFF"), says="readonly")


@contextmanager
def refusing_rows(store: Store, server: Postgres, condition: str) -> Iterator[None]:
    """The database refuses rows that do not meet a condition."""
    if store.database.dialect == "postgresql":
        administrate(server, f"ALTER TABLE samples ADD CONSTRAINT picky CHECK ({condition}) NOT VALID")
        yield
        administrate(server, "ALTER TABLE samples DROP CONSTRAINT picky")
        return
    file = str(store.database.engine.url.database)

    def edit(old: str, new: str) -> None:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(
                "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = 'samples'", [old, new]
            )
            (version,) = connection.execute("PRAGMA schema_version").fetchone()
            connection.execute(f"PRAGMA schema_version = {version + 1}")
            connection.commit()

    plain, picky = "collector VARCHAR(64) NOT NULL", f"collector VARCHAR(64) NOT NULL CHECK ({condition})"
    edit(plain, picky)
    yield
    edit(picky, plain)


@pytest.fixture(params=["local", "remote"])
def either(request: pytest.FixtureRequest) -> Store:
    """A store on SQLite, a store on PostgreSQL."""
    store: Store = request.getfixturevalue(request.param)
    return store


@pytest.mark.parametrize("others", [0, 4])
def test_a_row_that_is_refused_while_the_database_takes_others_is_rejected(
    either: Store,
    start_collector: CollectorMaker,
    vehicle: VehicleMaker,
    server: Postgres,
    *,
    others: int,
) -> None:
    collector = start_collector(into=either)
    bad, car = vehicle("car-bad"), vehicle("car-1")
    with refusing_rows(either, server, "vehicle <> 'car-bad'"):
        if others:
            offer_and_send(car, range(others))
        verdict = bad.upload(picture(10))
        assert isinstance(verdict, Rejected), verdict
        assert "cannot be stored" in verdict.reason
        assert {type(car.hear()) for _ in range(others)} <= {Stored}
    assert collector.problems() == []


def test_a_constraint_that_every_row_breaks_rejects_none(
    either: Store, start_collector: CollectorMaker, vehicle: VehicleMaker, server: Postgres
) -> None:
    collector, car = start_collector(into=either, probe_s=0.3), vehicle()
    with refusing_rows(either, server, "size < 0"):
        for number in range(3):
            verdict = car.upload(picture(number))
            assert isinstance(verdict, Busy), verdict
        assert eventually(lambda: collector.breaker.is_open)
        assert "does not take samples" in collector.problems()[0]
    assert stored_at_last(car, picture(0))
    assert collector.problems() == []


def test_a_row_that_brings_up_another_error_keeps_no_other_out(
    remote: Store, start_collector: CollectorMaker, vehicle: VehicleMaker, server: Postgres
) -> None:
    start_collector(into=remote)
    bad, car = vehicle("car-bad"), vehicle("car-1")
    administrate(
        server,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'trouble'; END $$",
        "CREATE TRIGGER fail BEFORE INSERT ON samples FOR EACH ROW"
        " WHEN (NEW.vehicle = 'car-bad') EXECUTE FUNCTION fail()",
    )
    offer_and_send(bad, range(1))
    offer_and_send(car, range(1, 5))
    verdict = bad.hear()
    assert isinstance(verdict, Busy), verdict
    assert {type(car.hear()) for _ in range(4)} == {Stored}


def test_a_probe_that_fails_in_an_unforeseen_way_leaves_no_transfer_behind(
    local: Store, start_collector: CollectorMaker, vehicle: VehicleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RowRefusedError("value out of range")

    def fail() -> None:
        raise MemoryError

    collector, car = start_collector(into=local), vehicle()
    with monkeypatch.context() as patch:
        patch.setattr(local, "add_many", refuse)
        patch.setattr(local, "takes_rows", fail)
        assert isinstance(car.upload(picture(0)), Busy)
    assert len(collector.transfers) == 0
    assert isinstance(car.upload(picture(0)), Stored)


def test_a_blob_that_cannot_be_written_keeps_no_worker_for_ever(
    local: Store, start_collector: CollectorMaker, vehicle: VehicleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = local.blobs.stage, make_offer(picture(0)).id

    def stage(sample: str, data: bytes) -> Staged:
        if sample == bad:
            raise StoreUnavailableError("input/output error")
        return real(sample, data)

    monkeypatch.setattr(local.blobs, "stage", stage)
    start_collector(into=local, workers=2)
    other, car = vehicle("car-2"), vehicle("car-1")
    offer_and_send(car, range(1))
    until = time.monotonic() + 20.0
    while car.silent(for_s=0.0) and time.monotonic() < until:
        assert isinstance(other.upload(picture(int(time.monotonic() * 1000) % 100_000 + 1)), Stored)
    assert time.monotonic() < until
    assert not local.known([bad])


def test_a_row_number_that_is_taken_already_is_no_duplicate(
    remote: Store, start_collector: CollectorMaker, vehicle: VehicleMaker, server: Postgres
) -> None:
    start_collector(into=remote)
    car = vehicle()
    assert [type(car.upload(picture(number))) for number in range(2)] == [Stored, Stored]
    administrate(server, "SELECT setval('samples_seq_seq', 1, false)")  # as a restored dump may leave it
    assert isinstance(car.upload(picture(2)), Stored)
    assert remote.known([make_offer(picture(2)).id])


def test_a_store_that_cannot_be_read_makes_offers_wait(
    remote: Store, start_collector: CollectorMaker, vehicle: VehicleMaker, server: Postgres
) -> None:
    collector, car = start_collector(into=remote), vehicle()
    administrate(server, "REVOKE SELECT ON samples FROM fleet")
    for number in range(3):
        assert isinstance(car.upload(picture(number)), Busy)
    assert "the store cannot be read" in "\n".join(collector.problems())
    administrate(server, "GRANT SELECT ON samples TO fleet")
    assert isinstance(car.upload(picture(0)), Stored)
    assert collector.problems() == []


def test_a_sample_that_cannot_be_checked_is_put_off_longer_and_longer_and_stops_nobody(
    start_collector: CollectorMaker, vehicle: VehicleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = collector_committer.verify
    poison = make_offer(picture(0)).id

    def ending(data: bytes, *, sample: str, **options: object) -> Verified:
        if sample == poison:
            raise CheckFailedError("the decoder's process ended")
        return real(data, sample=sample, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(collector_committer, "verify", ending)
    collector = start_collector()
    car, other = vehicle("car-1"), vehicle("car-2")
    waits = []
    for _ in range(3):
        verdict = car.upload(picture(0))
        assert isinstance(verdict, Busy)
        waits.append(verdict.retry_after_s)
    assert waits == [10.0, 20.0, 40.0]
    chunks = collector.metrics.chunks._value.get()
    assert isinstance(car.upload(picture(0)), Busy)
    assert collector.metrics.chunks._value.get() == chunks, "it is not asked for again"
    assert not collector.breaker.is_open
    assert isinstance(other.upload(picture(1)), Stored)


def test_a_check_that_fails_for_every_vehicle_stops_the_collector_until_it_works_again(
    start_collector: CollectorMaker, vehicle: VehicleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ending(*_: object, **__: object) -> Verified:
        raise MemoryError

    collector = start_collector(probe_s=0.5)
    cars = [vehicle(f"car-{number}") for number in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(collector_committer, "verify", ending)
        for number, car in enumerate(cars[:3]):
            assert isinstance(car.upload(picture(number)), Busy)
        assert collector.problems() == ["samples cannot be checked: MemoryError"]
        cars[3].offer(make_offer(picture(3), vehicle="car-3"))
        assert isinstance(cars[3].hear(), Busy)
    for number, car in enumerate(cars):
        assert stored_at_last(car, picture(number))
    assert collector.problems() == []


def test_bytes_that_are_damaged_differently_each_time_are_put_off(
    start_collector: CollectorMaker, vehicle: VehicleMaker
) -> None:
    start_collector()
    car, data = vehicle(), picture(0)
    car.offer(make_offer(data))
    for at in range(100, 103):
        car.send(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], car.hear_send())
    assert isinstance(car.hear(), Busy)
    assert isinstance(car.upload(data), Stored)
