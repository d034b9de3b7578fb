"""Keeps test sets untouched: what is in a frozen test set is never trained on, nor is its group.

A sample is frozen if a frozen snapshot has it on its test side, or if its vehicle, drive or day is a group of
such a side. Samples are known by their ids, and an id is the hash of the bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from misfire_fleet.datasets.manifest import Query, SnapshotRef
from misfire_fleet.datasets.splits import GROUPINGS, GroupBy, keys_of
from misfire_fleet.store import Store
from misfire_fleet.store.database import Database, one_of
from misfire_fleet.store.schema import frozen_groups, samples, snapshot_samples, snapshots

_PAGE = 500


def frozen_tests(connection: Connection) -> tuple[SnapshotRef, ...]:
    """Returns the snapshots with a frozen test set, by name."""
    query = select(snapshots.c.name, snapshots.c.sha256).where(snapshots.c.frozen)
    found = [SnapshotRef(name=name, sha256=sha256) for name, sha256 in connection.execute(query)]
    # Not by the database: its order of letters depends on its locale.
    return tuple(sorted(found, key=lambda each: each.name))


@dataclass(frozen=True)
class Frozen:
    """Holds the frozen test sets of a query: their snapshots, and their groups.

    `test_from`: name of the snapshot whose test set is taken over; None: no test set is.
    """

    tests: tuple[str, ...]
    groups: frozenset[str]
    test_from: str | None

    @property
    def groupings(self) -> frozenset[GroupBy]:
        """Returns the ways of grouping of the frozen groups."""
        return frozenset(each for each in GROUPINGS if any(g.startswith(f"{each}:") for g in self.groups))

    @classmethod
    def load(cls, database: Database, query: Query) -> Frozen:
        """Reads the groups of the frozen test sets that a query names."""
        tests = tuple(each.name for each in query.frozen_tests)
        named = select(frozen_groups.c.group).where(frozen_groups.c.snapshot.in_(tests)).distinct()
        with database.read() as connection:
            groups = frozenset(connection.scalars(named))
        return cls(tests, groups, None if query.test_from is None else query.test_from.name)

    def among(self, connection: Connection, ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """Returns the ids that are frozen, and those in the test set that is taken over."""
        query = select(snapshot_samples.c.sample).where(
            one_of(snapshot_samples.c.sample, ids, on=connection), snapshot_samples.c.side == "test"
        )
        own: set[str] = set()
        if self.test_from is not None:
            own = set(connection.scalars(query.where(snapshot_samples.c.snapshot == self.test_from)))
        if not self.tests:
            return own, own
        return own | set(connection.scalars(query.where(snapshot_samples.c.snapshot.in_(self.tests)))), own

    def holds(self, keys: Mapping[GroupBy, str]) -> bool:
        """Returns True if one of a sample's groups is frozen."""
        return not self.groups.isdisjoint(keys.values())


def frozen_among(store: Store, ids: Collection[str]) -> dict[str, str]:
    """Returns the samples that must not be trained on: the name of a frozen snapshot by sample id."""
    found: dict[str, str] = {}
    ordered = sorted(set(ids))
    with store.database.read() as connection:
        query = select(frozen_groups.c.group, frozen_groups.c.snapshot)
        groups = {row[0]: row[1] for row in connection.execute(query)}
        for start in range(0, len(ordered), _PAGE):
            some = ordered[start : start + _PAGE]
            found |= _by_group(connection, some, groups) if groups else {}
            tested = (
                select(snapshot_samples.c.sample, snapshot_samples.c.snapshot)
                .join(snapshots, snapshots.c.name == snapshot_samples.c.snapshot)
                .where(
                    snapshots.c.frozen,
                    snapshot_samples.c.side == "test",
                    one_of(snapshot_samples.c.sample, some, on=connection),
                )
            )
            found |= {row[0]: row[1] for row in connection.execute(tested)}
    return found


def _by_group(connection: Connection, ids: Sequence[str], groups: Mapping[str, str]) -> dict[str, str]:
    columns = (samples.c.id, samples.c.vehicle, samples.c.captured_at, samples.c.offer)
    found = {}
    for row in connection.execute(select(*columns).where(one_of(samples.c.id, ids, on=connection))):
        for key in keys_of(row.vehicle, row.captured_at, row.offer).values():
            if key in groups:
                found[row.id] = groups[key]
    return found


def trained_on(connection: Connection, name: str) -> list[tuple[str, str, int]]:
    """Returns (snapshot, side, samples) of other snapshots that train on samples of this one's test side."""
    own = snapshot_samples.alias()
    query = (
        select(snapshot_samples.c.snapshot, snapshot_samples.c.side, func.count())
        .join(own, own.c.sample == snapshot_samples.c.sample)
        .where(
            own.c.snapshot == name,
            own.c.side == "test",
            snapshot_samples.c.snapshot != name,
            snapshot_samples.c.side != "test",
        )
        .group_by(snapshot_samples.c.snapshot, snapshot_samples.c.side)
    )
    return sorted((other, side, int(count)) for other, side, count in connection.execute(query))
