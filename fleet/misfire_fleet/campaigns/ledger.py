"""Keeps campaigns and their states; every change is a line of the audit log.

create --> draft --start--> running <--pause, start--> paused;  any of them --end--> ended, for good

An ended campaign never runs again, so a collector may decline its samples for good. Its name stays taken.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Row, func, select, update

from misfire_fleet.campaigns.spec import CampaignSpec, parse_spec, trigger_of
from misfire_fleet.errors import CampaignConflictError, CampaignGoneError
from misfire_fleet.store import Store
from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.database import one_of
from misfire_fleet.store.rows import whole
from misfire_fleet.store.schema import campaigns, samples
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import ConfigError
from misfire_runtime.service.logs import Throttle

log = logging.getLogger(__name__)
_OFTEN = Throttle(log)

State = Literal["draft", "running", "paused", "ended"]
STATES: tuple[State, ...] = ("draft", "running", "paused", "ended")
Move = Literal["start", "pause", "end"]
_MOVES: dict[Move, tuple[State, tuple[State, ...]]] = {
    "start": ("running", ("draft", "paused")),
    "pause": ("paused", ("running",)),
    "end": ("ended", ("draft", "running", "paused")),
}
_REASON = 256


@dataclass(frozen=True)
class Progress:
    """Counts what a campaign has brought: stored samples and bytes, and the vehicles that sent them."""

    samples: int = 0
    bytes: int = 0
    vehicles: int = 0
    by_vehicle: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Campaign:
    """Holds a campaign and its state. Times are seconds since 1970."""

    spec: CampaignSpec
    state: State
    reason: str
    created_at: float
    created_by: str
    changed_at: float
    changed_by: str
    started_at: float | None = None
    ended_at: float | None = None
    dry_run: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Returns its name."""
        return self.spec.name

    def why_full(self, found: Progress) -> str:
        """Returns which limit is reached; "" if none is."""
        most = self.spec.how_much
        if most.samples is not None and found.samples >= most.samples:
            return f"full: {most.samples} samples are stored"
        if most.bytes is not None and found.bytes + found.bytes / max(1, found.samples) > most.bytes:
            return f"full: {found.bytes} bytes are stored, and one sample more would exceed {most.bytes}"
        return ""


