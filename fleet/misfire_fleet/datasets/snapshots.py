"""Makes snapshots of labelled samples, and reads, compares, verifies and rebuilds them.

    filter --pages of the database--> members: sample, label record, group, side --> manifest, its hash
    name --read--> the manifest whose bytes have the recorded hash, or StoreError

A snapshot holds labels that were recorded up to a time, and that time is in its manifest. So the same query
gives the same bytes later, unless samples were deleted: deleting for privacy comes before repeating.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, or_, select, true

from misfire_fleet.datasets.freezing import Frozen, frozen_tests, trained_on
from misfire_fleet.datasets.manifest import (
    Manifest,
    Member,
    Provenance,
    Query,
    SnapshotRef,
    digest,
    parse_manifest,
)
from misfire_fleet.datasets.splits import SIDES, GroupBy, Shares, Side, keys_of, side_of
from misfire_fleet.errors import StoreError
from misfire_fleet.store import Store
from misfire_fleet.store.curated import snapshots as rows
from misfire_fleet.store.database import HEAD, one_of
from misfire_fleet.store.labels import labelled_pages, last_moment, newest_label
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.store.schema import label_names, labels, samples, snapshot_samples, snapshots
from misfire_fleet.store.store import conditions_of
from misfire_fleet.store.where import parse_where, where_of
from misfire_runtime import __version__
from misfire_runtime.clock import utc_text, wall_time
from misfire_runtime.errors import ConfigError

RESERVED = ("create", "diff", "rebuild", "show", "verify")
"""Names of subcommands, which no snapshot can have."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_PAGE = 500
_MEMBER = (
    *(samples.c.id, samples.c.vehicle, samples.c.captured_at, samples.c.offer),
    *(labels.c.seq, labels.c.source, labels.c.annotator, labels.c.version, labels.c.kind),
    labels.c.content_hash,
)


@dataclass(frozen=True)
class Plan:
    """Holds how a snapshot is divided.

    Attributes:
        group_by: what stays together on one side.
        seed: of the division.
        shares: of holdout and test.
        test_from: name of a snapshot whose test set this one gets too, instead of a share of its own.
        frozen: nothing may ever train on this snapshot's test set.
        kind: takes only labels of this kind; empty: all labels must have the same one.
    """

    group_by: GroupBy = "drive"
    seed: int = 0
    shares: Shares = field(default_factory=Shares)
    test_from: str | None = None
    frozen: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Made:
    """Holds a new snapshot. `warnings`: sentences about sides that are empty, or were trained on before."""

    manifest: Manifest
    sha256: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """Tells what became of a snapshot.

    Attributes:
        name, sha256: of the snapshot.
        samples: their number.
        deleted: ids of samples that were deleted since.
        lost_labels: ids of samples whose label record is not what the manifest says.
        altered: why the manifest is not what it was; empty if it is.
        damaged: with `deep`, ids of samples whose bytes are lost or changed.
    """

    name: str
    sha256: str
    samples: int = 0
    deleted: tuple[str, ...] = ()
    lost_labels: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    altered: str = ""

    @property
    def intact(self) -> bool:
        """Returns True if all is as it was, except for samples that were deleted for good."""
        return not (self.altered or self.lost_labels or self.damaged)


@dataclass(frozen=True)
class Difference:
    """Holds the samples in which two snapshots differ, by id, sorted."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()
    moved: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Side before and after."""


@dataclass(frozen=True)
class Rebuilt:
    """Tells whether a snapshot's bytes came out the same. `deleted`: ids of its samples deleted since."""

    name: str
    identical: bool
    sha256: str
    expected: str
    deleted: tuple[str, ...] = ()


