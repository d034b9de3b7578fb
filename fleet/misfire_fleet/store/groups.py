"""Keeps the offer documents next to the blobs consistent with the rows: deleted samples have no record there.

A document is written once per commit group, before its rows. It becomes stale if one of its rows is deleted,
or if one of its samples was stored by another group; `tidy` rewrites stale documents. See docs/adr/0006.
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
"""Key of PostgreSQL's advisory lock for deletions, "misd" in ASCII."""
_FILES = 20
"""Documents per transaction: enough that commits do not dominate, few enough that collectors wait briefly."""


class OfferGroups:
    """Tracks stale documents and rewrites them under a lock."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """Opens a transaction that excludes other deletions and rewrites. SQLite has one writer anyway."""
        with self._database.write() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield connection

    def mark_stale(self, connection: Connection, names: Sequence[str]) -> None:
        """Marks documents as stale in the transaction of `connection`."""
        # Sorted: PostgreSQL locks rows in this order, and two transactions with other orders would deadlock.
        for name in sorted(set(names)):
            statement = self._database.insert_statement(stale_offers).values(name=name)
            connection.execute(statement.on_conflict_do_nothing())

    def tidy(self) -> None:
        """Rewrites stale documents without records of deleted samples or of other documents' rows."""
        with self._database.read() as connection:
            stale = list(connection.scalars(select(stale_offers.c.name)))
        self._tidy_all(stale)

    def tidy_unowned(self) -> None:
        """Rewrites the documents that no row names: those of groups whose commit failed."""
        with self._database.read() as connection:
            owned = set(connection.scalars(select(samples.c.offers).distinct()))
        self._tidy_all([name for name in self._blobs.documents("offers") if name not in owned])

    def _tidy_all(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), _FILES):
            some = names[start : start + _FILES]
            with self.alone() as connection:
                # In the transaction of the rewriting: if that fails, the documents stay marked.
                connection.execute(delete(stale_offers).where(stale_offers.c.name.in_(some)))
                for name in some:
                    self._tidy(connection, name)

    def _tidy(self, connection: Connection, name: str) -> None:
        """Rewrites one document, or removes it if no record remains.

        A record remains if its row names this document, or if its blob has neither a row nor a tombstone yet.
        """
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
