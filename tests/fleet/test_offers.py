"""Offers beside the blobs: every row has its record there, and what is deleted has none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.fleet.stores import again, sample

from misfire_fleet.errors import StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import Document
from misfire_fleet.store.care.check import check
from misfire_fleet.store.offers import parse_record, row_of, split_group
from misfire_fleet.store.records import Hold
from misfire_fleet.store.schema import samples, stale_offers

ROOT = Path(__file__).resolve().parents[2]


def recorded(store: Store) -> dict[str, list[str]]:
    """Sample id to the documents that have a record of it."""
    found: dict[str, list[str]] = {}
    for name in store.blobs.documents("offers"):
        for key in split_group(store.blobs.document("offers", name)):
            found.setdefault(key, []).append(name)
    return found


def ids(*numbers: int) -> list[str]:
    return [sample(number).offer.id for number in numbers]


def ledger(store: Store) -> list[dict[str, object]]:
    return [json.loads(store.blobs.document("ledger", n)) for n in sorted(store.blobs.documents("ledger"))]


def test_every_row_can_be_made_again_from_its_record(anywhere: Store) -> None:
    anywhere.add_many([sample(n, vehicle=f"car-{n}", recorded_at=1e9 + n) for n in range(5)])
    anywhere.add_many([sample(7)])
    assert len(list(anywhere.blobs.documents("offers"))) == 2
    with anywhere.database.read() as connection:
        rows = [dict(row) for row in connection.execute(select(samples)).mappings()]
    assert len(rows) == 6
    for row in rows:
        line = split_group(anywhere.blobs.document("offers", row["offers"]))[row["id"]]
        del row["seq"]
        assert row_of(parse_record(line), offers=row["offers"]) == row


def test_a_record_is_durable_before_its_row_is_there(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    insert = anywhere.database.insert_new

    def look(*arguments: object) -> set[str]:
        seen.append(set(recorded(anywhere)))
        return insert(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(anywhere.database, "insert_new", look)
    anywhere.add_many([sample(1), sample(2)])
    assert seen == [set(ids(1, 2))]


def test_deleting_takes_the_offer_out_and_leaves_those_of_others(anywhere: Store) -> None:
    anywhere.add_many([sample(n, vehicle=f"car-{n % 2}") for n in range(6)])
    anywhere.add_many([sample(9, vehicle="car-1")])
    assert anywhere.deletion.delete(vehicle="car-1", reason="asked for").deleted == 4
    assert set(recorded(anywhere)) == set(ids(0, 2, 4)) == set(anywhere.blobs.names())
    assert len(list(anywhere.blobs.documents("offers"))) == 1
    assert anywhere.add_many([sample(1), sample(11)]) == ["deleted", "stored"]
    assert set(recorded(anywhere)) == set(ids(0, 2, 4, 11)) == set(anywhere.blobs.names())
    assert anywhere.deletion.apply_retention(max_age_days=0).deleted == 4
    assert recorded(anywhere) == {}


def test_what_another_collector_stored_meanwhile_has_one_record(anywhere: Store) -> None:
    with again(anywhere) as other:
        assert other.add_many([sample(1), sample(2)]) == ["stored", "stored"]
    assert anywhere.add_many([sample(2), sample(3)]) == ["duplicate", "stored"]
    assert all(len(names) == 1 for names in recorded(anywhere).values())
    anywhere.deletion.delete(sample=sample(2).offer.id, reason="asked for")
    assert set(recorded(anywhere)) == set(ids(1, 3))


def test_a_group_that_is_written_again_after_a_failure_leaves_one_record_each(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = [sample(1), sample(2)]
    with monkeypatch.context() as broken:
        broken.setattr(anywhere.database, "insert_new", _killed)
        with pytest.raises(StoreUnavailableError):
            anywhere.add_many(group)
    assert anywhere.add_many(group) == ["stored", "stored"]
    assert anywhere.add_many(group) == ["duplicate", "duplicate"]
    assert sorted(recorded(anywhere)) == sorted(ids(1, 2))
    assert all(len(names) == 1 for names in recorded(anywhere).values())


def test_a_group_cut_short_by_a_kill_is_kept_until_its_samples_are_stored_or_deleted(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere.add_many([sample(8)])
    with monkeypatch.context() as broken:
        broken.setattr(anywhere.database, "insert_new", _killed)
        with pytest.raises(StoreUnavailableError):
            anywhere.add_many([sample(1), sample(2), sample(3)])
    anywhere.deletion.purge()
    assert set(recorded(anywhere)) == set(ids(1, 2, 3, 8))
    assert anywhere.add_many([sample(1)]) == ["stored"]
    anywhere.deletion.delete(sample=sample(1).offer.id, reason="asked for")
    assert set(recorded(anywhere)) == set(ids(2, 3, 8))
    assert anywhere.add_many([sample(2), sample(3)]) == ["stored", "stored"]
    anywhere.deletion.purge()
    assert all(len(names) == 1 for names in recorded(anywhere).values())


def test_offers_that_a_crash_left_behind_a_deletion_are_removed_later(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere.add_many([sample(1), sample(2)])
    for broken_part in ("delete_many", "keep"):
        with monkeypatch.context() as broken:
            if broken_part == "keep":
                broken.setattr(anywhere.deletion.groups, "tidy", _killed)
            else:
                broken.setattr(anywhere.blobs, broken_part, _killed)
            with pytest.raises(StoreUnavailableError):
                anywhere.deletion.delete(sample=sample(1).offer.id, reason="asked for")
        assert set(recorded(anywhere)) == set(ids(1, 2))
    with again(anywhere) as other:
        other.deletion.purge()
        assert set(recorded(other)) == set(ids(2)) == set(other.blobs.names())
        with other.database.read() as connection:
            assert connection.execute(select(stale_offers)).all() == []


def test_a_damaged_document_stops_no_deletion(anywhere: Store) -> None:
    anywhere.add_many([sample(1), sample(2)])
    (name,) = anywhere.blobs.documents("offers")
    lines = anywhere.blobs.document("offers", name).splitlines(keepends=True)
    anywhere.blobs.keep(Document("offers", name, lines[0][:40] + b"\n\xff\xfe{\n" + lines[1]))
    assert anywhere.deletion.delete(sample=sample(2).offer.id, reason="asked for").deleted == 1
    assert recorded(anywhere) == {}


def test_the_ledger_keeps_deletions_holds_and_their_ends(anywhere: Store) -> None:
    anywhere.add_many([sample(n, vehicle=f"car-{n}") for n in range(3)])
    anywhere.deletion.hold(Hold("crash", "accident", vehicle="car-0"), actor="keeper")
    anywhere.deletion.delete(vehicle="car-1", reason="asked for", actor="keeper")
    anywhere.deletion.release("crash", actor="keeper")
    entries = ledger(anywhere)
    assert [entry["action"] for entry in entries] == ["hold", "delete", "tombstones", "release"]
    assert entries[1]["detail"] == {"reason": "asked for", "deleted": 1, "bytes": sample(1).offer.size}
    (grave,) = entries[2]["tombstones"]  # type: ignore[misc]
    assert (grave["id"], grave["vehicle"], grave["reason"]) == (sample(1).offer.id, "car-1", "asked for")


WRITER = """
import sys
from pathlib import Path
from tests.fleet.stores import sample
from misfire_fleet.store import Store
with Store.open_folder(Path(sys.argv[1])) as store:
    for number in range(0, 1_000_000, 3):
        store.add_many([sample(1_000_000 * int(sys.argv[2]) + number + more) for more in range(3)])
        print(number, flush=True)
"""


@pytest.mark.slow
def test_kill_9_leaves_no_row_without_its_blob_and_its_record(tmp_path: Path) -> None:
    for attempt in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(5 + 3 * attempt):
                writer.stdout.readline()
            writer.kill()
    with Store.open_folder(tmp_path) as store:
        found = check(store, deep=True)
        assert found.rows >= 4 * 15
        assert found.sound, found.problems
        store.deletion.delete(vehicle="car-1", reason="asked for")
        left = set(store.blobs.names())  # of a group that was cut short: nobody was told that it is stored
        assert set(recorded(store)) <= left


def _killed(*_: object, **__: object) -> set[str]:
    raise StoreUnavailableError("killed here")
