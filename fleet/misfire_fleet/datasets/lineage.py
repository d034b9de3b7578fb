"""Follows what came of a sample, a snapshot, a run, a bundle or a vehicle, and where it came from.

    sample --labels--> snapshot --trained on--> run --exported--> bundle --runs on--> vehicle

`down` follows the arrows and `up` goes against them. A run is `down` of the samples that it was trained on
and of those held out for its score, not of those in the test set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, func, or_, select

from misfire_fleet.errors import StoreError
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.store import Store
from misfire_fleet.store.curated.lineage import Link, links
from misfire_fleet.store.schema import lineage, samples, snapshot_samples, snapshots, tombstones, vehicles
from misfire_runtime.clock import utc_text
from misfire_runtime.errors import ConfigError

Kind = Literal["sample", "label", "snapshot", "run", "bundle", "vehicle"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LIMIT = 20
_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_BUNDLE_IN = re.compile(r'"bundle":"([^"\\]{1,130})"')
_MOST = 1000
"""Runs, bundles and snapshots of one answer: a chain of retraining every hour for a month."""


@dataclass(frozen=True)
class Node:
    """Names one thing of a chain. `detail`: what is known of it, in values that JSON has."""

    kind: Kind
    id: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """Holds where a thing came from (`up`) and what came of it (`down`), the nearest first.

    `totals`: number of samples and vehicles `up` and `down`, of which only the first are listed.
    """

    start: Node
    up: tuple[Node, ...]
    down: tuple[Node, ...]
    totals: dict[str, int]


def trace(store: Store, name: str, *, kind: Kind | None = None, limit: int = LIMIT) -> Trace:
    """Returns the chain of a thing in both directions.

    Args:
        store: the fleet's store.
        name: id of a sample (or 8 digits of it and more), name or hash of a snapshot, id of a run,
            NAME@VERSION of a bundle, or name of a vehicle.
        kind: needed if several things have that name.
        limit: lists so many samples and vehicles.

    Raises:
        StoreError: nothing has that name.
        ConfigError: several things have it, and `kind` is None.
    """
    if "\0" in name:
        raise StoreError(f"{name[:64]!r}: nothing in this store has that id or name")
    found = [node for node in _named(store, name) if kind in (None, node.kind)]
    if not found:
        raise StoreError(f"{name[:64]!r}: nothing in this store has that id or name")
    if len(found) > 1:
        several = ", ".join(f"{node.kind} {node.id[:16]}" for node in found)
        raise ConfigError(f"{name[:64]!r} is {several}; say which with --kind, or more of its id")
    walk = _Walk(store, limit)
    up, down = tuple(walk.up(found[0])), tuple(walk.down(found[0]))
    return Trace(found[0], up, down, walk.totals)


class _Walk:
    """Walks the graph; each node is listed once for each direction."""

    def __init__(self, store: Store, limit: int) -> None:
        self._store = store
        self._database = store.database
        self._limit = limit
        self.totals: dict[str, int] = {}

    def up(self, start: Node) -> Iterator[Node]:
        """Yields where a thing came from."""
        yield from self._follow(start, self._parents)

    def down(self, start: Node) -> Iterator[Node]:
        """Yields what came of a thing."""
        yield from self._follow(start, self._children)

    def _follow(self, start: Node, step: Any) -> Iterator[Node]:
        seen, queue = {(start.kind, start.id)}, [start]
        while queue and len(seen) < _MOST:
            for node in step(queue.pop(0), start):
                if (node.kind, node.id) not in seen:
                    seen.add((node.kind, node.id))
                    yield node
                    # A label is the end of its own way: it was listed with its sample.
                    if node.kind != "label":
                        queue.append(node)

    def _parents(self, node: Node, start: Node) -> Iterator[Node]:
        if node.kind == "sample" and node is start:
            yield from self._origin(node.id)
        elif node.kind == "snapshot":
            yield from self._sources(node)
        elif node.kind in ("run", "bundle"):
            for link in links(self._database, child=node.id):
                if link.child_kind == node.kind:
                    yield _of(link.parent_kind, link.parent, link)
        elif node.kind == "vehicle" and node is start:
            bundle = self._bundle_of(node.id)
            if bundle:
                yield Node("bundle", bundle)

    def _children(self, node: Node, start: Node) -> Iterator[Node]:
        if node.kind == "sample":
            yield from self._labels(node.id)
            yield from self._snapshots_of(node.id)
            yield from self._runs_of(node.id)
        elif node.kind in ("snapshot", "run"):
            # From a sample, only the runs that used it count, and those are listed already.
            if node.kind == "run" or start.kind != "sample":
                for link in links(self._database, parent=node.id):
                    if link.parent_kind == node.kind:
                        yield _of(link.child_kind, link.child, link)
        elif node.kind == "bundle":
            yield from self._running(node.id)
        elif node.kind == "vehicle" and node is start:
            yield from self._samples("down", samples.c.vehicle == node.id)

    def _origin(self, sample: str) -> Iterator[Node]:
        """Yields the vehicle that uploaded a sample, and the bundle that scored it."""
        with self._database.read() as connection:
            query = select(samples.c.vehicle, samples.c.bundle).where(samples.c.id == sample)
            row = connection.execute(query).one_or_none()
        if row is not None:
            yield Node("vehicle", row.vehicle)
            yield Node("bundle", row.bundle, {"scored": sample})

    def _labels(self, sample: str) -> Iterator[Node]:
        for record in LabelLedger(self._store).history(sample, limit=self._limit):
            who = {"source": record.source, "annotator": record.annotator, "version": record.version}
            yield Node("label", record.content_hash, {**who, "at": record.at.isoformat()})

    def _snapshots_of(self, sample: str) -> Iterator[Node]:
        query = (
            select(snapshots.c.name, snapshots.c.sha256, snapshot_samples.c.side, snapshot_samples.c.label)
            .join(snapshot_samples, snapshot_samples.c.snapshot == snapshots.c.name)
            .where(snapshot_samples.c.sample == sample)
            .order_by(snapshots.c.created_at, snapshots.c.name)
            .limit(_MOST)
        )
        with self._database.read() as connection:
            for row in connection.execute(query).all():
                detail = {"sha256": row.sha256, "side": row.side, "label": row.label}
                yield Node("snapshot", row.name, detail)

    def _runs_of(self, sample: str) -> Iterator[Node]:
        """Yields the runs that a sample was trained on by, or whose score was fitted on it."""
        query = (
            select(lineage.c.child, snapshot_samples.c.side, lineage.c.parent)
            .join(snapshot_samples, snapshot_samples.c.snapshot == lineage.c.parent)
            .where(
                snapshot_samples.c.sample == sample,
                snapshot_samples.c.side != "test",
                lineage.c.parent_kind == "snapshot",
            )
            .order_by(lineage.c.at, lineage.c.child)
            .limit(_MOST)
        )
        with self._database.read() as connection:
            for row in connection.execute(query).all():
                yield Node("run", row.child, {"snapshot": row.parent, "side": row.side})

    def _sources(self, node: Node) -> Iterator[Node]:
        """Yields the snapshot whose test set a snapshot took over, and its first samples."""
        name = node.id
        with self._database.read() as connection:
            total = connection.scalar(
                select(func.count()).select_from(snapshot_samples).where(snapshot_samples.c.snapshot == name)
            )
            query = (
                select(snapshot_samples)
                .where(snapshot_samples.c.snapshot == name)
                .order_by(snapshot_samples.c.sample)
                .limit(self._limit)
            )
            rows = connection.execute(query).all()
        self.totals["samples_up"] = self.totals.get("samples_up", 0) + int(total or 0)
        for row in rows:
            yield Node("sample", row.sample, {"side": row.side, "label": row.label, "snapshot": name})

    def _samples(self, way: str, which: ColumnElement[bool]) -> Iterator[Node]:
        with self._database.read() as connection:
            total = connection.scalar(select(func.count()).select_from(samples).where(which))
            query = select(samples.c.id, samples.c.bundle).where(which).order_by(samples.c.seq.desc())
            rows = connection.execute(query.limit(self._limit)).all()
        self.totals[f"samples_{way}"] = self.totals.get(f"samples_{way}", 0) + int(total or 0)
        for row in rows:
            yield Node("sample", row.id, {"bundle": row.bundle})

    def _running(self, bundle: str) -> Iterator[Node]:
        """Yields the vehicles whose last heartbeat or, without one, last state names a bundle."""
        said = f'"bundle":"{bundle}"'
        query: Select[Any] = select(vehicles.c.name, vehicles.c.state, vehicles.c.telemetry).where(
            or_(
                vehicles.c.telemetry.contains(said, autoescape=True),
                vehicles.c.state.contains(said, autoescape=True),
            )
        )
        count = 0
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(vehicles.c.name)).all()
        for row in rows:
            if _bundle_in(row.telemetry, row.state) == bundle:
                count += 1
                if count <= self._limit:
                    yield Node("vehicle", row.name)
        self.totals["vehicles_down"] = self.totals.get("vehicles_down", 0) + count

    def _bundle_of(self, vehicle: str) -> str:
        with self._database.read() as connection:
            query = select(vehicles.c.telemetry, vehicles.c.state).where(vehicles.c.name == vehicle)
            row = connection.execute(query).one_or_none()
        return "" if row is None else _bundle_in(row.telemetry, row.state)


def _named(store: Store, name: str) -> Iterator[Node]:
    """Yields everything that has this id or name."""
    with store.database.read() as connection:
        if _PREFIX.fullmatch(name):
            # From the prefix on, and before everything that is greater: both databases use the index.
            last = name + "g"
            for table in (samples, tombstones):
                query = select(table.c.id).where(table.c.id >= name, table.c.id < last).limit(2)
                for key in connection.scalars(query):
                    yield Node("sample", key, {"deleted": True} if table is tombstones else {})
        of_snapshot = or_(snapshots.c.name == name, snapshots.c.sha256 == name)
        for row in connection.execute(select(snapshots).where(of_snapshot)).all():
            yield Node(
                "snapshot", row.name, {"sha256": row.sha256, "frozen": row.frozen, "samples": row.count}
            )
        for kind in ("run", "bundle"):
            known = or_(
                (lineage.c.child_kind == kind) & (lineage.c.child == name),
                (lineage.c.parent_kind == kind) & (lineage.c.parent == name),
            )
            there = connection.scalar(select(lineage.c.child).where(known).limit(1)) is not None
            if kind == "bundle" and not there:
                of_bundle = select(samples.c.id).where(samples.c.bundle == name).limit(1)
                there = connection.scalar(of_bundle) is not None
            if there:
                yield Node("run" if kind == "run" else "bundle", name)
        vehicle = select(vehicles.c.name).where(vehicles.c.name == name)
        sender = select(samples.c.vehicle).where(samples.c.vehicle == name).limit(1)
        if connection.scalar(vehicle) is not None or connection.scalar(sender) is not None:
            yield Node("vehicle", name)


def _of(kind: Kind, name: str, link: Link) -> Node:
    detail = {key: value for key, value in (link.detail or {}).items() if value is not None}
    return Node(kind, name, {"at": utc_text(link.at), **detail})


def _bundle_in(telemetry: Any, state: Any) -> str:
    """Returns the bundle that a heartbeat names or, without one, that a state names; empty if none does."""
    for text in (telemetry, state):
        found = _BUNDLE_IN.search(text) if isinstance(text, str) else None
        if found is not None:
            return found[1]
    return ""
