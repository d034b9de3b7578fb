"""Stores samples: rows in a database and bytes in a blob store, behind one class.

    collector --add_many--> blobs durable, then rows committed --newest, get, read_blob--> console, retrain

A row is committed only after its blob and the record of its offer are durable. So the bytes of every visible
row can be read, and every row can be rebuilt from the record. A sample's id is the SHA-256 of its bytes;
storing it twice, by any vehicle, leaves one row and one blob. `store.vehicles` keeps the vehicles' states and
heartbeats, `store.deletion` deletes samples.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    case,
    false,
    func,
    select,
    true,
    union_all,
)

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.store.blobs import Blobs, Staged, open_blobs
from misfire_fleet.store.collected.conditions import is_in_selection, is_pinned
from misfire_fleet.store.counts import VehicleCounts, foreign, note_copies, vehicle_counts
from misfire_fleet.store.database import Database
from misfire_fleet.store.deletion import Deletions
from misfire_fleet.store.labels import is_in_snapshot, is_labelled, names_class
from misfire_fleet.store.offers import OfferRecord, group_of, offer_record, row_of
from misfire_fleet.store.presence import present
from misfire_fleet.store.records import ANY, NewSample, Outcome, SampleFilter, StoredSample, Totals
from misfire_fleet.store.rows import sample_of, whole
from misfire_fleet.store.schema import refusals, samples, tombstones, vehicles
from misfire_fleet.store.vehicles import VehicleRegistry
from misfire_fleet.store.verdicts import has_verdict
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import MisfireError
from misfire_runtime.messages import Clock, Offer, Trigger

_MANY = 500
_NUL = "\0"
"""PostgreSQL refuses text with this character, so no stored value can match it."""


class Store:
    """Holds the database and the blob store. Thread-safe; several processes may open the same one."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self.database = database
        self.blobs = blobs
        self.vehicles = VehicleRegistry(database)
        self.deletion = Deletions(database, blobs)
        self._tombstoned = database.among(tombstones)
        self._owners = database.among(samples).add_columns(samples.c.vehicle)
        self._met = union_all(
            self._owners.add_columns(false().label("tombstoned")),
            database.among(tombstones).add_columns(tombstones.c.vehicle, true().label("tombstoned")),
        )

    @classmethod
    def open(
        cls, database: str | Path, blobs: str | Path, *, blob_options: Mapping[str, str] | None = None
    ) -> Store:
        """Opens a store; creates or migrates it if needed.

        Args:
            database: path of an SQLite file, or a URL (sqlite:///, postgresql://).
            blobs: a folder or a URL (s3://bucket/prefix, ...).
            blob_options: options of the object store's client.

        Raises:
            StoreError: a URL, folder or schema is invalid.
            StoreUnavailableError: the database or the blob store does not answer.
        """
        url = str(database) if "://" in str(database) else f"sqlite:///{database}"
        opened = Database(url)
        try:
            return cls(opened, open_blobs(blobs, options=blob_options))
        except MisfireError:
            opened.close()
            raise

    @classmethod
    def open_folder(cls, folder: Path) -> Store:
        """Opens a fleet folder: `fleet.sqlite` and `blobs/`, created if missing."""
        return cls.open(folder / "fleet.sqlite", folder / "blobs")

    def close(self) -> None:
        """Closes connections and threads."""
        self.blobs.close()
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_many(self, new: Sequence[NewSample], *, staged: Sequence[Staged] | None = None) -> list[Outcome]:
        """Stores a group durably: all blobs, then all rows in one transaction.

        Args:
            new: verified samples.
            staged: their blobs, if the caller has staged them already.

        Returns:
            The outcomes, in the order of `new`.

        Raises:
            StoreUnavailableError: no row of the group was stored; the call may be repeated.
            RowRefusedError: the database refuses the values of a row; no row was stored.
        """
        wanted = {sample.offer.id: sample for sample in new}
        if staged is None:
            staged = [self.blobs.stage(key, sample.data) for key, sample in wanted.items()]
        records = {key: offer_record(sample) for key, sample in wanted.items()}
        group = group_of(records.values())
        for key in self.blobs.publish(staged, group):
            # Temporary files that waited for more than an hour were removed by another process at its start.
            self.blobs.publish([self.blobs.stage(key, wanted[key].data)])
        # The rows last: a visible row has its blob and the record of its offer.
        with self.database.write() as connection:
            gone, inserted = self._insert(connection, new, records, group.name)
        # They were deleted while they were on their way: the blobs that were just published go again.
        if gone:
            self.blobs.delete_many(gone)
        # The group's document still has records of the samples that were not inserted.
        if len(inserted) < len(wanted):
            self.deletion.groups.tidy()
        outcomes: list[Outcome] = []
        for sample in new:
            key = sample.offer.id
            outcomes.append("deleted" if key in gone else "stored" if key in inserted else "duplicate")
            inserted.discard(key)
        return outcomes

    def _insert(
        self, connection: Connection, new: Sequence[NewSample], records: Mapping[str, OfferRecord], group: str
    ) -> tuple[set[str], set[str]]:
        """Inserts rows; returns the ids with a tombstone and the inserted ids. `group`: their document."""
        asked = self.database.ids(list(records))
        gone = set(connection.scalars(self._tombstoned, asked))
        rows = [row_of(record, offers=group) for key, record in records.items() if key not in gone]
        inserted = self.database.insert_new(connection, samples, rows)
        if len(inserted) < len(records):
            self.deletion.groups.mark_stale(connection, [group])
        if len(inserted) < len(new):
            owners = {row.id: row.vehicle for row in connection.execute(self._owners, asked)}
            offered = [(sample.offer.id, sample.offer.vehicle) for sample in new]
            note_copies(self.database, connection, foreign(offered, owners))
        return gone, inserted

    def takes_rows(self) -> bool:
        """Returns True if the database accepts a plain sample now (the insert is rolled back).

        If it does, a row that is refused before and after is refused for its values.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        plain = Offer(
            id=secrets.token_hex(32),
            vehicle="probe",
            size=1,
            captured_at=Clock(wall=0.0, monotonic=0.0, boot_id=""),
            bundle="probe@0",
            scores={},
            trigger=Trigger(name="probe"),
        )
        record = offer_record(NewSample(plain, b"", 1, 1, "probe"))
        return self.database.takes(samples, row_of(record, offers="probe"))

    def known(self, ids: Sequence[str]) -> set[str]:
        """Returns the ids that are stored."""
        return self.known_and_tombstoned(ids)[0]

    def tombstoned(self, ids: Sequence[str]) -> set[str]:
        """Returns the ids that were deleted and must not be stored again."""
        return self.known_and_tombstoned(ids)[1]

    def known_and_tombstoned(
        self, ids: Sequence[str], *, vehicles: Sequence[str] = ()
    ) -> tuple[set[str], set[str]]:
        """Returns the ids that are stored and the ids that were deleted, from one query.

        Args:
            ids: sample ids.
            vehicles: the vehicle that offers each id, and gets `stored` if it is. If the stored sample is of
                another vehicle, this is recorded, so that both vehicles' counts can be checked.
        """
        if not ids:
            return set(), set()
        with self.database.read() as connection:
            met = connection.execute(self._met, self.database.ids(ids)).all()
        owners = {row.id: row.vehicle for row in met if not row.tombstoned}
        copied = foreign(zip(ids, vehicles, strict=False), owners)
        if copied:
            with self.database.write() as connection:
                note_copies(self.database, connection, copied)
        return set(owners), {row.id for row in met if row.tombstoned}

    def vehicle_counts(self, names: Sequence[str] | None = None) -> list[VehicleCounts]:
        """Returns the counts of these vehicles, or of all, sorted by name; see `counts.py`."""
        return vehicle_counts(self.database, names)

    def newest(self, limit: int = 50, filters: SampleFilter = ANY) -> list[StoredSample]:
        """Returns up to `limit` matching samples, the last stored first."""
        query = select(samples).order_by(samples.c.seq.desc()).limit(limit)
        for condition in conditions_of(filters):
            query = query.where(condition)
        with self.database.read() as connection:
            return [sample_of(row) for row in connection.execute(query)]

    def each(self, filters: SampleFilter = ANY) -> Iterator[StoredSample]:
        """Yields all matching samples, the first stored first; memory is one page of them."""
        query = select(samples).order_by(samples.c.seq).limit(_MANY)
        for condition in conditions_of(filters):
            query = query.where(condition)
        after = -1
        while True:
            with self.database.read() as connection:
                rows = [sample_of(row) for row in connection.execute(query.where(samples.c.seq > after))]
            yield from rows
            if len(rows) < _MANY:
                return
            after = rows[-1].seq

    def count(self, filters: SampleFilter = ANY) -> int:
        """Returns the number of matching samples."""
        query = select(func.count()).select_from(samples)
        for condition in conditions_of(filters):
            query = query.where(condition)
        with self.database.read() as connection:
            return int(connection.scalar(query) or 0)

    def among(self, ids: Sequence[str]) -> list[StoredSample]:
        """Returns the samples with these ids, sorted by id; reads only their rows."""
        ordered = sorted(set(ids))
        query = select(samples).where(samples.c.id.in_(self.database.among(samples))).order_by(samples.c.id)
        with self.database.read() as connection:
            return [
                sample_of(row)
                for start in range(0, len(ordered), _MANY)
                for row in connection.execute(query, self.database.ids(ordered[start : start + _MANY]))
            ]

    def get(self, sample: str) -> StoredSample:
        """Returns a sample. Raises SampleGoneError if it is not stored."""
        row = None
        if _NUL not in sample:
            with self.database.read() as connection:
                row = connection.execute(select(samples).where(samples.c.id == sample)).one_or_none()
        if row is None:
            raise SampleGoneError(f"sample {sample[:64]}: not in this store")
        return sample_of(row)

    def read_blob(self, sample: str) -> bytes:
        """Returns a sample's bytes, exactly as the vehicle wrote them. Raises SampleGoneError."""
        return self.blobs.get(sample)

    def distinct(self) -> dict[str, list[str]]:
        """Returns the existing vehicles, triggers and bundles for filters, the first 500 of each, sorted."""
        names = {"vehicle": samples.c.vehicle, "trigger": samples.c.trigger, "bundle": samples.c.bundle}
        with self.database.read() as connection:
            return {
                name: [
                    value
                    for value in connection.scalars(select(column).distinct().order_by(column).limit(_MANY))
                    if isinstance(value, str)
                ]
                for name, column in names.items()
            }

    def usage_since(self, stored_from: float) -> dict[str, tuple[int, int]]:
        """Returns the usage by vehicle: (samples outside the random stream, bytes of all samples).

        Args:
            stored_from: counts samples stored since then, seconds since 1970.
        """
        chosen = case((samples.c.random, 0), else_=1)
        query = (
            select(samples.c.vehicle, func.sum(chosen), func.sum(samples.c.size))
            .where(samples.c.stored_at >= stored_from)
            .group_by(samples.c.vehicle)
        )
        with self.database.read() as connection:
            return {name: (int(count), int(total or 0)) for name, count, total in connection.execute(query)}

    def embeddings_after(self, seq: int, *, limit: int) -> list[tuple[int, str, str, NDArray[np.float32]]]:
        """Returns (seq, id, bundle, [D] float32) of the newest `limit` rows after `seq`, oldest first."""
        query = (
            select(samples.c.seq, samples.c.id, samples.c.bundle, samples.c.embedding)
            .where(samples.c.seq > seq, samples.c.embedding.is_not(None))
            .order_by(samples.c.seq.desc())
            .limit(limit)
        )
        with self.database.read() as connection:
            rows = list(connection.execute(query))
        return [(row.seq, row.id, row.bundle, vector(row.embedding)) for row in reversed(rows)]

    def totals(self, counted: tuple[int, int, int] | None = None) -> Totals:
        """Returns the totals of the store.

        Args:
            counted: samples, their bytes, and those of the random stream, if the caller knows them: else
                every row is read.
        """
        with self.database.read() as connection:
            count, size, drawn = (
                counted
                or connection.execute(
                    select(func.count(), func.sum(samples.c.size), func.sum(samples.c.random.cast(Integer)))
                ).one()
            )
            fleet, online = connection.execute(
                select(func.count(), func.sum(case((present(wall_time()), 1), else_=0))).select_from(vehicles)
            ).one()
            query = select(refusals.c.verdict, func.sum(refusals.c["count"])).group_by(refusals.c.verdict)
            refused = {row[0]: row[1] for row in connection.execute(query)}
            deleted = connection.scalar(select(func.count()).select_from(tombstones))
        return Totals(
            samples=int(count),
            bytes=whole(size),
            random=whole(drawn),
            vehicles=int(fleet),
            online=whole(online),
            declined=whole(refused.get("declined")),
            rejected=whole(refused.get("rejected")),
            deleted=whole(deleted),
        )


