"""Receives offers and chunks from vehicles, stores samples, and sends `stored` when they are durable.

network thread --offers--> OfferHandler --verdicts--> Replies --> Outbox --> vehicles
               --chunks--> Transfers --whole--> Committer --stored--> Replies
               --state, telemetry--> housekeeping thread --> store
The collector is stateless: everything in its memory may be lost at any time, because vehicles keep their
samples until they receive `stored`. Several collectors can share the offers of a fleet; `send` names the one
to upload to.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time

from misfire_fleet.collector.broker.link import Handlers, Link, chunk_bytes
from misfire_fleet.collector.broker.retained import RetainedSweep
from misfire_fleet.collector.committer import Committer
from misfire_fleet.collector.health.breaker import Breaker
from misfire_fleet.collector.health.metrics import CollectorMetrics
from misfire_fleet.collector.health.setbacks import Setbacks
from misfire_fleet.collector.housekeeping import Housekeeping
from misfire_fleet.collector.notes import NoteBuffer
from misfire_fleet.collector.offers import OfferHandler, OfferRules
from misfire_fleet.collector.policy.campaigns import CampaignGate
from misfire_fleet.collector.policy.near_duplicates import Novelty
from misfire_fleet.collector.policy.quota import QuotaTracker
from misfire_fleet.collector.replies import Replies
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.collector.transfers import Ask, Transfers
from misfire_fleet.store import Store
from misfire_runtime.mqtt.client import BrokerConfig

log = logging.getLogger(__name__)

_LOOK_S = 2.0
"""Period of the metrics that take a pass over all vehicles; the cheap ones are set at every tick."""


class Collector:
    """Runs one collector of one fleet.

    Args:
        store: the open store; the caller closes it after `close`.
        broker: address and credentials.
        fleet: name of the fleet, part of all topics.
        name: unique among running collectors, matching [A-Za-z0-9_.-]{1,64}. Default: made from the host
            name, the process id and random digits.
        settings: limits and timers.
    """

    def __init__(
        self,
        store: Store,
        *,
        broker: BrokerConfig,
        fleet: str = "default",
        name: str | None = None,
        settings: CollectorSettings | None = None,
    ) -> None:
        self.name = name or _own_name()
        self.settings = settings or CollectorSettings()
        self.metrics = CollectorMetrics()
        self.transfers = Transfers(
            max_transfers=self.settings.max_transfers, max_bytes=self.settings.max_transfer_bytes
        )
        # MQTT 3.1.1 has no message in which a broker announces its packet limit, so chunks stay small.
        self._largest_chunk = self.settings.chunk_bytes if broker.protocol == "5" else 64 * 1024
        quotas = QuotaTracker(self.settings.quotas)
        campaigns = CampaignGate()
        near = self.settings.near_duplicates
        novelty = None if near is None else Novelty(near)
        self.breaker = Breaker(probe_s=self.settings.probe_s)
        setbacks = Setbacks()
        self._draining = threading.Event()
        self._notes = NoteBuffer(self.metrics)
        self._looked_at = 0.0
        self._dropped = 0
        self.link = Link(broker, fleet=fleet, name=self.name, settings=self.settings)
        self._replies = Replies(
            self.link.outbox,
            name=self.name,
            chunk_bytes=self._chunk_bytes,
            quotas=quotas,
            novelty=novelty,
            campaigns=campaigns,
            notes=self._notes,
            metrics=self.metrics,
        )
        self.committer = Committer(
            store,
            name=self.name,
            settings=self.settings,
            transfers=self.transfers,
            breaker=self.breaker,
            setbacks=setbacks,
            metrics=self.metrics,
            replies=self._replies,
        )
        self.offers = OfferHandler(
            store,
            settings=self.settings,
            rules=OfferRules(
                self.transfers, quotas, novelty, campaigns, self.breaker, setbacks, self._draining.is_set
            ),
            metrics=self.metrics,
            replies=self._replies,
        )
        self.retained = RetainedSweep(broker, fleet=fleet, name=self.name, metrics=self.metrics)
        self._housekeeping = Housekeeping(
            store,
            quotas=quotas,
            novelty=novelty,
            campaigns=campaigns,
            settings=self.settings,
            metrics=self.metrics,
            notes=self._notes,
            tick=self._tick,
        )

    def start(self, *, wait_s: float = 10.0) -> bool:
        """Starts all threads and waits until the broker delivers, at most `wait_s` seconds.

        Returns:
            True if the broker delivers. Otherwise the collector keeps connecting in the background.
        """
        # Before the first offer arrives: quotas and near-duplicates are judged by the store's content.
        self._housekeeping.prepare()
        # From the end of a sample's way to its start: nothing arrives before somebody can take it.
        self.committer.start()
        self.offers.start()
        self.link.start(self._handlers())
        self._housekeeping.start()
        self.retained.start()
        return self.link.ready.wait(wait_s)

    def run(self, stop: threading.Event) -> None:
        """Runs until `stop` is set, then drains and closes."""
        self.start()
        stop.wait()
        self.close()

    def close(self) -> None:
        """Stops taking offers, waits for running transfers, sends the last verdicts and disconnects."""
        # In the order of a sample's way: each part can still hand its results to the next one.
        self._draining.set()
        self.link.stop_offers()
        until = time.monotonic() + self.settings.drain_s
        waiting = threading.Event()
        # Without the broker no chunk can come, and waiting would be in vain.
        while len(self.transfers) and time.monotonic() < until and self.link.ready.is_set():
            waiting.wait(0.02)
        self.offers.close()
        self.committer.close()
        self.link.outbox.wait_empty()
        self._housekeeping.close()
        self.retained.close()
        self.link.close()

    def problems(self) -> list[str]:
        """Returns what keeps this collector from working, as sentences; empty if it works."""
        found = []
        if not self.link.ready.is_set():
            found.append("the broker does not deliver to this collector")
        found += self.breaker.problems()
        now = time.monotonic()
        # The same limits as in the alerts of docs/fleet.md.
        for what, since, limit_s in (
            ("the check of a sample has been running", self.committer.busy_s("check", now), 30.0),
            ("whole samples wait, and none has been stored", self.committer.stuck_s(now), 60.0),
            ("an offer has been waiting for an answer", self.offers.oldest_s(now), 30.0),
            ("vehicles have found no memory for transfers", self.transfers.full_s(now), 60.0),
        ):
            if since > limit_s:
                found.append(f"{what} for {since:.0f} s")
        found += self._replies.given.problems(now)
        found += self.retained.problems(now)
        parts = (self.link, self.offers, self.committer, self._housekeeping, self.retained)
        if not all(part.alive for part in parts):
            found.append("a thread died; see the log, and restart this collector")
        return found

    def _handlers(self) -> Handlers:
        return Handlers(
            chunk=self._on_chunk,
            offer=self.offers.put,
            state=self._notes.state,
            telemetry=lambda vehicle, payload: self._notes.heartbeat(vehicle, payload, time.monotonic()),
            malformed=lambda kind: self.metrics.malformed.labels(kind).inc(),
        )

    def _on_chunk(self, vehicle: str, sample: str, offset: int, payload: bytes) -> None:
        self.metrics.chunks.inc()
        self.metrics.chunk_bytes.inc(len(payload))
        try:
            event = self.transfers.chunk(vehicle, sample, offset, payload, time.monotonic())
        except MemoryError:
            log.warning("no_memory", extra={"fields": {"sample": sample}})
            self.committer.put_off((vehicle, sample), "failed", "this collector is short of memory")
            return
        if event is None:
            return
        if event == "unknown":
            self.metrics.unknown_chunks.inc()
        elif isinstance(event, Ask):
            self._replies.ask_again(event)
        elif event == "flood":
            self.metrics.floods.inc()
            self.committer.put_off((vehicle, sample), "flood", "far more chunks came than the sample needs")
        else:
            self.committer.put(event)

    def _chunk_bytes(self) -> int:
        return chunk_bytes(self.link.packet_limit, self._largest_chunk)

    def _tick(self, now: float) -> None:
        """Repeats requests of stalled transfers, drops abandoned ones, and sets the gauges."""
        asks, abandoned = self.transfers.stalled(
            now,
            stall_s=self.settings.stall_s,
            abandon_s=self.settings.abandon_s,
            min_bytes_per_s=self.settings.min_bytes_per_s,
        )
        for ask in asks:
            self._replies.ask_again(ask)
        for key in abandoned:
            self.metrics.abandoned.inc()
            self._replies.given_up(*key)
        self.metrics.breaker_open.set(self.breaker.is_open)
        self.metrics.transfers.set(len(self.transfers))
        self.metrics.transfers_full.set(self.transfers.full_s(now))
        self.metrics.transfer_bytes.set(self.transfers.reserved_bytes)
        self.metrics.offers_waiting.set(self.offers.waiting)
        self.metrics.verdicts_waiting.set(self.link.outbox.pending)
        self.metrics.ready.set(self.link.ready.is_set())
        self.metrics.reconnects.set(self.link.stalls)
        dropped = self.link.outbox.dropped
        self.metrics.dropped.labels("verdict").inc(dropped - self._dropped)
        self._dropped = dropped
        if now - self._looked_at > _LOOK_S:
            self._looked_at = now
            self._look_at_health(now)

    def _look_at_health(self, now: float) -> None:
        busy, rejected = self._replies.given.shares(now)
        self.metrics.busy_share.set(busy.share)
        self.metrics.rejected_share.set(rejected.share)
        self.metrics.oldest_offer.set(self.offers.oldest_s(now))
        self.metrics.stuck.set(self.committer.stuck_s(now))
        self.metrics.longest_check.set(self.committer.busy_s("check", now))


def _own_name() -> str:
    host = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in socket.gethostname())
    return f"{host[:32] or 'collector'}-{os.getpid()}-{secrets.token_hex(3)}"