class Snapshots:
    """Makes and reads the snapshots of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, name: str, filters: SampleFilter, *, plan: Plan = Plan(), actor: str = "") -> Made:
        """Makes a snapshot of the labelled samples that match.

        Args:
            name: 1 to 40 letters, digits, `.`, `_` and `-`; it is never used again.
            filters: select samples.
            plan: how they are divided.
            actor: who makes it, for the manifest and the audit log.

        Raises:
            ConfigError: the name is taken or none, or the plan contradicts itself.
            StoreError: no sample matches, labels have several kinds, or a test set was frozen meanwhile.
        """
        self._require_name(name)
        query = self._query(filters, plan)
        created = wall_time()
        provenance = Provenance(
            created=utc_text(created), actor=actor[:64], misfire=__version__, schema_version=HEAD
        )
        manifest = self._build(name, query, provenance, frozen=plan.frozen)
        counts = manifest.counts()
        if not manifest.members:
            raise StoreError("no labelled sample matches: is anything labelled, and is --where right?")
        if plan.frozen and not counts["test"]:
            raise StoreError(
                "the test set to be frozen is empty: give a share with --test, or another --seed"
            )
        data = manifest.to_bytes()
        sha256 = digest(data)
        row = rows.SnapshotRow(
            name=name,
            sha256=sha256,
            created_at=created,
            actor=actor[:64],
            kind=manifest.kind,
            count=len(manifest.members),
            frozen=plan.frozen,
            header=manifest.header(),
        )
        self._commit(row, manifest, data)
        return Made(manifest, sha256, self._warnings(manifest, plan))

    def _commit(self, row: rows.SnapshotRow, manifest: Manifest, data: bytes) -> None:
        with self._store.deletion.groups.alone() as connection:
            if connection.scalar(select(snapshots.c.name).where(snapshots.c.name == row.name)) is not None:
                raise ConfigError(f"snapshot {row.name!r} exists already; a snapshot is never replaced")
            if frozen_tests(connection) != manifest.query.frozen_tests:
                raise StoreError("a test set was frozen while this snapshot was made; make it again")
            # The manifest first: a visible row has its manifest.
            rows.keep(self._store.blobs, row.name, row.sha256, data)
            members = (rows.MemberRow(m.id, m.side, m.group, m.label) for m in manifest.members)
            rows.insert(connection, row, members)
            detail: dict[str, object] = {
                "name": row.name,
                "sha256": row.sha256,
                "kind": row.kind,
                "samples": row.count,
                "frozen": row.frozen,
            }
            self._store.deletion.log(connection, row.actor, "snapshot", detail, at=row.created_at)

    def listed(self) -> list[rows.SnapshotRow]:
        """Returns all snapshots, oldest first."""
        return rows.listed(self._store.database)

    def read(self, name: str) -> tuple[Manifest, str]:
        """Returns a manifest and its hash. Raises StoreError if there is none, or it was altered."""
        row = rows.found(self._store.database, name)
        data = rows.manifest_bytes(self._store.blobs, row)
        return parse_manifest(data, where=f"snapshot {name}"), row.sha256

    def verify(self, name: str, *, deep: bool = False) -> Verified:
        """Compares a snapshot with the store. `deep` reads and hashes the bytes of every sample.

        Raises:
            StoreError: there is no snapshot of that name.
        """
        row = rows.found(self._store.database, name)
        try:
            manifest, _ = self.read(name)
        except StoreError as error:
            return Verified(name, row.sha256, row.count, altered=str(error))
        deleted: list[str] = []
        lost: list[str] = []
        damaged: list[str] = []
        for start in range(0, len(manifest.members), _PAGE):
            some = manifest.members[start : start + _PAGE]
            known = self._store.known([member.id for member in some])
            kept = [member for member in some if member.id in known]
            deleted += [member.id for member in some if member.id not in known]
            lost += self._without_label(kept)
            damaged += [member.id for member in kept if deep and not _whole(self._store, member.id)]
        return Verified(
            name,
            row.sha256,
            len(manifest.members),
            deleted=tuple(deleted),
            lost_labels=tuple(lost),
            damaged=tuple(damaged),
            altered=self._altered_rows(row, manifest),
        )

    def rebuild(self, name: str) -> Rebuilt:
        """Makes a snapshot's bytes again from its own query and the labels of its time.

        If they are identical, they replace a manifest that is lost or altered. A manifest that is lost
        cannot say what its query was; the header in the database does.

        Raises:
            StoreError: there is no snapshot of that name, or its query cannot be read.
        """
        row = rows.found(self._store.database, name)
        try:
            header = row.header
            query = Query.model_validate(header["query"])
            provenance = Provenance.model_validate(header["provenance"])
        except (KeyError, ValueError) as error:
            raise StoreError(f"snapshot {name}: the database has no readable query of it") from error
        manifest = self._build(name, query, provenance, frozen=row.frozen)
        data = manifest.to_bytes()
        made = digest(data)
        if made == row.sha256:
            rows.keep(self._store.blobs, name, made, data)
            return Rebuilt(name, True, made, row.sha256)
        return Rebuilt(name, False, made, row.sha256, self._deleted(name))

    def diff(self, before: str, after: str) -> Difference:
        """Returns what differs between two snapshots. Raises StoreError if one cannot be read."""
        old = {member.id: member for member in self.read(before)[0].members}
        new = {member.id: member for member in self.read(after)[0].members}
        both = sorted(old.keys() & new.keys())
        return Difference(
            added=tuple(sorted(new.keys() - old.keys())),
            removed=tuple(sorted(old.keys() - new.keys())),
            relabelled=tuple(key for key in both if old[key].label != new[key].label),
            moved={key: (old[key].side, new[key].side) for key in both if old[key].side != new[key].side},
        )

    def _require_name(self, name: str) -> None:
        if _NAME.fullmatch(name) is None or name in RESERVED:
            raise ConfigError(
                f"snapshot {name[:64]!r}: a name has 1 to 40 letters, digits, '.', '_' and '-', begins with "
                f"a letter or digit, and is none of {', '.join(RESERVED)}"
            )
        if any(row.name == name for row in self.listed()):
            raise ConfigError(f"snapshot {name!r} exists already; a snapshot is never replaced")

    def _query(self, filters: SampleFilter, plan: Plan) -> Query:
        if filters.labelled is False:
            raise ConfigError("a snapshot has labelled samples only; leave labelled=no out")
        if plan.test_from is not None and plan.shares.test:
            raise ConfigError("--test-from takes the whole test set; leave --test out")
        test_from = None
        if plan.test_from is not None:
            source = rows.found(self._store.database, plan.test_from)
            test_from = SnapshotRef(name=source.name, sha256=source.sha256)
        with self._store.database.read() as connection:
            last = last_moment(connection)
            frozen = frozen_tests(connection)
        return Query(
            where=tuple(where_of(filters)),
            kind=plan.kind,
            labels_up_to=last,
            group_by=plan.group_by,
            seed=plan.seed,
            holdout=plan.shares.holdout,
            test=plan.shares.test,
            test_from=test_from,
            frozen_tests=frozen,
        )

    def _build(self, name: str, query: Query, provenance: Provenance, *, frozen: bool) -> Manifest:
        """Returns the manifest that a query gives: the same one whenever it is asked for."""
        builder = _Builder(query, Frozen.load(self._store.database, query))
        statement = _statement(query)
        for ids in labelled_pages(self._store.database, page=_PAGE):
            with self._store.database.read() as connection:
                page = statement.where(one_of(samples.c.id, ids, on=connection))
                builder.take(connection, connection.execute(page).all())
        return builder.manifest(name, provenance, frozen=frozen)

    def _without_label(self, members: Sequence[Member]) -> list[str]:
        query = select(
            *(labels.c.sample, labels.c.source, labels.c.annotator, labels.c.version, labels.c.content_hash)
        )
        with self._store.database.read() as connection:
            asked = query.where(one_of(labels.c.sample, [member.id for member in members], on=connection))
            there = {tuple(row) for row in connection.execute(asked)}
        return [m.id for m in members if (m.id, m.source, m.annotator, m.version, m.label) not in there]

    def _altered_rows(self, row: rows.SnapshotRow, manifest: Manifest) -> str:
        """Returns a sentence if the database's rows of a snapshot are not those of its manifest."""
        query = select(snapshot_samples.c.side, func.count()).group_by(snapshot_samples.c.side)
        with self._store.database.read() as connection:
            found = connection.execute(query.where(snapshot_samples.c.snapshot == row.name))
            counts = {side: int(count) for side, count in found}
        expected = {side: count for side, count in manifest.counts().items() if count}
        if counts != expected or row.frozen != manifest.frozen:
            return f"snapshot {row.name}: the database's rows are not those of its manifest"
        return ""

    def _deleted(self, name: str) -> tuple[str, ...]:
        query = (
            select(snapshot_samples.c.sample)
            .outerjoin(samples, samples.c.id == snapshot_samples.c.sample)
            .where(snapshot_samples.c.snapshot == name, samples.c.id.is_(None))
            .order_by(snapshot_samples.c.sample)
        )
        with self._store.database.read() as connection:
            return tuple(connection.scalars(query))

    def _warnings(self, manifest: Manifest, plan: Plan) -> tuple[str, ...]:
        counts = manifest.counts()
        wanted = {"train": 1.0, "holdout": plan.shares.holdout, "test": plan.shares.test}
        found = [
            f"the {side} side is empty: {sum(manifest.groups().values())} groups are few; try another --seed "
            "or a smaller --group-by"
            for side in SIDES
            if wanted[side] and not counts[side]
        ]
        if plan.frozen:
            with self._store.database.read() as connection:
                before = trained_on(connection, manifest.name)
            found += [
                f"{count} samples of this test set are on the {side} side of snapshot {name}; nothing trains "
                "on that snapshot any more"
                for name, side, count in before
            ]
        return tuple(found)


