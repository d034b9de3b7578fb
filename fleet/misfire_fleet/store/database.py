"""Opens SQLite (WAL) or PostgreSQL, migrates the schema, and provides transactions.

All access goes through `read()` and `write()`. A write on SQLite takes the write lock at its start (BEGIN
IMMEDIATE), so two collectors wait for each other instead of failing half-way; `synchronous=FULL` makes a
commit durable. An error about the values of a row becomes RowRefusedError. All others are problems of the
store and become StoreUnavailableError: worth a retry, and no proof about what was to be written.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    Select,
    String,
    Table,
    bindparam,
    create_engine,
    event,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError

from misfire_fleet.errors import RowRefusedError, StoreError, StoreUnavailableError
from misfire_runtime.errors import MisfireError

MIGRATIONS = Path(__file__).parents[1] / "migrations"
HEAD = "0009"
_WRITES = "misfire_writes"
_OPENED = "misfire_opened"
_MIGRATION_LOCK = 0x6D697366
"""Key of PostgreSQL's advisory lock, "misf" in ASCII: only one process may migrate at a time."""
_BUSY_S = 30  # how long a connection waits for the lock of another one


class Database:
    """Holds an engine, migrated to the newest schema.

    Args:
        url: `sqlite:///path` or `postgresql://user:password@host/name`.

    Raises:
        StoreError: the URL or the schema is invalid.
        StoreUnavailableError: the server does not answer.
    """

    def __init__(self, url: str) -> None:
        self.engine = _create(url)
        self.dialect = self.engine.dialect.name
        try:
            with _translated(self.engine.url.render_as_string(hide_password=True)):
                self._migrate()
        except MisfireError:
            self.engine.dispose()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Opens a transaction that only reads."""
        with _translated("database"), self.engine.connect() as connection:
            with connection.begin():
                yield connection
            _check_in_place(connection)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Opens a transaction that is committed durably at its end, or rolled back after an exception."""
        writer = self.engine.execution_options(**{_WRITES: True})
        with _translated("database"), writer.connect() as connection:
            with connection.begin():
                yield connection
            # After the commit: one into a file that was replaced meanwhile must not count as durable.
            _check_in_place(connection)

    def insert_statement(self, table: Table) -> Any:
        """Returns an INSERT of this dialect, which supports ON CONFLICT."""
        return postgresql.insert(table) if self.dialect == "postgresql" else sqlite.insert(table)

    def insert_new(self, connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> set[str]:
        """Inserts the rows whose `id` does not exist yet; returns the inserted ids."""
        if not rows:
            return set()
        # Only a conflict on `id` is ignored: a conflict on `seq` must not look like a duplicate sample.
        statement = self.insert_statement(table).on_conflict_do_nothing(index_elements=[table.c.id])
        if self.dialect == "postgresql":
            return set(connection.scalars(statement.returning(table.c.id), list(rows)))
        # With RETURNING, a separate statement would be compiled and cached for every number of rows on
        # SQLite. Nobody else writes during this transaction, so a SELECT and one INSERT do the same.
        fresh: dict[str, dict[str, Any]] = {}
        for row in rows:
            fresh.setdefault(row["id"], row)
        for known in connection.scalars(self.among(table), self.ids(list(fresh))).all():
            del fresh[known]
        if fresh:
            connection.execute(statement, list(fresh.values()))
        return set(fresh)

    def takes(self, table: Table, row: dict[str, Any]) -> bool:
        """Inserts a row and rolls it back; returns False if the database refuses its values."""
        writer = self.engine.execution_options(**{_WRITES: True})
        try:
            with _translated("database"), writer.connect() as connection, connection.begin() as transaction:
                connection.execute(self.insert_statement(table), [row])
                transaction.rollback()
        except RowRefusedError:
            return False
        return True

    def among(self, table: Table) -> Select[Any]:
        """Returns a query for the ids of a table that are in the parameter `ids` (see `ids`).

        All ids are one parameter, so one prepared statement serves any number of them.
        """
        if self.dialect == "postgresql":
            return select(table.c.id).where(table.c.id == func.any(bindparam("ids", type_=ARRAY(String))))
        asked = func.json_each(bindparam("ids", type_=String)).table_valued("value")
        return select(table.c.id).where(table.c.id.in_(select(asked.c.value)))

    def ids(self, ids: Sequence[str]) -> dict[str, Any]:
        """Returns the parameter for the query of `among`."""
        return {"ids": list(ids) if self.dialect == "postgresql" else json.dumps(list(ids))}

    def upsert(
        self,
        connection: Connection,
        table: Table,
        rows: Sequence[dict[str, Any]],
        *,
        keep: Sequence[str] = (),
    ) -> None:
        """Inserts rows; an existing row is overwritten, except its key and the columns in `keep`."""
        for row in rows:
            statement = self.insert_statement(table).values(row)
            keys = [column.name for column in table.primary_key]
            changed = {
                name: statement.excluded[name] for name in row if name not in keys and name not in keep
            }
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed))

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    def _migrate(self) -> None:
        # The usual case takes no write lock, and does not import alembic, which takes a while.
        if _revision(self.engine) == HEAD:
            return
        with self.engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
            if self.dialect == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            # A process that waited for the lock finds the schema migrated; alembic then changes nothing.
            upgrade(connection)


