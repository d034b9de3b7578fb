"""Sends verdicts to vehicles, and updates everything that depends on a verdict.

offers, committer, sweeps --answer, ask_again, stored, given_up--> Replies --verdict--> Outbox --> vehicle
                                                                      |--> metrics, health, refusals
                                                                      |--> quotas, near-duplicates
"""

from __future__ import annotations

import time
from collections.abc import Callable

from misfire_fleet.collector.broker.outbox import Outbox
from misfire_fleet.collector.health.health import Answers
from misfire_fleet.collector.health.metrics import CollectorMetrics
from misfire_fleet.collector.notes import NoteBuffer
from misfire_fleet.collector.policy.campaigns import CampaignGate
from misfire_fleet.collector.policy.near_duplicates import Novelty
from misfire_fleet.collector.policy.quota import QuotaTracker
from misfire_fleet.collector.transfers import Ask
from misfire_runtime.messages import Send, Verdict


class Replies:
    """Sends verdicts. Thread-safe, as are all objects that it calls.

    Args:
        outbox: queues the verdicts.
        name: name of the collector, part of each `send`.
        chunk_bytes: returns the current chunk size in bytes.
        quotas: updated when a sample is stored or given up.
        novelty: updated in the same cases; None if near-duplicates are not declined.
        campaigns: updated in the same cases.
        notes: stores final refusals for the vehicle's page.
        metrics: counts the verdicts.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        name: str,
        chunk_bytes: Callable[[], int],
        quotas: QuotaTracker,
        novelty: Novelty | None,
        campaigns: CampaignGate,
        notes: NoteBuffer,
        metrics: CollectorMetrics,
    ) -> None:
        self._outbox, self._name, self._chunk_bytes = outbox, name, chunk_bytes
        self._quotas, self._novelty, self._campaigns = quotas, novelty, campaigns
        self._notes, self._metrics = notes, metrics
        self.given = Answers()
        """Counts recent verdicts for the collector's health."""

    def answer(self, vehicle: str, verdict: Verdict, cause: str) -> None:
        """Sends a verdict; `cause` is its label in the metrics."""
        self._metrics.verdicts.labels(verdict.verdict, cause).inc()
        self.given.count(vehicle, verdict.verdict, cause, time.monotonic())
        if verdict.verdict in {"declined", "rejected"}:
            self._notes.refused(vehicle, verdict.verdict, cause)
        self._outbox.put(vehicle, verdict)

    def send(self, vehicle: str, sample: str, *, offset: int, cause: str = "") -> None:
        """Requests a sample's bytes from `offset` on."""
        chunk_bytes = self._chunk_bytes()
        verdict = Send(id=sample, collector=self._name, offset=offset, chunk_bytes=chunk_bytes)
        self.answer(vehicle, verdict, cause)

    def ask_again(self, ask: Ask) -> None:
        """Repeats a request after a gap, a stall or damaged bytes."""
        self._metrics.asked_again.inc()
        self.send(ask.vehicle, ask.sample, offset=ask.offset, cause="again")

    def stored(self, vehicle: str, sample: str) -> None:
        """Confirms the quota that was reserved for a sample, because it is stored."""
        self._quotas.confirm(vehicle, sample)
        self._campaigns.stored(sample)
        if self._novelty is not None:
            self._novelty.arrived(sample)

    def given_up(self, vehicle: str, sample: str) -> None:
        """Releases the quota that was reserved for a sample, because its transfer ended without it."""
        self._quotas.give_back(vehicle, sample)
        self._campaigns.given_up(sample)
        if self._novelty is not None:
            self._novelty.forget(sample)
