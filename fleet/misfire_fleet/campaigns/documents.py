"""Keeps each vehicle's desired configuration as published, and what the vehicle answered to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update

from misfire_fleet.campaigns.merging import Merged
from misfire_fleet.store import Store
from misfire_fleet.store.schema import campaign_refusals, desired_documents
from misfire_runtime.clock import wall_time
from misfire_runtime.messages import Desired, Reported, encode

_NAMED = re.compile(r"campaign\.([A-Za-z0-9_-]{1,40})")


@dataclass(frozen=True)
class DocumentRow:
    """Holds a vehicle's desired configuration and its answer. Times are seconds since 1970.

    Attributes:
        vehicle: its name.
        version: of the configuration.
        document: the message as JSON.
        campaigns: that are in it.
        left_out: why a campaign that means the vehicle is not in it, or gets no frames of its own.
        published_at: None until the broker has acknowledged it.
        reported_version, reported_at, accepted, reason: the answer; None and "" without one.
        bundle: that the vehicle reported.
    """

    vehicle: str
    version: int
    document: str
    campaigns: tuple[str, ...]
    left_out: dict[str, str]
    published_at: float | None
    reported_version: int | None
    reported_at: float | None
    accepted: bool | None
    bundle: str
    reason: str

    @property
    def state(self) -> str:
        """Returns waiting, delivered, accepted or refused."""
        if self.published_at is None:
            return "waiting"
        if self.reported_version != self.version or self.accepted is None:
            return "delivered"
        return "accepted" if self.accepted else "refused"

    @property
    def config(self) -> dict[str, Any]:
        """Returns the configuration in it."""
        found = json.loads(self.document).get("config", {})
        return found if isinstance(found, dict) else {}


class Documents:
    """Reads and writes the rows. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._database = store.database

    def all(self, *, campaign: str | None = None) -> dict[str, DocumentRow]:
        """Returns the rows by vehicle; of a campaign: those that have it, or leave it out."""
        query = select(desired_documents).order_by(desired_documents.c.vehicle)
        if campaign is not None:
            quoted = f'%"{campaign}"%'
            columns = desired_documents.c
            query = query.where(columns.campaigns.like(quoted) | columns.left_out.like(quoted))
        with self._database.read() as connection:
            rows = [_row(row) for row in connection.execute(query)]
        found = {row.vehicle: row for row in rows}
        if campaign is None:
            return found
        # LIKE takes _ for any character.
        return {k: r for k, r in found.items() if campaign in r.campaigns or campaign in r.left_out}

    def of(self, vehicle: str) -> DocumentRow | None:
        """Returns a vehicle's row; None if it never had a campaign."""
        query = select(desired_documents).where(desired_documents.c.vehicle == vehicle)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _row(row)

    def wanted(self, vehicle: str, desired: Desired, merged: Merged) -> None:
        """Notes a configuration before it is published."""
        row = {
            "vehicle": vehicle,
            "version": desired.version,
            "document": encode(desired).decode(),
            "campaigns": json.dumps(merged.included),
            "left_out": json.dumps({**merged.shadowed, **merged.left_out}),
            "published_at": None,
            "reported_version": None,
            "reported_at": None,
            "accepted": None,
            "bundle": "",
            "reason": "",
        }
        with self._database.write() as connection:
            self._database.upsert(connection, desired_documents, [row])

    def explain(self, vehicle: str, merged: Merged) -> None:
        """Notes why campaigns are left out, where the configuration itself is as before."""
        text = json.dumps({**merged.shadowed, **merged.left_out})
        with self._database.write() as connection:
            connection.execute(
                update(desired_documents)
                .where(desired_documents.c.vehicle == vehicle)
                .values(left_out=text, campaigns=json.dumps(merged.included))
            )

    def published(self, vehicles: Mapping[str, int]) -> None:
        """Notes that the broker has these versions, by vehicle."""
        with self._database.write() as connection:
            for vehicle, version in sorted(vehicles.items()):
                columns = desired_documents.c
                connection.execute(
                    update(desired_documents)
                    .where(columns.vehicle == vehicle, columns.version == version)
                    .values(published_at=wall_time())
                )

    def reported(self, answers: Mapping[str, Reported]) -> None:
        """Notes what vehicles answered; a refusal that names campaigns leaves them out from now on."""
        now = wall_time()
        with self._database.write() as connection:
            for vehicle, answer in sorted(answers.items()):
                values = {
                    "reported_version": answer.version,
                    "reported_at": now,
                    "accepted": answer.accepted,
                    "bundle": answer.bundle,
                    "reason": answer.reason,
                }
                columns = desired_documents.c
                connection.execute(
                    update(desired_documents).where(columns.vehicle == vehicle).values(**values)
                )
                row = connection.execute(
                    select(columns.version, columns.campaigns).where(columns.vehicle == vehicle)
                ).one_or_none()
                if row is None or answer.accepted or answer.version != row.version:
                    continue
                named = set(_NAMED.findall(answer.reason)) & set(json.loads(row.campaigns))
                for name in sorted(named):
                    refusal = {
                        "vehicle": vehicle,
                        "campaign": name,
                        "bundle": answer.bundle,
                        "at": now,
                        "reason": f"the vehicle refuses it: {answer.reason}"[:512],
                    }
                    self._database.upsert(connection, campaign_refusals, [refusal])

    def refusals(self) -> dict[str, dict[str, tuple[str, str]]]:
        """Returns (bundle, reason) of refusals by vehicle and campaign."""
        with self._database.read() as connection:
            found: dict[str, dict[str, tuple[str, str]]] = {}
            for row in connection.execute(select(campaign_refusals)):
                found.setdefault(row.vehicle, {})[row.campaign] = (row.bundle, row.reason)
        return found

    def forgive(self, refusals: Iterable[tuple[str, str]]) -> None:
        """Forgets refusals by (vehicle, campaign), so that they are tried again."""
        with self._database.write() as connection:
            for vehicle, campaign in refusals:
                columns = campaign_refusals.c
                connection.execute(
                    delete(campaign_refusals).where(columns.vehicle == vehicle, columns.campaign == campaign)
                )


def _row(row: Any) -> DocumentRow:
    values = dict(row._mapping)
    values["campaigns"] = tuple(json.loads(values["campaigns"]))
    values["left_out"] = json.loads(values["left_out"])
    return DocumentRow(**values)
