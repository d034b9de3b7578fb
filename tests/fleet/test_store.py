"""One store, two homes: every promise is tested on SQLite with a folder and on PostgreSQL with S3."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import CursorResult, text
from tests.fleet.stores import NOON, again, at, sample, without_tables

from misfire_fleet.errors import SampleGoneError, StoreError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import FolderBlobs
from misfire_fleet.store.database import MIGRATIONS
from misfire_fleet.store.records import Hold, NewSample, SampleFilter
from misfire_fleet.store.rows import sample_of
from misfire_fleet.store.schema import metadata
from misfire_runtime.messages import Clock, Counters, State, Telemetry, Trigger, pack_embedding
from misfire_runtime.testing import make_offer
from proving_ground.services import ObjectStore, Postgres, object_store, postgres


def test_what_goes_in_comes_out_byte_identical_and_complete(anywhere: Store) -> None:
    new = sample(
        1,
        vehicle="car-7",
        scores={"entropy": 0.25, "msp": -3.5},
        percentiles={"entropy": 0.9, "msp": 0.99},
        context={"weather": "fog \u2603", "speed": 12.5, "night": True},
        embedding=pack_embedding(np.array([0.6, 0.8])),
    )
    assert anywhere.add_many([new]) == ["stored"]
    row = anywhere.get(new.offer.id)
    assert anywhere.read_blob(row.id) == new.data
    assert row.offer == new.offer
    assert (row.vehicle, row.percentile, row.width, row.height) == ("car-7", 0.99, 640, 480)
    assert row.embedding is not None
    assert row.embedding == pytest.approx([0.6, 0.8], abs=1e-3)
    assert anywhere.newest() == [row]


def test_storing_again_leaves_one_row_and_one_blob(anywhere: Store) -> None:
    assert anywhere.add_many([sample(1), sample(2)]) == ["stored", "stored"]
    assert anywhere.add_many([sample(2), sample(3)]) == ["duplicate", "stored"]
    assert anywhere.add_many([sample(4), sample(4)]) == ["stored", "duplicate"]
    assert anywhere.totals().samples == 4
    assert len(list(anywhere.blobs.names())) == 4


def test_two_processes_storing_the_same_group_at_once_store_it_once(anywhere: Store) -> None:
    group = [sample(number) for number in range(40)]
    with again(anywhere) as other, ThreadPoolExecutor(2) as pool:
        first = pool.submit(anywhere.add_many, group)
        second = pool.submit(other.add_many, group)
        outcomes = first.result() + second.result()
    assert outcomes.count("stored") == 40
    assert outcomes.count("duplicate") == 40
    assert anywhere.totals().samples == 40
    assert all(anywhere.read_blob(new.offer.id) == new.data for new in group)


@pytest.mark.slow
def test_many_writers_and_readers_at_once_get_along(anywhere: Store) -> None:
    def write(writer: int) -> None:
        for number in range(10):
            anywhere.add_many([sample(100 * writer + number, vehicle=f"car-{writer}")])
            anywhere.vehicles.record_states({f"car-{writer}": State(online=True)})

    def read(_: int) -> None:
        for _ in range(20):
            assert all(anywhere.read_blob(row.id) for row in anywhere.newest(5))

    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda job: job[0](job[1]), [(write, n) for n in range(4)] + [(read, n) for n in range(4)]
            )
        )
    assert anywhere.totals().samples == 40


def test_newest_come_first_and_filters_combine(anywhere: Store) -> None:
    anywhere.add_many(
        [
            sample(
                number,
                vehicle=f"car-{number % 2}",
                bundle=f"lights@{number % 3}.0.0",
                captured_at=at(number),
                percentiles={"entropy": number / 10},
                trigger=Trigger(name="random" if number % 5 == 0 else "rate", random=number % 5 == 0),
            )
            for number in range(10)
        ]
    )

    def numbers(**filters: object) -> list[int]:
        rows = anywhere.newest(100, SampleFilter(**filters))  # type: ignore[arg-type]
        assert anywhere.count(SampleFilter(**filters)) == len(rows)  # type: ignore[arg-type]
        return [round(row.captured_at - NOON) for row in rows]

    assert numbers() == list(range(9, -1, -1))
    assert numbers(vehicle="car-1") == [9, 7, 5, 3, 1]
    assert numbers(vehicle="car-1", random=True) == [5]
    assert numbers(captured_from=NOON + 3, captured_to=NOON + 6) == [5, 4, 3]
    assert numbers(min_percentile=0.7, bundle="lights@0.0.0") == [9]
    assert numbers(trigger="random") == [5, 0]
    middle = anywhere.newest(5)[-1].seq
    assert numbers(before_seq=middle) == [4, 3, 2, 1, 0]
    assert anywhere.distinct()["vehicle"] == ["car-0", "car-1"]


def test_samples_are_found_by_id_and_only_theirs_are_read(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere.add_many([sample(number) for number in range(40)])
    read = []
    monkeypatch.setattr(
        "misfire_fleet.store.store.sample_of", lambda row: read.append(row.id) or sample_of(row)
    )
    wanted = [sample(number).offer.id for number in (3, 17, 5)]
    found = anywhere.among([*wanted, "f" * 64, wanted[0]])
    assert [row.id for row in found] == sorted(wanted) == sorted(read)
    assert anywhere.among([]) == []
    monkeypatch.setattr("misfire_fleet.store.store._MANY", 2)
    assert anywhere.among(wanted) == found


def test_a_row_whose_offer_is_outside_todays_bounds_takes_no_listing_down(anywhere: Store) -> None:
    anywhere.add_many([sample(1), sample(2, trigger=Trigger(name="rain", random=True))])
    key = sample(2).offer.id
    with anywhere.database.write() as connection:
        old = """{"id": "x", "captured_at": {"wall": 1e308}}"""
        connection.execute(text("UPDATE samples SET offer = :old WHERE id = :id"), {"old": old, "id": key})
    bad, good = anywhere.newest()
    assert (bad.id, bad.trigger, bad.random, bad.scores, bad.size) == (
        key,
        "rain",
        True,
        {},
        sample(2).offer.size,
    )
    assert good.offer == sample(1).offer


RECORDED = 1_500_000_000.0


@pytest.mark.parametrize(
    ("recorded_at", "wall", "expected"),
    [
        (RECORDED, NOON, "recorded"),
        (RECORDED, 0.0, "recorded"),
        (None, NOON, "wall"),
        (None, 1.0, "stored"),
        (None, 946_684_799.0, "stored"),
        (None, 946_684_800.0, "wall"),
        (None, 30 * 365 * 86_400 + NOON, "stored"),
        (253_402_300_799, NOON, "wall"),
        (253_402_300_799, 253_402_300_799, "stored"),
    ],
)
def test_the_time_of_capture_is_the_recordings_else_a_clock_that_can_be_right(
    anywhere: Store, recorded_at: float | None, wall: float, expected: str
) -> None:
    clock = Clock(wall=wall, monotonic=0, boot_id="")
    anywhere.add_many([sample(1, captured_at=clock, recorded_at=recorded_at)])
    (row,) = anywhere.newest()
    assert row.captured_at == {"recorded": recorded_at, "wall": wall, "stored": row.stored_at}[expected]
    assert row.offer.captured_at == clock and row.offer.recorded_at == recorded_at
    assert anywhere.count(SampleFilter(captured_from=row.captured_at, captured_to=row.captured_at + 1)) == 1


def test_deletion_and_holds_go_by_the_day_of_the_recording(anywhere: Store) -> None:
    anywhere.add_many([sample(n, recorded_at=RECORDED + n, captured_at=at(n)) for n in range(4)])
    anywhere.deletion.hold(Hold("crash", "accident", captured_from=RECORDED + 1, captured_to=RECORDED + 2))
    replayed = anywhere.deletion.delete(captured_from=NOON, captured_to=NOON + 9, reason="r", dry_run=True)
    assert replayed.deleted == 0
    done = anywhere.deletion.delete(captured_from=RECORDED, captured_to=RECORDED + 3, reason="asked for")
    assert (done.deleted, done.held) == (2, 1)
    assert {row.id for row in anywhere.newest()} == {sample(1).offer.id, sample(3).offer.id}


def test_a_name_that_no_text_column_can_hold_matches_nothing(anywhere: Store) -> None:
    anywhere.add_many([sample(1)])
    for field in ("vehicle", "trigger", "bundle"):
        assert anywhere.newest(5, SampleFilter(**{field: "a\0b"})) == []  # type: ignore[arg-type]
    with pytest.raises(SampleGoneError, match="not in this store"):
        anywhere.get("\0")


def test_names_for_filters_are_the_first_of_all(anywhere: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    anywhere.add_many([sample(n, vehicle=f"car-{9 - n}") for n in range(10)])
    monkeypatch.setattr("misfire_fleet.store.store._MANY", 3)
    assert anywhere.distinct()["vehicle"] == ["car-0", "car-1", "car-2"]


def test_known_buried_and_usage(anywhere: Store) -> None:
    anywhere.add_many([sample(1), sample(2), sample(3, trigger=Trigger(name="random", random=True))])
    ids = [sample(number).offer.id for number in (1, 2, 99)]
    assert anywhere.known(ids) == set(ids[:2])
    assert anywhere.tombstoned(ids) == set()
    assert anywhere.known([f"{number:064x}" for number in range(2000)]) == set()
    sizes = sum(sample(number).offer.size for number in (1, 2, 3))
    assert anywhere.usage_since(0.0) == {"car-1": (2, sizes)}


def test_embeddings_are_read_in_order_from_where_one_stopped(anywhere: Store) -> None:
    for number in range(5):
        anywhere.add_many([sample(number, embedding=pack_embedding(np.array([number, 1.0])))])
    anywhere.add_many([sample(9, embedding=None)])
    first = anywhere.embeddings_after(0, limit=100)
    assert [round(float(vector[0])) for *_, vector in first] == [0, 1, 2, 3, 4]
    assert [seq for seq, *_ in anywhere.embeddings_after(first[2][0], limit=100)] == [
        first[3][0],
        first[4][0],
    ]
    assert len(anywhere.embeddings_after(0, limit=2)) == 2


def test_vehicles_states_heartbeats_and_refusals(anywhere: Store) -> None:
    book = anywhere.vehicles
    book.record_states({"car-1": State(online=True, boot_id="b", session=1, bundle="x@1.0.0")})
    book.record_states({"car-1": State(online=False), "car-2": State(online=True)})
    beats = [
        (
            "car-1",
            Telemetry(
                at=Clock(wall=n, monotonic=n, boot_id="b"), bundle="x@1.0.0", counters=Counters(frames=n)
            ),
        )
        for n in range(3)
    ]
    book.record_telemetry(beats)
    book.record_refusals({("car-1", "declined", "quota"): 2, ("car-1", "rejected", "image"): 1})
    book.record_refusals({("car-1", "declined", "quota"): 3})
    anywhere.add_many([sample(1, vehicle="car-3")])
    one, two, three = book.summaries()
    assert (one.name, one.online, one.declined, one.rejected) == ("car-1", False, 5, 1)
    assert one.telemetry == beats[-1][1]
    assert (two.online, two.stored) == (True, 0)
    assert (three.name, three.online, three.stored) == ("car-3", False, 1)
    assert book.causes("car-1") == [("declined", "quota", 5), ("rejected", "image", 1)]
    assert [beat.counters.frames for _, beat in book.heartbeats("car-1", limit=2)] == [2, 1]
    assert book.forget_telemetry(before=4e9) == 3
    totals = anywhere.totals()
    assert (totals.vehicles, totals.online, totals.declined, totals.rejected) == (2, 1, 5, 1)


def test_deletion_by_vehicle_and_time_leaves_tombstones_and_no_blob(anywhere: Store) -> None:
    anywhere.add_many([sample(n, vehicle=f"car-{n % 2}", captured_at=at(n)) for n in range(10)])
    planned = anywhere.deletion.delete(
        vehicle="car-1", captured_to=NOON + 6, reason="asked for", dry_run=True
    )
    assert (planned.deleted, anywhere.totals().samples) == (3, 10)
    done = anywhere.deletion.delete(vehicle="car-1", captured_to=NOON + 6, reason="asked for", actor="keeper")
    assert (done.deleted, done.bytes, done.blobs_removed) == (3, planned.bytes, 3)
    gone = [sample(n).offer.id for n in (1, 3, 5)]
    assert anywhere.tombstoned(gone) == set(gone)
    assert anywhere.add_many([sample(1), sample(11)]) == ["deleted", "stored"]
    assert {row.id for row in anywhere.newest(99)} == set(anywhere.blobs.names())
    with pytest.raises(SampleGoneError, match="not in this store"):
        anywhere.get(gone[0])
    with pytest.raises(SampleGoneError, match="no blob"):
        anywhere.read_blob(gone[0])
    ((_, actor, action, detail),) = anywhere.deletion.audit()
    assert (actor, action, detail["deleted"], detail["reason"]) == ("keeper", "delete", 3, "asked for")


def test_deletion_without_a_condition_is_refused(anywhere: Store) -> None:
    anywhere.add_many([sample(1)])
    with pytest.raises(StoreError, match="name a sample, a vehicle or a time"):
        anywhere.deletion.delete(reason="oops")
    assert anywhere.totals().samples == 1


def test_what_is_on_hold_survives_deletion_and_retention_until_released(anywhere: Store) -> None:
    anywhere.add_many([sample(n, vehicle="car-1", captured_at=at(n)) for n in range(6)])
    single = sample(5).offer.id
    anywhere.deletion.hold(
        Hold("crash-17", "accident", vehicle="car-1", captured_from=NOON + 1, captured_to=NOON + 3)
    )
    anywhere.deletion.hold(Hold("one", "evidence", sample=single))
    with pytest.raises(StoreError, match="exists already"):
        anywhere.deletion.hold(Hold("one", "again"))
    done = anywhere.deletion.delete(vehicle="car-1", reason="asked for")
    assert (done.deleted, done.held) == (3, 3)
    assert anywhere.deletion.apply_retention(max_age_days=0, max_bytes=0).deleted == 0
    anywhere.deletion.release("crash-17")
    with pytest.raises(StoreError, match="no open hold"):
        anywhere.deletion.release("crash-17")
    assert anywhere.deletion.delete(vehicle="car-1", reason="asked for").deleted == 2
    assert [row.id for row in anywhere.newest()] == [single]
    assert [(hold.name, hold.released_at is None) for hold in anywhere.deletion.holds()] == [
        ("crash-17", False),
        ("one", True),
    ]


def test_retention_by_age_and_by_bytes_keeps_the_newest(anywhere: Store) -> None:
    for number in range(6):
        anywhere.add_many([sample(number)])
    assert anywhere.deletion.apply_retention(max_age_days=1).deleted == 0
    size = sample(0).offer.size
    planned = anywhere.deletion.apply_retention(max_bytes=2 * size + 5, dry_run=True)
    assert (planned.deleted, anywhere.totals().samples) == (4, 6)
    assert anywhere.deletion.apply_retention(max_bytes=2 * size + 5).deleted == 4
    assert [row.id for row in anywhere.newest()] == [sample(5).offer.id, sample(4).offer.id]
    assert anywhere.deletion.apply_retention(max_age_days=0).deleted == 2


def test_retention_by_bytes_reads_one_number_whatever_the_number_of_rows(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [1 + 7 * n % 5 for n in range(30)]
    anywhere.add_many(
        [NewSample(make_offer(b"%d" % n, size=size), b"%d" % n, 8, 8, "c") for n, size in enumerate(sizes)]
    )
    fetched = []
    fetch = CursorResult._fetchiter_impl
    monkeypatch.setattr(CursorResult, "_fetchiter_impl", lambda self: fetched.append(self) or fetch(self))
    for limit in range(sum(sizes) + 2):
        within = [n for n in range(30) if sum(sizes[n:]) <= limit]
        assert anywhere.deletion._seq_within(limit) == (min(within, default=30) or -1)
    assert not fetched


def test_blobs_that_a_crash_left_behind_a_deletion_are_removed_later(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere.add_many([sample(1)])
    with monkeypatch.context() as broken:
        broken.setattr(anywhere.blobs, "delete_many", _killed)
        with pytest.raises(StoreUnavailableError):
            anywhere.deletion.delete(vehicle="car-1", reason="asked for")
    assert len(list(anywhere.blobs.names())) == 1
    assert anywhere.totals().samples == 0
    assert anywhere.deletion.purge() == 1
    assert list(anywhere.blobs.names()) == []


def _killed(_: object) -> int:
    raise StoreUnavailableError("killed here")


def test_a_group_whose_rows_cannot_be_committed_leaves_no_row(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> set[str]:
        raise StoreUnavailableError("killed here")

    with monkeypatch.context() as broken:
        broken.setattr(anywhere.database, "insert_new", fail)
        with pytest.raises(StoreUnavailableError):
            anywhere.add_many([sample(1), sample(2)])
    assert anywhere.totals().samples == 0
    assert anywhere.add_many([sample(1), sample(2)]) == ["stored", "stored"]
    assert len(list(anywhere.blobs.names())) == 2


def test_the_schema_is_what_the_migrations_build(anywhere: Store) -> None:
    with anywhere.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_of_the_first_schema_is_migrated_with_all_its_rows(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'fleet.sqlite'}"
    else:
        database: Postgres = request.getfixturevalue("database")
        without_tables(database)
        url = database.url
    with Store.open(url, tmp_path / "blobs") as store:
        store.add_many([sample(1), sample(2)])
        store.deletion.hold(Hold("crash", "accident"))
        before = store.newest()
        with store.database.write() as connection:
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.set_main_option("path_separator", "os")
            config.attributes["connection"] = connection
            command.downgrade(config, "0001")
            wrong = {"at": 5.0, "id": before[0].id}  # as a clock that was wrong was stored then
            connection.execute(text("UPDATE samples SET captured_at = :at WHERE id = :id"), wrong)
    with Store.open(url, tmp_path / "blobs") as store:
        newest, oldest = store.newest()
        assert (newest.captured_at, newest.offer) == (5.0, before[0].offer)
        assert oldest == before[1]
        assert store.add_many([sample(1), sample(3)]) == ["duplicate", "stored"]
        assert store.deletion.delete(vehicle="car-1", reason="asked for").held == 3


def test_a_schema_from_the_future_is_refused(anywhere: Store) -> None:
    with anywhere.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="schema that this version does not know"):
        again(anywhere)


def test_processes_that_open_a_new_store_at_once_migrate_it_once(tmp_path: Path, database: Postgres) -> None:
    barrier = threading.Barrier(4)

    def open_it(url: str) -> None:
        barrier.wait()
        Store.open(url, tmp_path / "blobs").close()

    without_tables(database)
    for url in (f"sqlite:///{tmp_path / 'new.sqlite'}", database.url):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(open_it, [url] * 4))
        with Store.open(url, tmp_path / "blobs") as store:
            assert store.totals().samples == 0


def test_a_new_database_that_another_connection_is_switching_to_wal_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite refuses this without waiting, when two connections switch a new file at the very same moment.
    refusals = iter(range(3))

    class Busy(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            if statement == "PRAGMA journal_mode=WAL" and next(refusals, None) is not None:
                raise sqlite3.OperationalError("database is locked")
            return super().execute(statement, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Busy, **options))
    with Store.open(f"sqlite:///{tmp_path / 'new.sqlite'}", tmp_path / "blobs") as store:
        assert store.totals().samples == 0
    assert next(refusals, None) is None


@pytest.mark.slow
def test_a_database_that_goes_away_is_named_and_works_again_when_it_is_back(
    tmp_path: Path, bucket: ObjectStore
) -> None:
    with (
        postgres() as server,
        Store.open(server.url, f"{bucket.url}/away", blob_options=bucket.options) as store,
    ):
        assert store.add_many([sample(1)]) == ["stored"]
        server.stop()
        with pytest.raises(StoreUnavailableError, match="database"):
            store.add_many([sample(2)])
        server.start()
        assert store.add_many([sample(1), sample(2)]) == ["duplicate", "stored"]


@pytest.mark.slow
def test_an_object_store_that_goes_away_is_named_and_no_row_is_written(tmp_path: Path) -> None:
    with object_store() as server:
        store = Store.open(tmp_path / "rows.sqlite", f"{server.url}/x", blob_options=server.options)
        assert store.add_many([sample(1)]) == ["stored"]
        server.process.kill()
        server.process.wait(10)
        with pytest.raises(StoreUnavailableError, match="blob store s3://misfire/x"):
            store.add_many([sample(2)])
        assert store.totals().samples == 1
        store.close()


def test_a_folder_that_cannot_be_written_is_named_and_no_row_is_written(tmp_path: Path) -> None:
    with Store.open_folder(tmp_path / "fleet") as store:
        tmp = tmp_path / "fleet" / "blobs" / "tmp"
        tmp.rmdir()
        tmp.write_text("a file where a folder must be")
        with pytest.raises(StoreUnavailableError, match="blob folder"):
            store.add_many([sample(1)])
        assert store.totals().samples == 0


def test_temporaries_of_a_killed_writer_disappear_and_those_of_a_running_one_stay(tmp_path: Path) -> None:
    tmp = tmp_path / "blobs" / "tmp"
    tmp.mkdir(parents=True)
    (tmp / "old").write_bytes(b"half")
    (tmp / "new").write_bytes(b"half")
    os.utime(tmp / "old", (1.0, 1.0))
    FolderBlobs(tmp_path / "blobs").close()
    assert [file.name for file in tmp.iterdir()] == ["new"]


def test_a_blob_of_the_wrong_length_is_written_anew(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    key = hashlib.sha256(b"whole").hexdigest()
    (tmp_path / key).write_bytes(b"ha")
    assert blobs.publish([blobs.stage(key, b"whole")]) == []
    assert blobs.get(key) == b"whole"
    blobs.close()


def test_a_group_is_published_again_after_it_was_cut_short_and_names_what_was_swept(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    keys = [hashlib.sha256(text).hexdigest() for text in (b"one", b"two", b"three")]
    staged = [blobs.stage(key, text) for key, text in zip(keys, (b"one", b"two", b"three"), strict=True)]
    assert not any(map(blobs.exists, keys))
    assert blobs.publish(staged[:1]) == []
    (tmp_path / str(staged[2].temporary)).unlink()
    assert blobs.publish(staged) == [keys[2]]
    assert [blobs.get(key) for key in keys[:2]] == [b"one", b"two"]


def test_samples_whose_staged_bytes_were_swept_are_written_again(tmp_path: Path) -> None:
    new = sample(1)
    with Store.open_folder(tmp_path) as store:
        staged = store.blobs.stage(new.offer.id, new.data)
        (tmp_path / "blobs" / str(staged.temporary)).unlink()
        assert store.add_many([new], staged=[staged]) == ["stored"]
        assert store.read_blob(new.offer.id) == new.data


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite://", "sqlite:///:memory:", "://", "postgresql"])
def test_a_database_url_that_is_wrong_says_what_is_expected(tmp_path: Path, url: str) -> None:
    from misfire_fleet.store.database import Database

    with pytest.raises(StoreError, match="expected sqlite:///PATH or postgresql"):
        Database(url)


def test_a_postgresql_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        Store.open("postgresql://keeper:secret@127.0.0.1:9/fleet", tmp_path)
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)