class CampaignLedger:
    """Reads and changes campaigns. Thread-safe; several processes may use one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, spec: CampaignSpec, *, actor: str) -> Campaign:
        """Keeps a new campaign, as a draft.

        Raises:
            CampaignConflictError: the name is taken.
            SampleGoneError: `near` names a sample that is not in the store.
            ConfigError: that sample has no embedding.
        """
        check_near(self._store, spec)
        now = wall_time()
        row = {
            "name": spec.name,
            "spec": spec.model_dump_json(),
            "state": "draft",
            "reason": "",
            "created_at": now,
            "created_by": actor[:64],
            "changed_at": now,
            "changed_by": actor[:64],
        }
        with self._store.database.write() as connection:
            if connection.scalar(select(campaigns.c.name).where(campaigns.c.name == spec.name)) is not None:
                raise CampaignConflictError(f"campaign {spec.name}: the name is taken")
            connection.execute(campaigns.insert(), row)
            self._log(
                connection, actor, "campaign-create", spec.name, (None, _seen(spec, "draft", "")), at=now
            )
        return self.get(spec.name)

    def change(self, spec: CampaignSpec, *, actor: str) -> Campaign:
        """Replaces a draft. Raises CampaignGoneError, or CampaignConflictError if it is no draft any more."""
        check_near(self._store, spec)
        now = wall_time()
        with self._store.database.write() as connection:
            before = self._locked(connection, spec.name)
            if before.state != "draft":
                raise CampaignConflictError(
                    f"campaign {spec.name}: it is {before.state}, and only a draft can be changed"
                )
            values = {"spec": spec.model_dump_json(), "dry_run": None}
            self._update(connection, spec.name, now, actor, values)
            old, new = _seen(before.spec, "draft", ""), _seen(spec, "draft", "")
            self._log(connection, actor, "campaign-change", spec.name, (old, new), at=now)
        return self.get(spec.name)

    def move(self, name: str, move: Move, *, actor: str, reason: str = "") -> Campaign:
        """Changes a campaign's state; the same state again changes nothing.

        Args:
            name: of the campaign.
            move: start, pause or end.
            actor: who does it, for the audit log.
            reason: why, in a sentence.

        Raises:
            CampaignGoneError: there is none of that name.
            CampaignConflictError: it cannot get there from its state, or its time is over.
        """
        after, allowed = _MOVES[move]
        now, reason = wall_time(), " ".join(reason.split())[:_REASON]
        with self._store.database.write() as connection:
            before = self._locked(connection, name)
            if before.state == after:
                return before
            if before.state not in allowed:
                raise CampaignConflictError(f"campaign {name}: it is {before.state}, so it cannot {move}")
            if after == "running" and before.spec.ends_before(now):
                raise CampaignConflictError(f"campaign {name}: its time was over at {before.spec.until}")
            values: dict[str, Any] = {"state": after, "reason": reason}
            if after == "running" and before.started_at is None:
                values["started_at"] = now
            if after == "ended":
                values["ended_at"] = now
            self._update(connection, name, now, actor, values)
            old = {"state": before.state, "reason": before.reason}
            new = {"state": after, "reason": reason}
            self._log(connection, actor, f"campaign-{move}", name, (old, new), at=now)
        return self.get(name)

    def end_finished(self, *, actor: str) -> list[str]:
        """Ends the campaigns that are full or past; returns their names."""
        now, ended = wall_time(), []
        active = self.listed(states=("running", "paused"))
        progress = self.progress_of([each.name for each in active])
        for each in active:
            why = "past: its time is over" if each.spec.ends_before(now) else ""
            why = why or each.why_full(progress[each.name])
            if why:
                self.move(each.name, "end", actor=actor, reason=why)
                ended.append(each.name)
        return ended

    def get(self, name: str) -> Campaign:
        """Returns a campaign. Raises CampaignGoneError."""
        with self._store.database.read() as connection:
            row = connection.execute(select(campaigns).where(campaigns.c.name == name)).one_or_none()
        if row is None:
            raise CampaignGoneError(f"campaign {name[:64]}: there is none of this name")
        return _campaign(row)

    def listed(self, *, states: Sequence[str] = STATES, limit: int = 500) -> list[Campaign]:
        """Returns campaigns, the running ones first, then the last changed."""
        query = (
            select(campaigns)
            .where(campaigns.c.state.in_(list(states)))
            .order_by((campaigns.c.state != "running"), campaigns.c.changed_at.desc(), campaigns.c.name)
            .limit(limit)
        )
        found = []
        with self._store.database.read() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            try:
                found.append(_campaign(row))
            # One damaged row must not stop all other campaigns.
            except (ConfigError, ValueError, TypeError) as error:
                fields = {"campaign": str(row.name)[:64], "problem": str(error)[:200]}
                _OFTEN.log(logging.ERROR, "campaign_unreadable", fields)
        return found

    def damaged(self) -> list[str]:
        """Returns the names of the campaigns that cannot be read."""
        with self._store.database.read() as connection:
            rows = connection.execute(select(campaigns).order_by(campaigns.c.name)).all()
        names = []
        for row in rows:
            try:
                _campaign(row)
            except (ConfigError, ValueError, TypeError):
                names.append(str(row.name)[:64])
        return names

    def running(self) -> list[Campaign]:
        """Returns running campaigns in the order in which they get a frame: by priority, then by name."""
        return sorted(self.listed(states=("running",)), key=lambda each: (-each.spec.priority, each.name))

    def progress(self, name: str) -> Progress:
        """Counts a campaign's stored samples."""
        return self.progress_of([name])[name]

    def progress_of(self, names: Sequence[str]) -> dict[str, Progress]:
        """Counts the stored samples of campaigns, by name."""
        triggers = {trigger_of(name): name for name in names}
        columns = (samples.c.trigger, samples.c.vehicle, func.count(), func.sum(samples.c.size))
        found: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in names}
        with self._store.database.read() as connection:
            meant = one_of(samples.c.trigger, list(triggers), on=connection)
            query = select(*columns).where(meant).group_by(samples.c.trigger, samples.c.vehicle)
            for trigger, vehicle, count, size in connection.execute(query):
                found[triggers[trigger]][vehicle] = (whole(count), whole(size))
        return {
            name: Progress(
                sum(each[0] for each in rows.values()),
                sum(each[1] for each in rows.values()),
                len(rows),
                rows,
            )
            for name, rows in found.items()
        }

    def keep_dry_run(self, name: str, found: dict[str, Any], *, actor: str) -> None:
        """Keeps the last estimate beside the campaign."""
        now, text = wall_time(), json.dumps(found)
        with self._store.database.write() as connection:
            connection.execute(update(campaigns).where(campaigns.c.name == name).values(dry_run=text))
            detail = {key: found.get(key) for key in ("samples", "bytes", "failures")}
            self._log(connection, actor, "campaign-dry-run", name, (None, detail), at=now)

    def _locked(self, connection: Any, name: str) -> Campaign:
        query = select(campaigns).where(campaigns.c.name == name).with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            raise CampaignGoneError(f"campaign {name[:64]}: there is none of this name")
        return _campaign(row)

    def _update(self, connection: Any, name: str, now: float, actor: str, values: dict[str, Any]) -> None:
        changed = {**values, "changed_at": now, "changed_by": actor[:64]}
        connection.execute(update(campaigns).where(campaigns.c.name == name).values(**changed))

    def _log(
        self,
        connection: Any,
        actor: str,
        action: str,
        name: str,
        change: tuple[dict[str, Any] | None, dict[str, Any] | None],
        *,
        at: float,
    ) -> None:
        """Writes a line of the audit log; change: before and after."""
        line = Change(actor[:64], action, f"campaign:{name}", *change, detail={"campaign": name})
        record(connection, line, ledger=self._store.deletion.ledger, at=at)


