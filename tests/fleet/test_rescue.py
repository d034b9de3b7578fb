"""Check, repair, back up and rebuild, on stores that were damaged on purpose."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select, text
from tests.fleet.stores import again, at, sample, without_tables
from typer.testing import CliRunner

from misfire_fleet.errors import StoreError
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import Document, FolderBlobs, ObjectBlobs
from misfire_fleet.store.care.backup import backup
from misfire_fleet.store.care.check import check, repair
from misfire_fleet.store.care.integrity import refuse_damaged
from misfire_fleet.store.care.rebuild import rebuild
from misfire_fleet.store.records import Hold
from misfire_fleet.store.schema import audit, holds, samples, tombstones
from misfire_runtime.cli import app
from proving_ground.services import Postgres, find_program

pytestmark = pytest.mark.slow


def ids(*numbers: int) -> list[str]:
    return [sample(number).offer.id for number in numbers]


def problems(store: Store, *, deep: bool = False) -> dict[str, list[str]]:
    return {kind: sorted(found) for kind, found in check(store, deep=deep).problems.items() if found}


@pytest.fixture
def nothing_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ten minutes had passed: a blob without a row is no longer on its way."""
    monkeypatch.setattr("misfire_fleet.store.care.check._ON_ITS_WAY_S", -3600.0)


def fill(store: Store) -> None:
    """Two groups, a deletion, and two holds of which one is released."""
    store.add_many([sample(n, vehicle=f"car-{n % 2}", captured_at=at(n)) for n in range(6)])
    store.add_many([sample(n, recorded_at=1e9) for n in (7, 8)])
    store.deletion.hold(Hold("crash", "accident", vehicle="car-0"), actor="keeper")
    store.deletion.hold(Hold("other", "by mistake", vehicle="car-1"), actor="keeper")
    store.deletion.release("other", actor="keeper")
    store.deletion.delete(sample=sample(3).offer.id, reason="asked for", actor="keeper")


def rows_of(store: Store) -> dict[str, list[dict[str, object]]]:
    """All that a rebuild restores, without the running numbers."""
    with store.database.read() as connection:
        return {
            table.name: [
                {k: v for k, v in row.items() if k != "seq" and not (table is samples and k == "offers")}
                for row in connection.execute(select(table).order_by(*order)).mappings()
            ]
            for table, order in (
                (samples, (samples.c.seq,)),
                (tombstones, (tombstones.c.id,)),
                (holds, (holds.c.name,)),
                (audit, (audit.c.seq,)),
            )
        }


def test_a_sound_store_has_no_problems(anywhere: Store, nothing_is_young: None) -> None:
    fill(anywhere)
    found = check(anywhere, deep=True)
    assert found.sound, found.problems
    assert (found.rows, found.blobs) == (7, 7)


def test_each_kind_of_difference_is_found_and_mended_where_it_can_be(
    anywhere: Store, nothing_is_young: None
) -> None:
    fill(anywhere)
    before = anywhere.get(ids(0)[0])
    with anywhere.database.write() as connection:
        connection.execute(text("DELETE FROM samples WHERE id = :id"), {"id": ids(0)[0]})
        connection.execute(text("UPDATE samples SET offers = NULL WHERE id = :id"), {"id": ids(1)[0]})
        connection.execute(text("DELETE FROM tombstones"))
        connection.execute(text("INSERT INTO tombstones VALUES (:id, 'car-9', 1, 'old')"), {"id": "f" * 64})
    anywhere.blobs.delete_many(ids(2))
    blobs = anywhere.blobs
    blobs.publish([blobs.stage(ids(4)[0], b"short"), blobs.stage("f" * 64, b"deleted before")])
    blobs.publish([blobs.stage("e" * 64, b"of nobody")])
    assert problems(anywhere) == {
        "rows_without_blob": ids(2),
        "blobs_without_row": ids(0),
        "blobs_without_offer": ["e" * 64],
        "rows_without_offer": ids(1),
        "wrong_size": ids(4),
        "not_removed": ["f" * 64],
        "not_in_ledger": ["f" * 64],
    }
    mended = repair(anywhere, check(anywhere))
    assert mended == {
        "rows_without_offer": 1,
        "blobs_without_row": 1,
        "not_in_ledger": 1,
        "not_removed": 1,
        "labels_without_document": 0,
        "labels_without_row": 0,
        "verdicts_without_document": 0,
        "verdicts_without_row": 0,
        "snapshots_without_row": 0,
        "bundles_without_row": 0,
    }
    assert set(problems(anywhere)) == {"rows_without_blob", "blobs_without_offer", "wrong_size"}
    again_there = anywhere.get(ids(0)[0])
    assert (again_there.offer, again_there.stored_at) == (before.offer, before.stored_at)


def test_bytes_that_changed_are_found_by_hashing(anywhere: Store) -> None:
    fill(anywhere)
    data = bytearray(anywhere.read_blob(ids(4)[0]))
    data[3] ^= 1
    anywhere.blobs.publish([anywhere.blobs.stage(ids(4)[0], bytes(data))])
    assert problems(anywhere) == {}
    assert problems(anywhere, deep=True) == {"wrong_hash": ids(4)}