class _Builder:
    """Collects the members of a manifest, page by page."""

    def __init__(self, query: Query, frozen: Frozen) -> None:
        self._query = query
        self._shares = Shares(query.holdout, query.test)
        self._frozen = frozen
        self._members: list[Member] = []
        self._kinds: Counter[str] = Counter()
        self._classes: dict[str, Counter[str]] = {side: Counter() for side in SIDES}
        self._left_out = 0
        self._needed: frozenset[GroupBy] = frozen.groupings | {query.group_by}

    def take(self, connection: Connection, page: Sequence[Row[Any]]) -> None:
        """Adds the samples of a page."""
        untouchable, tested = self._frozen.among(connection, [row.id for row in page])
        sides: dict[int, Side] = {}
        for row in page:
            keys = keys_of(row.vehicle, row.captured_at, row.offer, needed=self._needed)
            group = keys[self._query.group_by]
            frozen = row.id in untouchable or self._frozen.holds(keys)
            side = self._side(group, tested=row.id in tested, frozen=frozen)
            if side is None:
                self._left_out += 1
                continue
            sides[row.seq] = side
            self._kinds[row.kind] += 1
            self._members.append(
                Member(
                    id=row.id,
                    side=side,
                    group=group,
                    label=row.content_hash,
                    source=row.source,
                    annotator=row.annotator,
                    version=row.version,
                )
            )
        named = select(label_names).where(one_of(label_names.c.label, sides, on=connection))
        for label, name in connection.execute(named):
            self._classes[sides[label]][name] += 1

    def _side(self, group: str, *, tested: bool, frozen: bool) -> Side | None:
        """Returns the side of a sample; None leaves it out."""
        if self._query.test_from is not None:
            if tested:
                return "test"
            return None if frozen else side_of(group, seed=self._query.seed, shares=self._shares)
        return "test" if frozen else side_of(group, seed=self._query.seed, shares=self._shares)

    def manifest(self, name: str, provenance: Provenance, *, frozen: bool) -> Manifest:
        """Returns the manifest. Raises StoreError if labels have several kinds."""
        if len(self._kinds) > 1:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self._kinds.items()))
            raise StoreError(f"the labels have several kinds ({counts}); take one with --kind")
        return Manifest(
            name=name,
            query=self._query,
            provenance=provenance,
            frozen=frozen,
            kind=next(iter(self._kinds), self._query.kind),
            left_out=self._left_out,
            classes={side: dict(sorted(names.items())) for side, names in self._classes.items()},
            members=tuple(self._members),
        )


def _statement(query: Query) -> Select[Any]:
    up_to = query.labels_up_to
    matches = and_(true(), *conditions_of(parse_where(query.where), up_to=up_to))
    if query.test_from is not None:
        tested = select(snapshot_samples.c.sample).where(
            snapshot_samples.c.sample == samples.c.id,
            snapshot_samples.c.snapshot == query.test_from.name,
            snapshot_samples.c.side == "test",
        )
        matches = or_(matches, tested.correlate(samples).exists())
    statement = (
        select(*_MEMBER)
        .join(labels, labels.c.sample == samples.c.id)
        .where(labels.c.seq == newest_label(up_to=up_to), matches)
    )
    if query.kind:
        statement = statement.where(labels.c.kind == query.kind)
    return statement.order_by(samples.c.id)


def _whole(store: Store, sample: str) -> bool:
    try:
        return digest(store.read_blob(sample)) == sample
    except StoreError:
        return False


def pages(manifest: Manifest, side: Side) -> Iterator[Sequence[Member]]:
    """Yields the samples of a side in groups, in the order of their ids."""
    members = [member for member in manifest.members if member.side == side]
    for start in range(0, len(members), _PAGE):
        yield members[start : start + _PAGE]