def check_near(store: Store, spec: CampaignSpec) -> None:
    """Raises SampleGoneError or ConfigError if the sample that `near` names cannot be compared with."""
    near_of(store, spec)


def near_of(store: Store, spec: CampaignSpec) -> tuple[str, str] | None:
    """Returns embedding (float16, base64) and bundle of the sample that `near` names; None without `near`.

    Raises:
        SampleGoneError: it is not in the store.
        ConfigError: it has no embedding.
    """
    if spec.what.near is None:
        return None
    found = store.get(spec.what.near.sample)
    embedding = None if found.unreadable else found.embedding
    if found.offer.embedding is None or embedding is None or not embedding.any():
        raise ConfigError(f"campaign: what.near: sample {found.id[:12]} has no embedding to compare with")
    return found.offer.embedding, found.bundle


def _seen(spec: CampaignSpec, state: str, reason: str) -> dict[str, Any]:
    return {"state": state, "reason": reason, "spec": spec.model_dump(mode="json", exclude_defaults=True)}


def _campaign(row: Row[Any]) -> Campaign:
    values = row._mapping
    return Campaign(
        spec=parse_spec(json.loads(values["spec"]), origin=f"campaign {values['name']}"),
        state=values["state"],
        reason=values["reason"],
        created_at=values["created_at"],
        created_by=values["created_by"],
        changed_at=values["changed_at"],
        changed_by=values["changed_by"],
        started_at=values["started_at"],
        ended_at=values["ended_at"],
        dry_run=None if values["dry_run"] is None else json.loads(values["dry_run"]),
    )