def test_a_record_missing_in_its_file_is_found_by_reading_and_written_again(anywhere: Store) -> None:
    fill(anywhere)
    name = sorted(anywhere.blobs.documents("offers"))[0]
    anywhere.blobs.keep(Document("offers", name, b"{}\n"))
    with anywhere.database.read() as connection:
        lost = sorted(connection.scalars(select(samples.c.id).where(samples.c.offers == name)))
    assert problems(anywhere) == {}
    assert problems(anywhere, deep=True) == {"rows_without_offer": lost}
    repair(anywhere, check(anywhere, deep=True))
    assert problems(anywhere, deep=True) == {}


def test_a_group_that_is_being_committed_is_no_problem(
    anywhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert, seen = anywhere.database.insert_new, []

    def look(*arguments: object) -> set[str]:
        monkeypatch.setattr(anywhere.database, "insert_new", insert)
        with again(anywhere) as other:
            seen.append(problems(other))
        return insert(*arguments)  # type: ignore[arg-type]

    anywhere.add_many([sample(9)])
    monkeypatch.setattr(anywhere.database, "insert_new", look)
    if anywhere.database.dialect == "sqlite":
        anywhere.blobs.publish([anywhere.blobs.stage(ids(1)[0], sample(1).data)])
        seen.append(problems(anywhere))
    else:
        anywhere.add_many([sample(1)])
    assert seen == [{}]


def test_a_lost_database_is_built_again_row_by_row(anywhere: Store, nothing_is_young: None) -> None:
    fill(anywhere)
    before = rows_of(anywhere)
    with again(anywhere) as other:
        assert not check(other, deep=True).problems["database_damaged"]
    assert isinstance(anywhere.blobs, FolderBlobs | ObjectBlobs)
    url = anywhere.database.engine.url.render_as_string(hide_password=False)
    options = anywhere.blobs.options if isinstance(anywhere.blobs, ObjectBlobs) else None
    where = anywhere.blobs.url if isinstance(anywhere.blobs, ObjectBlobs) else anywhere.blobs.root
    anywhere.database.close()
    if anywhere.database.dialect == "sqlite":
        Path(str(anywhere.database.engine.url.database)).unlink()
    else:
        with anywhere.database.write() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    done = rebuild(url, where, blob_options=options)
    assert (done.rows, done.tombstones, done.holds, done.audit, done.unknown) == (7, 1, 2, 4, 0)
    with again(anywhere) as rebuilt:
        assert rows_of(rebuilt) == before
        assert check(rebuilt, deep=True).sound
        assert rebuilt.add_many([sample(3), sample(10)]) == ["deleted", "stored"]
        assert rebuilt.deletion.delete(vehicle="car-0", reason="again").held == 3
    with pytest.raises(StoreError, match="--repair"):
        rebuild(url, where, blob_options=options)


def fleet_of(tmp_path: Path) -> Path:
    """A fleet folder whose database has some hundred pages."""
    with Store.open_folder(tmp_path / "fleet") as store:
        for start in range(0, 400, 50):
            store.add_many([sample(n) for n in range(start, start + 50)])
    return tmp_path / "fleet"


def scribble(path: Path) -> None:
    """Noise over the middle third, as a dying disk leaves it."""
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.seek(size // 3 // 4096 * 4096)
        stream.write(os.urandom(size // 3))


def fleet(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "misfire_runtime.cli", "fleet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_damaged_file_is_refused_checked_and_rebuilt_from_the_command_line(tmp_path: Path) -> None:
    folder = fleet_of(tmp_path)
    sound = fleet("check", "--fleet-dir", folder)
    assert sound.returncode == 0 and "nothing is wrong" in sound.stdout, sound.stderr
    scribble(folder / "fleet.sqlite")
    for daemon in ("collect", "serve"):
        refused = fleet(daemon, "--fleet-dir", folder)
        assert refused.returncode == 1 and "fleet.sqlite: the database is damaged" in refused.stderr
        assert "misfire fleet rebuild" in refused.stderr and "Traceback" not in refused.stderr
    checked = fleet("check", "--fleet-dir", folder, "--json")
    assert checked.returncode == 1, checked.stderr
    assert json.loads(checked.stdout)["problems"]["database_damaged"] > 0
    failed = fleet("backup", tmp_path / "backup.sqlite", "--fleet-dir", folder)
    assert failed.returncode == 1 and "misfire fleet check" in failed.stderr
    assert not (tmp_path / "backup.sqlite").exists()
    damaged = (folder / "fleet.sqlite").read_bytes()
    rebuilt = fleet("rebuild", "--fleet-dir", folder)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "restored: 400 rows" in rebuilt.stdout and "not restored: vehicles" in rebuilt.stdout
    assert fleet("check", "--fleet-dir", folder, "--deep").returncode == 0
    (kept,) = folder.glob("fleet.sqlite.before-*")
    assert kept.read_bytes() == damaged
    assert {path.name for path in folder.iterdir()} == {"fleet.sqlite", "blobs", kept.name}


def test_a_sound_database_is_rebuilt_only_by_force_and_never_under_a_collector(tmp_path: Path) -> None:
    folder = fleet_of(tmp_path)
    refused = fleet("rebuild", "--fleet-dir", folder)
    assert refused.returncode == 1 and "is sound and has 400 rows" in refused.stderr
    with Store.open_folder(folder) as store:
        assert store.count() == 400
        open_elsewhere = fleet("rebuild", "--fleet-dir", folder, "--force")
        assert open_elsewhere.returncode == 1 and "is open in another process" in open_elsewhere.stderr
    forced = fleet("rebuild", "--fleet-dir", folder, "--force", "--json")
    assert forced.returncode == 0 and json.loads(forced.stdout)["rows"] == 400, forced.stderr


def test_a_quick_check_is_broken_off_in_time_and_lets_the_daemon_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = tmp_path / "large.sqlite"
    with closing(sqlite3.connect(large)) as connection:
        connection.execute("CREATE TABLE pages (content)")
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
            "INSERT INTO pages SELECT zeroblob(3000) FROM n"
        )
        connection.commit()
    refuse_damaged(large)
    assert not caplog.records
    refuse_damaged(f"sqlite:///{large}", limit_s=0.005)
    assert [record.message for record in caplog.records] == ["check_cut_short"]
    assert caplog.records[0].__dict__["fields"]["limit_s"] == 0.005
    refuse_damaged(tmp_path / "absent.sqlite")
    assert not (tmp_path / "absent.sqlite").exists()
    refuse_damaged("postgresql://keeper@127.0.0.1:9/fleet")
    (tmp_path / "text.sqlite").write_text("this is no database, only some lines of text\n" * 100)
    with pytest.raises(StoreError, match="is damaged"):
        refuse_damaged(tmp_path / "text.sqlite")


def test_a_backup_of_a_running_fleet_is_whole_and_what_came_later_is_added_from_the_blobs(
    tmp_path: Path, nothing_is_young: None
) -> None:
    folder = fleet_of(tmp_path)
    file = tmp_path / "backup.sqlite"
    file.write_bytes(b"an older backup")
    with Store.open_folder(folder) as store:
        assert backup(folder / "fleet.sqlite", file) == file.stat().st_size
        store.add_many([sample(1000)])
        with pytest.raises(StoreError, match="is the database itself"):
            backup(folder / "fleet.sqlite", folder / "fleet.sqlite")
        with pytest.raises(StoreError, match="no such folder"):
            backup(folder / "fleet.sqlite", tmp_path / "absent" / "file")
    assert [path.name for path in tmp_path.glob("*.part")] == []
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM samples").fetchone() == (400,)
    shutil.copy(file, folder / "fleet.sqlite")
    with Store.open_folder(folder) as restored:
        assert problems(restored) == {"blobs_without_row": ids(1000)}
        assert repair(restored, check(restored))["blobs_without_row"] == 1
        assert check(restored, deep=True).sound and restored.count() == 401


def test_postgresql_is_backed_up_by_pg_dump(database: Postgres, tmp_path: Path) -> None:
    find_program("pg_dump", install="apt-get install postgresql-client")
    without_tables(database)
    with Store.open(database.url, tmp_path / "blobs") as store:
        store.add_many([sample(1)])
    assert backup(database.url, tmp_path / "fleet.dump") > 0
    assert (tmp_path / "fleet.dump").read_bytes()[:5] == b"PGDMP"
    with pytest.raises(StoreError, match="pg_dump: "):
        backup("postgresql://keeper:secret@127.0.0.1:9/fleet", tmp_path / "other.dump")
    assert not (tmp_path / "other.dump").exists()


def test_samples_of_an_earlier_version_get_their_offers_by_repair(
    tmp_path: Path, nothing_is_young: None
) -> None:
    folder = fleet_of(tmp_path)
    with Store.open_folder(folder) as store:
        store.deletion.delete(sample=sample(5).offer.id, reason="asked for")
        before = rows_of(store)
        with store.database.write() as connection:
            connection.execute(text("UPDATE samples SET offers = NULL"))
    for kind in ("offers", "ledger"):
        shutil.rmtree(folder / "blobs" / kind)
    result = CliRunner().invoke(app, ["fleet", "check", "--fleet-dir", str(folder), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problems"]["rows_without_offer"] == 399
    result = CliRunner().invoke(app, ["fleet", "check", "--repair", "--fleet-dir", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["repaired"]["rows_without_offer"] == 399
    rebuild(folder / "fleet.sqlite", folder / "blobs", force=True)
    with Store.open_folder(folder) as rebuilt:
        after = rows_of(rebuilt)
        assert (after["samples"], after["tombstones"]) == (before["samples"], before["tombstones"])
