"""Rebuilds a database from the blob store: rows from the offers, deletions and holds from the ledger.

It removes nothing: an old SQLite file is renamed, and a database on a server must be empty.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from misfire_fleet.errors import StoreError
from misfire_fleet.store.audit.record import audit_row
from misfire_fleet.store.care.check import add_rows
from misfire_fleet.store.care.integrity import file_damage, sqlite_file
from misfire_fleet.store.curated import candidates, lineage
from misfire_fleet.store.curated import snapshots as snapshot_rows
from misfire_fleet.store.database import Database
from misfire_fleet.store.schema import (
    audit,
    classes,
    gate_verdicts,
    holds,
    labels,
    published_bundles,
    samples,
    snapshots,
    tombstones,
    verdicts,
)
from misfire_fleet.store.store import Store
from misfire_runtime.files import replace_durably

NOT_RESTORED = (
    "vehicles, their heartbeats and counts of refusals (they come again with each vehicle's next message)",
    "accounts, their tokens and sessions (the next start of the console prints a link for an admin)",
    "snapshots whose manifest is lost or altered",
    "which vehicles hold copies of another vehicle's sample",
    "samples of versions that kept no offers beside blobs, unless misfire fleet check --repair was run",
)
_SHARED_LOCK_AT, _SHARED_LOCK_BYTES = 0x40000002, 510
"""The byte range that SQLite locks in its file; defined in its source, os.h (SHARED_FIRST, SHARED_SIZE)."""
_SIDES = ("", "-wal", "-shm")


@dataclass(frozen=True)
class Rebuilt:
    """Counts what was restored. `unknown`: blobs without an offer; `kept`: path of the old database."""

    rows: int
    tombstones: int
    holds: int
    labels: int
    person_verdicts: int
    classes: int
    snapshots: int
    verdicts: int
    published: int
    audit: int
    unknown: int
    kept: str | None = None


def rebuild(
    database: str | Path,
    blobs: str | Path,
    *,
    force: bool = False,
    blob_options: Mapping[str, str] | None = None,
) -> Rebuilt:
    """Builds the database from the blob store.

    SQLite: builds a new file next to the old one, and replaces the old one when the new one is complete.
    PostgreSQL: fills an empty database.

    Args:
        database: path of an SQLite file, or the URL of a database.
        blobs: folder or URL of the blob store.
        force: replaces a sound SQLite database too.
        blob_options: options of the blob store's client.

    Raises:
        StoreError: the database is in use, sound (without `force`), not empty (on a server), or cannot be
            written.
    """
    path = sqlite_file(database)
    if path is None:
        return _into_server(str(database), blobs, blob_options)
    if _in_use(path):
        raise StoreError(f"{path} is open in another process; stop collectors and console first")
    if not force and (rows := _sound_rows(path)):
        raise StoreError(
            f"{path} is sound and has {rows} rows; add what it lacks with misfire fleet check --repair, or "
            "rebuild it with --force"
        )
    fresh = path.with_name(path.name + ".rebuilding")
    _remove(fresh)
    try:
        with Store.open(fresh, blobs, blob_options=blob_options) as store:
            done = _restore(store)
        # Only after the new one is complete and closed: until here, a failure changes nothing.
        kept = _set_aside(path)
        replace_durably(fresh, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be rebuilt ({error.strerror})") from error
    finally:
        _remove(fresh)
    return Rebuilt(**{**done.__dict__, "kept": kept})


def _into_server(url: str, blobs: str | Path, options: Mapping[str, str] | None) -> Rebuilt:
    with Store.open(url, blobs, blob_options=options) as store:
        if store.count() or store.deletion.audit(limit=1):
            raise StoreError(
                "the database is not empty; add what it lacks with misfire fleet check --repair, or make an "
                "empty database and name it with --database"
            )
        return _restore(store)


def _restore(store: Store) -> Rebuilt:
    # The tombstones first: add_rows gives no row to a sample that has one.
    _restore_ledger(store)
    add_rows(store)
    store.deletion.labels.restore()
    store.deletion.verdicts.restore()
    with store.database.read() as connection:
        counts = {
            table.name: int(connection.scalar(select(func.count()).select_from(table)) or 0)
            for table in (
                *(samples, tombstones, holds, audit, labels, verdicts, classes, snapshots),
                *(gate_verdicts, published_bundles),
            )
        }
    blobs = sum(1 for _ in store.blobs.names())
    return Rebuilt(
        rows=counts["samples"],
        tombstones=counts["tombstones"],
        holds=counts["holds"],
        labels=counts["labels"],
        person_verdicts=counts["verdicts"],
        classes=counts["classes"],
        snapshots=counts["snapshots"],
        verdicts=counts["gate_verdicts"],
        published=counts["published_bundles"],
        audit=counts["audit"],
        unknown=max(0, blobs - counts["samples"]),
    )


def _restore_ledger(store: Store) -> None:
    for entry in store.deletion.ledger.entries():
        with store.database.write() as connection:
            if entry["action"] == "tombstones":
                store.database.insert_new(connection, tombstones, entry["tombstones"])
                continue
            detail = entry["detail"]
            if entry["action"] == "hold":
                store.database.upsert(connection, holds, [detail])
            elif entry["action"] == "release":
                ended = holds.update().where(holds.c.name == detail["name"])
                connection.execute(ended.values(released_at=entry["at"]))
            elif entry["action"] == "classes":
                restore_classes(store.database, connection, entry)
            elif entry["action"] == "snapshot":
                snapshot_rows.restore(connection, store.blobs, entry)
            elif entry["action"] == "lineage":
                lineage.restore(store.database, connection, entry)
            elif entry["action"] in (candidates.GATE, candidates.PUBLISH):
                candidates.restore(store.database, connection, entry)
            connection.execute(audit.insert(), audit_row(entry))


def restore_classes(database: Database, connection: Connection, entry: Mapping[str, Any]) -> None:
    """Adds the classes of an entry of the ledger."""
    for name in entry["detail"]["names"]:
        row = {"name": name, "added_by": entry["actor"], "added_at": entry["at"]}
        connection.execute(database.insert_statement(classes).values(row).on_conflict_do_nothing())


def _sound_rows(path: Path) -> int:
    """Returns the number of samples in a sound database; 0 if it is damaged or does not exist."""
    if not path.is_file() or file_damage(path):
        return 0
    with closing(sqlite3.connect(path)) as connection, suppress(sqlite3.DatabaseError):
        return int(connection.execute("SELECT count(*) FROM samples").fetchone()[0])
    return 0


def _in_use(path: Path) -> bool:
    """Returns True if another process has the database open: in WAL mode it always holds a shared lock.

    This process must not have a connection of its own: POSIX drops all locks of a process on a file when it
    closes any descriptor of that file.
    """
    try:
        # For writing, although nothing is written: POSIX gives an exclusive lock only to such a descriptor.
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_LOCK_BYTES, _SHARED_LOCK_AT)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _set_aside(path: Path) -> str | None:
    """Renames the old database and the files beside it; returns its new name."""
    if not path.exists():
        return None
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    kept = path.with_name(f"{path.name}.before-{stamp}")
    for side in _SIDES:
        with suppress(FileNotFoundError):
            Path(f"{path}{side}").replace(f"{kept}{side}")
    return str(kept)


def _remove(path: Path) -> None:
    for side in _SIDES:
        Path(f"{path}{side}").unlink(missing_ok=True)
