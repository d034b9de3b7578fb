"""Keeps what the gate said of candidates, and which bundles are published: rows, and entries of the ledger.

    bundle's archive --keep--> bundles/HASH.tar, durable --then--> ledger, row of `published_bundles`

The archive is named by its own hash, so it never replaces another one. If the database is lost, both kinds
of rows are read from the ledger again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.store.blobs import Blobs, Document
from misfire_fleet.store.database import Database
from misfire_fleet.store.deletion import Deletions
from misfire_fleet.store.schema import gate_verdicts, published_bundles
from misfire_runtime.clock import wall_time

GATE, PUBLISH = "gate", "publish"
"""Actions of the audit log."""
_ACTOR = 64


@dataclass(frozen=True)
class VerdictRow:
    """What the gate said of a candidate. `summary`: the reasons and numbers, in values that JSON has."""

    candidate: str
    candidate_sha256: str
    incumbent: str
    incumbent_sha256: str
    snapshot: str
    snapshot_sha256: str
    passed: bool
    at: float = 0.0
    actor: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedRow:
    """A published bundle. `sha256` and `bytes`: of its archive; `reason`: why it was forced."""

    bundle: str
    sha256: str
    bytes: int
    at: float = 0.0
    actor: str = ""
    forced: bool = False
    reason: str = ""


def record_verdict(deletions: Deletions, row: VerdictRow) -> VerdictRow:
    """Records a verdict durably, with a line of the audit log, and returns it with its time.

    Raises:
        StoreUnavailableError: nothing was recorded.
    """
    made = VerdictRow(**{**vars(row), "at": wall_time(), "actor": row.actor[:_ACTOR]})
    detail = {name: value for name, value in vars(made).items() if name not in ("at", "actor")}
    with deletions.groups.alone() as connection:
        _insert_verdict(connection, vars(made))
        deletions.log(connection, made.actor, GATE, detail, at=made.at)
    return made


def verdicts(
    database: Database, *, candidate: str | None = None, sha256: str | None = None
) -> list[VerdictRow]:
    """Returns verdicts, newest first: of all candidates, or of the one with this name or this hash."""
    query = select(gate_verdicts).order_by(gate_verdicts.c.at.desc(), gate_verdicts.c.seq.desc())
    for column, value in ((gate_verdicts.c.candidate, candidate), (gate_verdicts.c.candidate_sha256, sha256)):
        if value is not None:
            query = query.where(column == value.replace("\0", ""))
    with database.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [
        VerdictRow(
            **{name: value for name, value in row.items() if name not in ("seq", "summary")},
            summary=json.loads(row["summary"]),
        )
        for row in rows
    ]


def document_of(sha256: str) -> str:
    """Returns the name of an archive beside the blobs."""
    return f"{sha256}.tar"


def publish(deletions: Deletions, blobs: Blobs, row: PublishedRow, archive: bytes) -> PublishedRow:
    """Keeps a bundle's archive and records it as published, with a line of the audit log.

    Publishing the same archive again changes nothing, except that it writes a lost archive again.

    Returns:
        The row as it is recorded, which is the older one if the bundle was published before.

    Raises:
        StoreError: another archive is published under this name and version.
        StoreUnavailableError: nothing was published.
    """
    with deletions.groups.alone() as connection:
        known = _published(connection, row.bundle)
        if known is not None and known.sha256 != row.sha256:
            raise StoreError(
                f"{row.bundle} is published already, with other content (sha256 {known.sha256[:16]}, not "
                f"{row.sha256[:16]}); a published version is never replaced: export it with a new --version"
            )
        # The archive first: a visible row has its archive.
        blobs.keep(Document("bundles", document_of(row.sha256), archive))
        if known is not None:
            return known
        made = PublishedRow(**{**vars(row), "at": wall_time(), "actor": row.actor[:_ACTOR]})
        connection.execute(published_bundles.insert(), vars(made))
        detail = {name: value for name, value in vars(made).items() if name not in ("at", "actor")}
        deletions.log(connection, made.actor, PUBLISH, detail, at=made.at)
        return made


def published(database: Database) -> list[PublishedRow]:
    """Returns all published bundles, newest first."""
    query = select(published_bundles).order_by(published_bundles.c.at.desc(), published_bundles.c.bundle)
    with database.read() as connection:
        return [PublishedRow(**row) for row in connection.execute(query).mappings()]


def found(database: Database, bundle: str) -> PublishedRow:
    """Returns a published bundle by NAME@VERSION. Raises StoreError if there is none."""
    with database.read() as connection:
        row = _published(connection, bundle.replace("\0", ""))
    if row is None:
        raise StoreError(f"bundle {bundle[:130]!r} is not published; misfire fleet candidates lists them")
    return row


def archive_bytes(blobs: Blobs, row: PublishedRow) -> bytes:
    """Returns the archive of a published bundle. Raises StoreError if it is lost or altered."""
    again = "publish the same bundle again"
    try:
        data = blobs.document("bundles", document_of(row.sha256))
    except SampleGoneError as error:
        raise StoreError(f"published bundle {row.bundle}: its archive is lost; {again}") from error
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise StoreError(f"published bundle {row.bundle}: its archive was altered; {again}")
    return data


def damaged(database: Database, blobs: Blobs) -> list[str]:
    """Returns a sentence for each published bundle whose archive is lost or altered."""
    problems = []
    for row in published(database):
        try:
            archive_bytes(blobs, row)
        except StoreError as error:
            problems.append(str(error))
    return problems


def missing(database: Database, entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the entries of the ledger about verdicts and publications that the database does not have."""
    known = {(GATE, row.candidate_sha256, row.at) for row in verdicts(database)}
    known |= {(PUBLISH, row.sha256, row.at) for row in published(database)}
    return [entry for entry in entries if (key := _key(entry)) is not None and key not in known]


def restore(database: Database, connection: Connection, entry: Mapping[str, Any]) -> None:
    """Inserts the row of a verdict or a publication from its entry in the ledger."""
    row = dict(entry["detail"]) | {"at": entry["at"], "actor": entry.get("actor", "")}
    if entry["action"] == GATE:
        _insert_verdict(connection, row)
    else:
        connection.execute(database.insert_statement(published_bundles).values(row).on_conflict_do_nothing())


def _insert_verdict(connection: Connection, row: Mapping[str, Any]) -> None:
    values = dict(row) | {"summary": json.dumps(row["summary"], sort_keys=True)}
    connection.execute(gate_verdicts.insert(), values)


def _published(connection: Connection, bundle: str) -> PublishedRow | None:
    query = select(published_bundles).where(published_bundles.c.bundle == bundle)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else PublishedRow(**row)


def _key(entry: Mapping[str, Any]) -> tuple[str, str, float] | None:
    if entry["action"] == GATE:
        return GATE, entry["detail"]["candidate_sha256"], entry["at"]
    if entry["action"] == PUBLISH:
        return PUBLISH, entry["detail"]["sha256"], entry["at"]
    return None