def conditions_of(filters: SampleFilter, *, up_to: float | None = None) -> list[ColumnElement[bool]]:
    """Returns the conditions on rows of `samples`; `up_to` ignores what people said later."""
    exact = {
        "vehicle": filters.vehicle,
        "trigger": filters.trigger,
        "bundle": filters.bundle,
        "random": filters.random,
    }
    conditions: list[ColumnElement[bool]] = [
        false() if _NUL in str(value) else samples.c[name] == value
        for name, value in exact.items()
        if value is not None
    ]
    if filters.captured_from is not None:
        conditions.append(samples.c.captured_at >= filters.captured_from)
    if filters.captured_to is not None:
        conditions.append(samples.c.captured_at < filters.captured_to)
    if filters.min_percentile is not None:
        conditions.append(samples.c.percentile >= filters.min_percentile)
    if filters.ids is not None:
        conditions.append(samples.c.id.in_(filters.ids))
    if filters.before_seq is not None:
        conditions.append(samples.c.seq < filters.before_seq)
    return conditions + _label_conditions(filters, up_to)


def _label_conditions(filters: SampleFilter, up_to: float | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if filters.labelled is not None:
        labelled = is_labelled(up_to=up_to)
        conditions.append(labelled if filters.labelled else ~labelled)
    for name, condition in (
        (filters.label_class, names_class(filters.label_class or "", up_to=up_to)),
        (filters.verdict, has_verdict(filters.verdict or "", up_to=up_to)),
        (filters.snapshot, is_in_snapshot(filters.snapshot or "")),
        (filters.selection, is_in_selection(filters.selection or "")),
    ):
        if name is not None:
            conditions.append(false() if _NUL in name else condition)
    if filters.pinned is not None:
        pinned = is_pinned()
        conditions.append(pinned if filters.pinned else ~pinned)
    return conditions


def vector(raw: bytes) -> NDArray[np.float32]:
    """Returns the embedding, [D] float32, of a row of `samples`."""
    return np.frombuffer(raw, "<f2").astype(np.float32)
