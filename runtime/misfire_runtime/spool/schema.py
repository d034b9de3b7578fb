"""Opens the spool's database with durable commits, and migrates it to the current schema.

`user_version` is the number of applied MIGRATIONS. Every commit is synced (WAL, synchronous=FULL), so a
result that a call returned is still true after a power cut.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from misfire_runtime.errors import DiskFullError, SpoolError

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE samples (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        disk INTEGER NOT NULL,
        priority INTEGER NOT NULL,
        value REAL NOT NULL,
        rank INTEGER NOT NULL,
        offer TEXT NOT NULL
    );
    CREATE INDEX samples_by_rank ON samples (rank DESC, seq);
    CREATE INDEX samples_by_worth ON samples (priority, value, seq);
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE settled (
        n INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        verdict TEXT NOT NULL,
        size INTEGER NOT NULL
    );
    CREATE TABLE account (
        verdict TEXT NOT NULL,
        reason TEXT NOT NULL,
        samples INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (verdict, reason)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE settled ADD COLUMN reason TEXT NOT NULL DEFAULT '';
    CREATE TABLE hold (reason TEXT NOT NULL, since REAL NOT NULL);
    """,
)
_LEAST_BYTES = 64 * 1024
"""With fewer free bytes on the disk, SQLite's "disk I/O error" means that its files could not grow."""


class DamagedDatabaseError(SpoolError):
    """Reports that the file is not a sound SQLite database."""


def connect(path: Path, *, migrations: Sequence[str] = MIGRATIONS) -> sqlite3.Connection:
    """Opens and migrates the database. Threads must not use the connection at the same time.

    Args:
        path: the SQLite file; created if it does not exist.
        migrations: steps of the schema, for tests.

    Raises:
        DamagedDatabaseError: the file is damaged.
        DiskFullError: the disk has no room to open it.
        SpoolError: a newer version created it, or it cannot be opened.
    """
    try:
        # isolation_level=None: Python's module must not open transactions by itself.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    except sqlite3.Error as error:
        raise SpoolError(f"spool database {path}: {error}") from error
    try:
        # WAL: `misfire spool` reads while a vehicle writes, and a commit syncs one file.
        connection.execute("PRAGMA journal_mode=WAL")
        # FULL: in WAL mode, NORMAL may lose the last commits at a power cut.
        connection.execute("PRAGMA synchronous=FULL")
        # Temporary tables on a disk that is full would make reads fail, too.
        connection.execute("PRAGMA temp_store=MEMORY")
        _check(connection, path)
        _migrate(connection, path, migrations)
    except sqlite3.DatabaseError as error:
        connection.close()
        # OperationalError is a subclass, and means the disk or a lock, not a damaged file.
        if isinstance(error, sqlite3.OperationalError):
            raise explained(error, path) from error
        raise DamagedDatabaseError(f"spool database {path}: {error}") from error
    except SpoolError:
        connection.close()
        raise
    return connection


def snapshot(path: Path) -> sqlite3.Connection:
    """Returns a migrated copy of the database in memory. The file may be in use and is not changed.

    Raises:
        SpoolError: there is no database.
        DamagedDatabaseError: the database is damaged.
    """
    if not path.is_file():
        raise SpoolError(f"{path.parent} is no spool: it has no {path.name}")
    copy = sqlite3.connect(":memory:", isolation_level=None)
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)
        ) as opened:
            _check(opened, path)
            # A copy in memory can be migrated without touching the vehicle's file.
            opened.backup(copy)
        _migrate(copy, path, MIGRATIONS)
    except sqlite3.Error as error:
        copy.close()
        raise DamagedDatabaseError(f"spool database {path}: {error}") from error
    except SpoolError:
        copy.close()
        raise
    return copy


def explained(error: sqlite3.OperationalError, path: Path) -> SpoolError:
    """Returns the error to raise: DiskFullError if the disk has no room, else SpoolError."""
    if "full" in str(error) or ("I/O" in str(error) and _free_bytes(path.parent) < _LEAST_BYTES):
        return DiskFullError(f"spool {path.parent}: no room on its disk ({error}); free some")
    return SpoolError(f"spool {path.parent}: {error}")


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _check(connection: sqlite3.Connection, path: Path) -> None:
    # quick_check leaves out the indices' content, and (1) stops at the first problem: the start is short.
    (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise DamagedDatabaseError(f"spool database {path}: {answer}")


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    # A newer schema may have columns whose meaning this version would break.
    if version > len(migrations):
        raise SpoolError(
            f"spool {path.parent} has schema {version}, this version knows {len(migrations)}: "
            "upgrade misfire, or start with another spool folder"
        )
    for number in range(version, len(migrations)):
        # One transaction per step, its number included: a crash leaves the step undone or done.
        connection.executescript(f"BEGIN; {migrations[number]} PRAGMA user_version={number + 1}; COMMIT;")
