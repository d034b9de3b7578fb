"""What vehicles hear from a collector, and all that follows from it.

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
from misfire_fleet.collector.notes import Notebook
from misfire_fleet.collector.policy.near_duplicates import Novelty
from misfire_fleet.collector.policy.quota import QuotaBook
from misfire_fleet.collector.transfers import Ask
from misfire_runtime.messages import Send, Verdict


class Replies:
    """Thread-safe, as everything behind it is.

    Args:
        outbox: where verdicts go.
        name: the collector's, which a `send` names.
        chunk_bytes: how large chunks may be at this moment.
        quotas, novelty: hear what became of samples that they counted on.
        notebook: keeps final refusals for the vehicle's page.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        name: str,
        chunk_bytes: Callable[[], int],
        quotas: QuotaBook,
        novelty: Novelty | None,
        notebook: Notebook,
        metrics: CollectorMetrics,
    ) -> None:
        self._outbox, self._name, self._chunk_bytes = outbox, name, chunk_bytes
        self._quotas, self._novelty = quotas, novelty
        self._notebook, self._metrics = notebook, metrics
        self.given = Answers()
        """What was said lately, for the collector's health."""

    def answer(self, vehicle: str, verdict: Verdict, cause: str) -> None:
        """Sends a verdict; `cause` is the metrics' word for why."""
        self._metrics.verdicts.labels(verdict.verdict, cause).inc()
        self.given.count(vehicle, verdict.verdict, cause, time.monotonic())
        if verdict.verdict in {"declined", "rejected"}:
            self._notebook.refused(vehicle, verdict.verdict, cause)
        self._outbox.put(vehicle, verdict)

    def send(self, vehicle: str, sample: str, *, offset: int, cause: str = "") -> None:
        """Asks for a sample's bytes from `offset` on."""
        chunk_bytes = self._chunk_bytes()
        verdict = Send(id=sample, collector=self._name, offset=offset, chunk_bytes=chunk_bytes)
        self.answer(vehicle, verdict, cause)

    def ask_again(self, ask: Ask) -> None:
        """Repeats a request after a gap, a stall or damaged bytes."""
        self._metrics.asked_again.inc()
        self.send(ask.vehicle, ask.sample, offset=ask.offset, cause="again")

    def stored(self, vehicle: str, sample: str) -> None:
        """The sample is in the store: what was reserved for it is used for good."""
        self._quotas.confirm(vehicle, sample)
        if self._novelty is not None:
            self._novelty.arrived(sample)

    def given_up(self, vehicle: str, sample: str) -> None:
        """The sample does not come now: what was reserved for it is free again."""
        self._quotas.give_back(vehicle, sample)
        if self._novelty is not None:
            self._novelty.forget(sample)