def one_of(column: ColumnElement[Any], values: Iterable[Any], *, on: Connection) -> ColumnElement[bool]:
    """Returns the condition that a column has one of many values, for a statement on this connection.

    All values are one parameter. With one each, PostgreSQL compares every row with each of them.
    """
    listed = list(values)
    if on.dialect.name == "postgresql":
        return column == func.any(literal(listed, ARRAY(column.type)))
    asked = func.json_each(literal(json.dumps(listed), String)).table_valued("value")
    return column.in_(select(asked.c.value))


def upgrade(connection: Connection) -> None:
    """Runs the missing migrations in the connection's transaction. Raises StoreError on an unknown schema."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(f"the database has a schema that this version does not know: {error}") from error


def _create(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError("database URL: expected sqlite:///PATH or postgresql://USER@HOST/NAME") from error
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        # pre_ping: after a restart of the server, all pooled connections are dead. Without a timeout, libpq
        # waits for a server as long as the kernel does.
        return create_engine(
            parsed, pool_size=8, max_overflow=8, pool_pre_ping=True, connect_args={"connect_timeout": 5}
        )
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"} or parsed.database in {None, "", ":memory:"}:
        raise StoreError(
            f"database {parsed.drivername!r}: expected sqlite:///PATH or postgresql://USER@HOST/NAME"
        )
    path = Path(str(parsed.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch()
    except OSError as error:
        raise StoreError(f"database {parsed.database}: {error.strerror}") from error

    # The file is created above, never by a connection (mode=rw). If the fleet's file was moved away, a
    # connection that created a new one would take over the old write-ahead log and empty it.
    def connect() -> sqlite3.Connection:
        # The pool passes connections from thread to thread, one at a time; hence check_same_thread=False.
        address = f"file:{quote(str(path))}?mode=rw"
        return sqlite3.connect(address, uri=True, timeout=_BUSY_S, check_same_thread=False)

    # Each connection has its own page cache. Few connections, reused last in first out, keep memory constant.
    engine = create_engine(
        parsed,
        pool_size=8,
        max_overflow=0,
        pool_use_lifo=True,
        creator=connect,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin_sqlite`, not by the driver
    # Text that is not UTF-8 (a damaged page) becomes one bad value; by default the whole query fails.
    connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
    connection.execute(f"PRAGMA busy_timeout={1000 * _BUSY_S}").close()
    _switch_to_wal(connection)
    # With NORMAL, a power cut could undo commits in the log. A negative cache size is in KiB: 1 MiB each.
    for pragma in ("synchronous=FULL", "cache_size=-1024"):
        connection.execute(f"PRAGMA {pragma}").close()
    path = Path(connection.execute("PRAGMA database_list").fetchone()[2])
    record.info[_OPENED] = path, _identity(path)


def _switch_to_wal(connection: Any) -> None:
    """Switches the database to its write-ahead log; the setting is stored in the file.

    SQLite ignores its busy timeout here: two connections that switch a new file at the same moment could wait
    for each other for ever, so one of them gets "database is locked" at once. Hence the loop.
    """
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_in_place(connection: Connection) -> None:
    """Raises StoreUnavailableError if the SQLite file was moved or replaced since this connection opened it.

    SQLite keeps using the old file, so its reads and commits are not those of the fleet's database.
    """
    path, opened = connection.info.get(_OPENED, (None, None))
    if path is not None and _identity(path) != opened:
        connection.invalidate()
        raise StoreUnavailableError(f"database: {path.name} was moved or replaced while it was open")


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _revision(engine: Engine) -> str | None:
    from sqlalchemy import inspect

    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        version = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return None if version is None else str(version)


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Translates errors: about a row's values, or problems of the store. See docs/protocol.md."""
    try:
        yield
    except DBAPIError as error:
        reason = (str(error.orig).strip().splitlines() or ["no reason given"])[0]
        kind = RowRefusedError if _is_about_values(error) else StoreUnavailableError
        raise kind(f"{where}: {reason}") from error
    except SQLAlchemyError as error:
        raise StoreUnavailableError(f"{where}: {error}") from error
    except OSError as error:
        # A driver that has no file descriptor left for its connection does not wrap this.
        raise StoreUnavailableError(f"{where}: {error}") from error


_NOT_NULL, _CHECK = "23502", "23514"
"""SQLSTATE codes of PostgreSQL."""


def _is_about_values(error: DBAPIError) -> bool:
    """Returns True if a value does not fit its column. Unique and foreign keys depend on other rows, too."""
    if isinstance(error, DataError):
        return True
    if not isinstance(error, IntegrityError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    # Only psycopg has the SQLSTATE. sqlite3 has no error code before Python 3.11, so its text decides.
    if state is not None:
        return state in {_NOT_NULL, _CHECK}
    return str(error.orig).startswith(("NOT NULL constraint", "CHECK constraint"))
