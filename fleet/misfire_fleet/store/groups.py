"""The files of offers beside the blobs, kept in step with the rows: what is deleted has no record there.

A file is written once per commit group, before its rows. It becomes stale when a row goes, or when a row of
its samples came in by another group; `tidy` writes stale files anew. See docs/adr/0006.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, delete, select, text

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.store.blobs import Blobs, Document
from misfire_fleet.store.database import Database
from misfire_fleet.store.offers import split_group
from misfire_fleet.store.schema import samples, stale_offers, tombstones

_LOCK = 0x6D697364
_FILES = 20
"""Files per transaction: enough that commits do not dominate, few enough that collectors do not wait long."""


class OfferGroups:
    """Which files are stale, and the lock under which they are written anew."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """A transaction beside which no other deletes or tidies. SQLite has one writer anyway."""
        with self._database.write() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield connection

    def mark_stale(self, connection: Connection, names: Sequence[str]) -> None:
        """Marks files, in the transaction of `connection`, as holding what no row needs."""
        for name in sorted(set(names)):
            statement = self._database.insert_statement(stale_offers).values(name=name)
            connection.execute(statement.on_conflict_do_nothing())

    def tidy(self) -> None:
        """Writes stale files anew, without what was deleted or belongs to another file's rows."""
        with self._database.read() as connection:
            stale = list(connection.scalars(select(stale_offers.c.name)))
        self._tidy_all(stale)

    def tidy_unowned(self) -> None:
        """Tidies the files that no row names: of groups whose commit failed or was cut short."""
        with self._database.read() as connection:
            owned = set(connection.scalars(select(samples.c.offers).distinct()))
        self._tidy_all([name for name in self._blobs.documents("offers") if name not in owned])

    def _tidy_all(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), _FILES):
            some = names[start : start + _FILES]
            with self.alone() as connection:
                connection.execute(delete(stale_offers).where(stale_offers.c.name.in_(some)))
                for name in some:
                    self._tidy(connection, name)

    def _tidy(self, connection: Connection, name: str) -> None:
        """A record stays if its row names this file, or if the blob has neither a row nor a tombstone yet."""
        try:
            data = self._blobs.document("offers", name)
        except SampleGoneError:
            return
        lines = split_group(data)
        own = set(connection.scalars(select(samples.c.id).where(samples.c.offers == name)))
        settled = own.copy()
        for table in (samples, tombstones):
            asked = self._database.among(table)
            settled |= set(connection.scalars(asked, self._database.ids(list(lines))))
        kept = [
            line
            for key, line in lines.items()
            if key in own or (key not in settled and self._blobs.exists(key))
        ]
        if not kept:
            self._blobs.drop("offers", name)
        elif b"".join(kept) != data:
            self._blobs.keep(Document("offers", name, b"".join(kept)))
