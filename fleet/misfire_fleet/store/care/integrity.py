"""Checks the database for damage: with SQLite's own checks, or by reading everything from PostgreSQL.

`refuse_damaged` runs before a daemon opens its database: writing to a damaged file makes the damage worse.
`integrity` is the complete check, for `misfire fleet check`.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.engine import make_url

from misfire_fleet.errors import StoreError, StoreUnavailableError
from misfire_fleet.store.database import Database
from misfire_fleet.store.schema import metadata

log = logging.getLogger(__name__)

START_CHECK_S = 10.0
"""Bounds the delay of a daemon's start; enough for some gigabytes."""
_MAX_MESSAGES = 20
"""Messages per SQLite check; the first few show what is damaged."""
# Rows per fetch, so that a large table is not held in memory.
_PAGE = 1000


def sqlite_file(database: str | Path) -> Path | None:
    """Returns the file of an SQLite database given by path or URL; None for a database server."""
    if "://" not in str(database):
        return Path(database)
    url = make_url(str(database))
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def refuse_damaged(database: str | Path, *, limit_s: float = START_CHECK_S) -> None:
    """Checks an SQLite file, and does nothing for a database server, which checks its pages itself.

    The check reads every page, at some hundred megabytes per second. A larger file than it can read within
    `limit_s` seconds passes unchecked, and the log says so.

    Raises:
        StoreError: the file is damaged.
        StoreUnavailableError: the file cannot be read now.
    """
    path = sqlite_file(database)
    if path is None or not path.exists():
        return
    found = _pragma(path, "quick_check", limit_s=limit_s)
    if found is None:
        fields = {"file": str(path), "limit_s": limit_s, "next": "misfire fleet check reads all of it"}
        log.warning("check_cut_short", extra={"fields": fields})
    elif found:
        raise StoreError(
            f"{path}: the database is damaged ({found[0]}); nothing is stored into it. Restore a backup, or "
            "build the rows again with misfire fleet rebuild; docs/fleet.md says how"
        )


def file_damage(path: Path) -> list[str]:
    """Returns the messages of SQLite's full check of a file; empty if the file is sound."""
    return _pragma(path, "integrity_check", limit_s=None) or []


def integrity(database: Database) -> list[str]:
    """Returns the database's problems as sentences; empty if it is sound."""
    if database.dialect == "sqlite":
        return file_damage(Path(str(database.engine.url.database)))
    problems = []
    for table in metadata.sorted_tables:
        try:
            with database.read() as connection:
                for _ in connection.execution_options(yield_per=_PAGE).execute(select(table)):
                    pass  # PostgreSQL has no check of its own: fetching every value reads every page of it
        except StoreUnavailableError as error:
            problems.append(f"{table.name}: {error}")
    return problems


def _interrupt(connection: sqlite3.Connection, limit_s: float, ended: threading.Event) -> None:
    """Interrupts a connection every `limit_s` seconds until its work has ended.

    Once is not enough: SQLite forgets an interruption that comes before the statement runs.
    """
    while not ended.wait(limit_s):
        connection.interrupt()


def _pragma(path: Path, check: str, *, limit_s: float | None) -> list[str] | None:
    """Runs a PRAGMA check and returns its messages, or None if the time limit ended it without any."""
    found: list[str] = []
    ended = threading.Event()
    try:
        with closing(sqlite3.connect(path, timeout=5.0, check_same_thread=False)) as connection:
            if limit_s is not None:
                watch = threading.Thread(target=_interrupt, args=(connection, limit_s, ended), daemon=True)
                watch.start()
            try:
                for (text,) in connection.execute(f"PRAGMA {check}({_MAX_MESSAGES})"):
                    found += [line for line in str(text).splitlines() if line and line != "ok"]
            finally:
                ended.set()
                if limit_s is not None:
                    watch.join()  # interrupting a closed connection is an error
    # A damaged file raises DatabaseError itself; OperationalError, its subclass, is about access.
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return found or None
        raise StoreUnavailableError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        found.append(str(error))
    return found
