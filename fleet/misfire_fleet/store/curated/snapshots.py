"""Keeps the rows of snapshots consistent with their manifests next to the blobs and with the ledger.

    manifest's bytes --keep--> snapshots/NAME.HASH.json, durable --then--> ledger, rows, committed

The name of the document has the start of its hash, so no snapshot ever replaces the file of another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select

from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.store.blobs import Blobs, Document
from misfire_fleet.store.database import Database
from misfire_fleet.store.schema import frozen_groups, samples, snapshot_samples, snapshots

_GROUP = 2000
"""Rows per statement."""


@dataclass(frozen=True)
class SnapshotRow:
    """A snapshot as the database knows it. `created_at`: seconds since 1970; `gone`: its deleted samples."""

    name: str
    sha256: str
    created_at: float
    actor: str
    kind: str
    count: int
    frozen: bool
    header: dict[str, Any]
    gone: int = 0


@dataclass(frozen=True)
class MemberRow:
    """A sample of a snapshot. `label`: hash of its label's content."""

    sample: str
    side: str
    group: str
    label: str


def document_of(name: str, sha256: str) -> str:
    """Returns the name of a snapshot's document."""
    return f"{name}.{sha256[:16]}.json"


def insert(connection: Connection, row: SnapshotRow, members: Iterable[MemberRow]) -> None:
    """Inserts the rows of a snapshot in the transaction of `connection`."""
    values = {name: value for name, value in vars(row).items() if name not in ("gone", "header")}
    header = json.dumps(row.header, sort_keys=True)
    connection.execute(snapshots.insert(), values | {"header": header})
    tested: set[str] = set()
    for group in _slices(members):
        rows = [
            {"snapshot": row.name, "sample": each.sample, "side": each.side, "label": each.label}
            for each in group
        ]
        connection.execute(snapshot_samples.insert(), rows)
        tested |= {each.group for each in group if each.side == "test"}
    if row.frozen and tested:
        named = [{"group": name, "snapshot": row.name} for name in sorted(tested)]
        connection.execute(frozen_groups.insert(), named)


def listed(database: Database) -> list[SnapshotRow]:
    """Returns all snapshots, oldest first, each with the number of its samples that were deleted."""
    lost = (
        select(snapshot_samples.c.snapshot, func.count().label("gone"))
        .outerjoin(samples, samples.c.id == snapshot_samples.c.sample)
        .where(samples.c.id.is_(None))
        .group_by(snapshot_samples.c.snapshot)
    )
    with database.read() as connection:
        gone = {name: int(count) for name, count in connection.execute(lost)}
        rows = connection.execute(select(snapshots).order_by(snapshots.c.created_at, snapshots.c.name))
        return [_row(row, gone.get(row["name"], 0)) for row in rows.mappings()]


def found(database: Database, name: str) -> SnapshotRow:
    """Returns a snapshot by its name, without `gone`. Raises StoreError if there is none."""
    with database.read() as connection:
        query = select(snapshots).where(snapshots.c.name == name.replace("\0", ""))
        row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise StoreError(
            f"snapshot {name[:64]!r}: there is none of that name; misfire fleet snapshots lists them"
        )
    return _row(row, 0)


def manifest_bytes(blobs: Blobs, row: SnapshotRow) -> bytes:
    """Returns the bytes of a snapshot's manifest. Raises StoreError if they are lost or altered."""
    again = f"misfire fleet snapshot rebuild {row.name} writes it again from the labels"
    try:
        data = blobs.document("snapshots", document_of(row.name, row.sha256))
    except SampleGoneError as error:
        raise StoreError(f"snapshot {row.name}: its manifest is lost; {again}") from error
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise StoreError(f"snapshot {row.name}: its manifest was altered (the hash is another); {again}")
    return data


def damaged(database: Database, blobs: Blobs) -> list[str]:
    """Returns a sentence for each snapshot whose manifest is lost or altered."""
    problems = []
    for row in listed(database):
        try:
            manifest_bytes(blobs, row)
        except StoreError as error:
            problems.append(str(error))
    return problems


def missing(database: Database, entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the entries of the ledger about snapshots that the database does not have."""
    with database.read() as connection:
        known = set(connection.scalars(select(snapshots.c.name)))
    return [
        entry for entry in entries if entry["action"] == "snapshot" and entry["detail"]["name"] not in known
    ]


def restore(connection: Connection, blobs: Blobs, entry: Mapping[str, Any]) -> bool:
    """Inserts the rows of a snapshot from its entry in the ledger and its manifest.

    Returns:
        False if its manifest is lost or altered, or the snapshot is there already: nothing is inserted.
    """
    detail = entry["detail"]
    there = select(snapshots.c.name).where(snapshots.c.name == detail["name"])
    if connection.scalar(there) is not None:
        return False
    row = SnapshotRow(
        name=detail["name"],
        sha256=detail["sha256"],
        created_at=entry["at"],
        actor=entry["actor"],
        kind=detail["kind"],
        count=detail["samples"],
        frozen=detail["frozen"],
        header={},
    )
    try:
        document = json.loads(manifest_bytes(blobs, row))
    except StoreError:
        return False
    members = (
        MemberRow(each["id"], each["side"], each["group"], each["label"]) for each in document["members"]
    )
    values = vars(row) | {"header": document["snapshot"]}
    insert(connection, SnapshotRow(**values), members)
    return True


def keep(blobs: Blobs, name: str, sha256: str, data: bytes) -> None:
    """Writes a manifest durably."""
    blobs.keep(Document("snapshots", document_of(name, sha256), data))


def _row(row: RowMapping, gone: int) -> SnapshotRow:
    try:
        header = json.loads(row["header"])
    except ValueError:
        header = {}
    return SnapshotRow(**{**row, "header": header, "gone": gone})


def _slices(members: Iterable[MemberRow]) -> Iterator[Sequence[MemberRow]]:
    group: list[MemberRow] = []
    for member in members:
        group.append(member)
        if len(group) == _GROUP:
            yield group
            group = []
    if group:
        yield group
