"""Lets only one loop work on a store at a time. The lock goes with its process, however that ends.

SQLite: a file beside the database, locked by the kernel for the process. PostgreSQL: an advisory lock of a
connection, which the server releases when the connection breaks.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from misfire_fleet.errors import StoreError
from misfire_fleet.store.database import Database

_KEY = 0x6D69736C
"""Key of PostgreSQL's advisory lock, "misl" in ASCII."""
_BUSY = "another misfire fleet loop works on this store; only one can"


@contextmanager
def only_loop(database: Database) -> Iterator[None]:
    """Holds the lock of a store's loop. Raises StoreError if another process has it."""
    with _advisory(database) if database.dialect == "postgresql" else _file(database):
        yield


@contextmanager
def _file(database: Database) -> Iterator[None]:
    path = Path(str(database.engine.url.database))
    name = path.with_name(f"{path.name}.loop-lock")
    try:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StoreError(f"{name}: cannot be locked ({error.strerror})") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(_BUSY) from error
        yield
    finally:
        # The file stays: if it were removed, two processes could lock two files of the same name.
        os.close(handle)


@contextmanager
def _advisory(database: Database) -> Iterator[None]:
    # A connection of its own, which no pool hands to anybody else.
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY}):
            raise StoreError(_BUSY)
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _KEY})
