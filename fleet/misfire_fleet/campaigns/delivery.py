"""Delivers campaigns: publishes each vehicle's desired configuration, and notes what it reports.

running campaigns + facts + retained desired --merge--> changed? --next version, retained--> vehicle
reported --> desired_documents (accepted, or the reason);  a refusal that names a campaign leaves it out next

The operator's own tables in a retained configuration (`misfire fleet configure`) are kept as they are. One
deliverer runs per fleet; a second one would only publish the same.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from misfire_fleet.campaigns.budget import BudgetKeeper
from misfire_fleet.campaigns.documents import DocumentRow, Documents
from misfire_fleet.campaigns.ledger import CampaignLedger, near_of
from misfire_fleet.campaigns.merging import KEY, Merged, Prepared, merge
from misfire_fleet.campaigns.vehicles import VehicleFacts, facts
from misfire_fleet.errors import StoreError
from misfire_fleet.store import Store
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import ConfigError, MessageError, MisfireError
from misfire_runtime.messages import ROOT, Desired, Reported, Topics, decode, encode
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Arrived, Connection
from misfire_runtime.vehicle.probation import MAX_VERSION

log = logging.getLogger(__name__)
ACTOR = "campaigns"
"""Who ends a campaign that is full or past, in the audit log."""
_WINDOW = 8
"""Messages handed to paho at a time."""
_QUIET_S = 1.0
"""The broker does not say when it has sent the last retained message: the end is a second without one."""
_SETTLE_S = 30.0
_ACKNOWLEDGED_S = 10.0
_RECONNECT_S = 5.0
_MAX_VEHICLES = 100_000
"""Bounds memory: vehicles choose their names."""


@dataclass
class _Heard:
    """Holds what the broker retains of a vehicle."""

    desired: Desired | None = None
    reported: Reported | None = None


@dataclass
class Delivered:
    """Counts what a step did."""

    published: int = 0
    unchanged: int = 0
    answers: int = 0
    ended: list[str] = field(default_factory=list)


class Deliverer:
    """Delivers for one fleet.

    Args:
        store: the open store.
        broker: address and credentials that may write `desired` (the user `operator` of the shipped broker).
        fleet: name of the fleet.
        period_s: seconds between two looks at campaigns.
    """

    def __init__(
        self, store: Store, *, broker: BrokerConfig, fleet: str = "default", period_s: float = 10.0
    ) -> None:
        self._store, self._broker, self._fleet, self._period_s = store, broker, fleet, period_s
        self._ledger, self._documents = CampaignLedger(store), Documents(store)
        self._budget = BudgetKeeper(store)
        self._heard: dict[str, _Heard] = {}
        self._answers: dict[str, Reported] = {}
        self._connection: Connection | None = None

    def run(self, stop: threading.Event) -> None:
        """Delivers until `stop` is set; reconnects if the broker is away."""
        while not stop.is_set():
            try:
                with self:
                    while not stop.is_set():
                        self.step()
                        self._listen(self._period_s, stop)
            except MisfireError as error:
                fields = {"problem": str(error)[:300]}
                log.warning("campaigns_not_delivered", extra={"fields": fields})
                stop.wait(_RECONNECT_S)

    def __enter__(self) -> Deliverer:
        base = f"{ROOT}/{self._fleet}/+"
        self._heard, self._answers = {}, {}
        connection = Connection(
            self._broker,
            client_id=f"misfire-campaigns-{secrets.token_hex(8)}",
            subscriptions=(f"{base}/desired", f"{base}/reported"),
        )
        self._connection = connection
        connection.open()
        until = last = time.monotonic()
        until += _SETTLE_S
        while time.monotonic() < until and time.monotonic() - last < _QUIET_S:
            if self._poll(0.1):
                last = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close(in_order=True)
            self._connection = None

    def step(self) -> Delivered:
        """Ends what is finished, and publishes what has changed.

        Raises:
            LinkError, MessageError: the broker is away, or refuses a configuration.
            StoreUnavailableError: the store is away.
        """
        done = Delivered(answers=len(self._answers))
        if self._answers:
            answers, self._answers = self._answers, {}
            self._documents.reported(answers)
        done.ended = self._ledger.end_finished(actor=ACTOR)
        vehicles = facts(self._store)
        running = self._prepared(vehicles)
        rows, refusals = self._documents.all(), self._documents.refusals()
        changed: dict[str, Desired] = {}
        for vehicle in vehicles:
            desired = self._next(vehicle, running, rows.get(vehicle.name), refusals.get(vehicle.name, {}))
            if desired is None:
                done.unchanged += 1
            else:
                changed[vehicle.name] = desired
        self._publish(changed)
        done.published = len(changed)
        return done

    def wait_for_answers(self, seconds: float) -> None:
        """Listens until every published configuration has an answer, at most so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._listen(0.2, threading.Event())
            if self._answers:
                answers, self._answers = self._answers, {}
                self._documents.reported(answers)
            if all(row.state in ("accepted", "refused") for row in self._documents.all().values()):
                return

    def _prepared(self, vehicles: list[VehicleFacts]) -> list[Prepared]:
        found = []
        thresholds = self._budget.refresh(vehicles)
        for campaign in self._ledger.running():
            try:
                near = near_of(self._store, campaign.spec)
            except (ConfigError, StoreError) as error:
                # The sample was deleted: the embedding went with it.
                reason = f"the sample that it is near is gone: {error}"
                self._ledger.move(campaign.name, "pause", actor=ACTOR, reason=reason)
                continue
            of_budget = thresholds.get(campaign.spec.what.score or "") if campaign.spec.what.budget else None
            found.append(Prepared(campaign, near=near, thresholds=of_budget))
        return found

    def _next(
        self,
        vehicle: VehicleFacts,
        running: list[Prepared],
        row: DocumentRow | None,
        refused: Mapping[str, tuple[str, str]],
    ) -> Desired | None:
        """Notes and returns the configuration to publish; None if the broker has it."""
        heard = self._heard.get(vehicle.name, _Heard())
        old = [name for name, (bundle, _reason) in refused.items() if bundle != vehicle.bundle]
        if old:
            self._documents.forgive((vehicle.name, name) for name in old)
        reasons = {name: reason for name, (_bundle, reason) in refused.items() if name not in old}
        current = heard.desired
        if current is None and row is not None:
            current = decode(Desired, row.document.encode())
        base = {} if current is None else {k: v for k, v in current.config.items() if k != KEY}
        merged = merge(vehicle, running, base=base, refused=reasons)
        config = merged.config(base)
        if current is None and not merged.triggers:
            if merged.left_out and row is None:
                # No configuration is needed, but the page shows why.
                self._documents.wanted(vehicle.name, Desired(version=0), merged)
                self._documents.published({vehicle.name: 0})
            elif row is not None:
                self._note(row, merged)
            return None
        behind = (
            heard.reported is not None
            and not heard.reported.accepted
            and (current is not None and heard.reported.version > current.version)
        )
        if current is not None and current.config == config and not behind:
            return self._kept(vehicle.name, heard, row, current, merged)
        desired = self._risen(heard, row, current, config)
        if desired is not None:
            self._documents.wanted(vehicle.name, desired, merged)
        return desired

    def _kept(
        self, vehicle: str, heard: _Heard, row: DocumentRow | None, current: Desired, merged: Merged
    ) -> Desired | None:
        """Notes a configuration that is as it should be; returns it if the broker has lost it."""
        if row is not None and row.version == (current.version if heard.desired is not None else 0):
            self._note(row, merged)
            return None
        if heard.desired is None:
            return current
        if row is not None or merged.triggers or merged.left_out:
            self._documents.wanted(vehicle, current, merged)
            self._documents.published({vehicle: current.version})
            if heard.reported is not None:
                self._documents.reported({vehicle: heard.reported})
        return None

    def _note(self, row: DocumentRow, merged: Merged) -> None:
        told = {**merged.shadowed, **merged.left_out}
        if row.left_out != told or row.campaigns != merged.included:
            self._documents.explain(row.vehicle, merged)

    def _risen(
        self, heard: _Heard, row: DocumentRow | None, current: Desired | None, config: dict[str, Any]
    ) -> Desired | None:
        """Returns the configuration with a version above all that are known; None if there is none."""
        known = [each.version for each in (heard.desired, heard.reported) if each is not None]
        if row is not None:
            known.append(row.version)
        # At least the time: a broker that was restarted may have lost its messages.
        version = max([int(wall_time()), *(each + 1 for each in known)])
        if version > MAX_VERSION:
            fields = {"highest": max(known), "most": MAX_VERSION}
            log.error("no_version_left", extra={"fields": fields})
            return None
        return Desired(version=version, bundle=None if current is None else current.bundle, config=config)

    def _publish(self, changed: Mapping[str, Desired]) -> None:
        """Publishes, a window at a time, and waits for the broker's acknowledgements."""
        assert self._connection is not None
        waiting = dict(sorted(changed.items()))
        flying: dict[int, tuple[str, Desired]] = {}
        until = time.monotonic() + _ACKNOWLEDGED_S
        done: dict[str, int] = {}
        while waiting or flying:
            while waiting and len(flying) < _WINDOW:
                vehicle = next(iter(waiting))
                desired = waiting.pop(vehicle)
                topic = Topics(self._fleet, vehicle).desired
                flying[self._connection.publish(topic, encode(desired), retain=True)] = (vehicle, desired)
            self._poll(0.05)
            for receipt in self._connection.receipts:
                sent = flying.pop(receipt.mid, None)
                if sent is None:
                    continue
                until = time.monotonic() + _ACKNOWLEDGED_S
                if not receipt.accepted:
                    raise MessageError(f"the broker refuses the configuration of {sent[0]}: {receipt.reason}")
                self._heard.setdefault(sent[0], _Heard()).desired = sent[1]
                done[sent[0]] = sent[1].version
            self._connection.receipts.clear()
            if time.monotonic() > until:
                raise MessageError("the broker did not acknowledge a configuration")
        if done:
            self._documents.published(done)

    def _listen(self, seconds: float, stop: threading.Event) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stop.is_set():
            self._poll(min(0.2, seconds))

    def _poll(self, seconds: float) -> bool:
        """Receives messages; returns True if there was one."""
        assert self._connection is not None
        self._connection.poll(seconds, wake=None)
        arrived = self._connection.inbox.copy()
        self._connection.inbox.clear()
        for message in arrived:
            self._take(message)
        return bool(arrived)

    def _take(self, message: Arrived) -> None:
        parts = message.topic.split("/")
        if len(parts) != 5 or (parts[3] not in self._heard and len(self._heard) >= _MAX_VEHICLES):
            return
        heard = self._heard.setdefault(parts[3], _Heard())
        try:
            if parts[4] == "desired":
                heard.desired = decode(Desired, message.payload) if message.payload else None
            elif message.payload:
                heard.reported = self._answers[parts[3]] = decode(Reported, message.payload)
        except MessageError as error:
            fields = {"topic": message.topic, "problem": str(error)[:200]}
            log.warning("message_unreadable", extra={"fields": fields})
