"""Keeps rows of the database consistent with the documents next to the blobs from which they can be rebuilt.

    rows --keep--> KIND/NAME.jsonl, durable --then--> rows of a table, committed

A line of a document is a row as JSON. Every row names its document (`owner`). A deleted sample's rows go in
the deletion's transaction, which marks their documents as stale; `tidy` rewrites those afterwards. Everything
that writes holds the lock of deletions, so writes follow each other.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Column, Connection, RowMapping, Table, delete, func, select

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.store.blobs import Blobs, Document, Kind
from misfire_fleet.store.database import Database, one_of
from misfire_fleet.store.groups import OfferGroups
from misfire_fleet.store.schema import tombstones

ENDING = ".jsonl"
_GROUP = 500


class Line(BaseModel):
    """Is a line of a document: a row about a sample."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sample: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


LineT = TypeVar("LineT", bound=Line)


class KeptRows(ABC, Generic[LineT]):
    """Writes, removes, compares and restores the rows of a table together with their documents.

    Attributes:
        kind: of the documents.
        line: what a line is checked by.
        table, stale: the rows, and the names of documents to be rewritten.
        owner: the column of the table that names a row's document.
        newest_first: restores the documents in this order; of two records of one key the first one stays.
    """

    kind: ClassVar[Kind]
    line: type[LineT]
    table: ClassVar[Table]
    stale: ClassVar[Table]
    owner: ClassVar[Column[str]]
    newest_first: ClassVar[bool] = False

    def __init__(self, database: Database, blobs: Blobs, groups: OfferGroups) -> None:
        self._database = database
        self._blobs = blobs
        self._groups = groups

    @abstractmethod
    def _belongs(self, line: LineT, name: str) -> bool:
        """Returns whether a line may be in the document of this name."""

    @abstractmethod
    def _present(self, connection: Connection, lines: Sequence[LineT]) -> set[Hashable]:
        """Returns the keys of these lines that the table has."""

    @abstractmethod
    def _key(self, line: LineT) -> Hashable:
        """Returns what tells a record from all others of its table, or of its document."""

    @abstractmethod
    def _insert(self, connection: Connection, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Inserts the rows of a document."""

    def _name(self, owner: str) -> str:
        """Returns the name of the document of rows with this owner."""
        return owner

    def _owner(self, name: str) -> str:
        """Returns the owner of the rows in the document of this name."""
        return name

    def _as_line(self, connection: Connection, row: RowMapping) -> dict[str, Any]:
        """Returns a row of the table as a line."""
        return dict(row)

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes a document durably, and replaces one of this name."""
        data = b"".join(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n" for row in rows)
        self._blobs.keep(Document(self.kind, name, data))

    def remove(self, connection: Connection, ids: Sequence[str]) -> int:
        """Removes the rows about samples in the transaction of their deletion; returns their number."""
        of_samples = one_of(self.table.c.sample, ids, on=connection)
        # Sorted: PostgreSQL locks rows in this order, and two transactions with other orders would deadlock.
        for owner in sorted(connection.scalars(select(self.owner).where(of_samples).distinct())):
            statement = self._database.insert_statement(self.stale).values(name=self._name(owner))
            connection.execute(statement.on_conflict_do_nothing())
        return int(connection.execute(delete(self.table).where(of_samples)).rowcount)

    def tidy(self) -> None:
        """Rewrites stale documents without the rows about deleted samples."""
        with self._database.read() as connection:
            stale = list(connection.scalars(select(self.stale.c.name).limit(_GROUP)))
        for name in stale:
            self._tidy(name)

    def _tidy(self, name: str) -> None:
        with self._groups.alone() as connection:
            connection.execute(delete(self.stale).where(self.stale.c.name == name))
            self._rewrite(connection, name)

    def tidy_unowned(self) -> None:
        """Removes what is about deleted samples from documents that no row names."""
        for name in self.unowned():
            with self._groups.alone() as connection:
                self._rewrite(connection, name)

    def unowned(self) -> list[str]:
        """Returns the documents that no row names: their commit failed and was not repeated."""
        # The documents first: one that is committed meanwhile is then found to be owned.
        found = list(self._blobs.documents(self.kind))
        with self._database.read() as connection:
            owned = set(map(self._name, connection.scalars(select(self.owner).distinct())))
            marks = self._marks(connection)
        return sorted(name for name in found if name not in owned and not self._running(name, marks))

    def _marks(self, connection: Connection) -> set[str]:
        """Returns the marks of transactions that are open, or to be abandoned."""
        return set()

    def _running(self, name: str, marks: Set[str]) -> bool:
        """Returns whether a document is of a transaction with a mark."""
        return False

    def lost(self, *, deep: bool = False) -> list[str]:
        """Returns the documents that rows name and that do not exist or, with `deep`, lack some of them."""
        count = select(self.owner, func.count()).group_by(self.owner)
        with self._database.read() as connection:
            owned = {self._name(owner): int(rows) for owner, rows in connection.execute(count)}
        there = set(self._blobs.documents(self.kind))
        return sorted(
            name
            for name, rows in owned.items()
            if name not in there or (deep and len(list(self.lines(name))) < rows)
        )

    def write_again(self, names: Sequence[str]) -> int:
        """Writes lost documents from their rows; returns their number."""
        for name in names:
            with self._groups.alone() as connection:
                query = select(self.table).where(self.owner == self._owner(name)).order_by(self.table.c.seq)
                rows = connection.execute(query).mappings().all()
                if rows:
                    self.write(name, [self._as_line(connection, row) for row in rows])
        return len(names)

    def restore(self, names: Iterable[str] | None = None) -> int:
        """Adds the rows that documents have and the database lacks; returns their number.

        Args:
            names: of documents; None takes all.
        """
        listed = self._blobs.documents(self.kind) if names is None else names
        return sum(self._restore(name) for name in sorted(listed, reverse=self.newest_first))

    def _restore(self, name: str) -> int:
        lines = {self._key(line): line for line in self.lines(name)}
        if not lines:
            return 0
        with self._groups.alone() as connection:
            gone = self._gone(connection, lines.values())
            there = self._present(connection, list(lines.values()))
            fresh = [
                line.model_dump()
                for key, line in lines.items()
                if key not in there and line.sample not in gone
            ]
            self._insert(connection, fresh, name)
            of_document = select(self.table.c.seq).where(self.owner == self._owner(name)).limit(1)
            if not fresh and connection.scalar(of_document) is None:
                self._blobs.drop(self.kind, name)
        return len(fresh)

    def _gone(self, connection: Connection, lines: Iterable[LineT]) -> set[str]:
        """Returns the deleted samples that lines are about."""
        ids = sorted({line.sample for line in lines})
        gone: set[str] = set()
        for start in range(0, len(ids), _GROUP):
            some = self._database.ids(ids[start : start + _GROUP])
            gone |= set(connection.scalars(self._database.among(tombstones), some))
        return gone

    def _rewrite(self, connection: Connection, name: str) -> None:
        lines = list(self.lines(name))
        gone = self._gone(connection, lines)
        kept = [line.model_dump() for line in lines if line.sample not in gone]
        if gone and kept:
            self.write(name, kept)
        elif gone:
            self._blobs.drop(self.kind, name)

    def lines(self, name: str) -> Iterator[LineT]:
        """Yields the valid lines of a document: one damaged line must not hide the others."""
        try:
            data = self._blobs.document(self.kind, name)
        except SampleGoneError:
            return
        for raw in data.split(b"\n"):
            try:
                line = self.line.model_validate_json(raw) if raw else None
            except ValidationError:
                continue
            if line is not None and self._belongs(line, name):
                yield line
