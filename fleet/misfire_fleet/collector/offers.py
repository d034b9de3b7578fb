"""Answers offers in batches, with one database query per batch.

offers -> too fast? busy -> malformed? rejected -> of another vehicle or version? busy
       -> stored already? stored -> deleted? declined -> too large, no known format? rejected
       -> store ill? busy -> campaign ended or full, over quota, near-duplicate? declined -> no room? busy
       -> send
Random samples are never declined as near-duplicates: statistics need the random stream to be unbiased.
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from misfire_fleet.collector.health.breaker import Breaker
from misfire_fleet.collector.health.metrics import CollectorMetrics
from misfire_fleet.collector.health.setbacks import Setbacks
from misfire_fleet.collector.policy.campaigns import CampaignGate
from misfire_fleet.collector.policy.near_duplicates import Novelty
from misfire_fleet.collector.policy.quota import QuotaTracker, Refusal
from misfire_fleet.collector.policy.rates import Rates
from misfire_fleet.collector.queue import Incoming, OfferQueue
from misfire_fleet.collector.replies import Replies
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.collector.transfers import Transfers
from misfire_fleet.decoding.headers import IMAGES, VIDEOS
from misfire_fleet.store import Store
from misfire_runtime.errors import MessageError, MisfireError
from misfire_runtime.messages import (
    MAX_JSON_BYTES,
    PROTOCOL_VERSION,
    Busy,
    Declined,
    Offer,
    Rejected,
    Stored,
    decode,
    unpack_embedding,
)
from misfire_runtime.service.logs import Throttle
from misfire_runtime.service.worker import Worker

log = logging.getLogger(__name__)

_BATCH = 256
"""Offers per database query."""
_ID = re.compile(rb'"id"\s*:\s*"([0-9a-f]{64})"')
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_RETRY_S = 3600.0
"""An hour: the longest wait that a `busy` asks for."""
_PENDING_S = 5.0
"""Wait if samples under way decide: most transfers end within seconds."""
_MAX_LOOKED_UP = 256
"""Bounds the query for similar samples, of which there may be thousands."""
_ID_WITHIN = 1024
"""Bytes of an offer that are searched for its id above the rate; the id is among the first fields."""


@dataclass(frozen=True)
class OfferRules:
    """Holds everything besides the store that decides about an offer. All parts are thread-safe."""

    transfers: Transfers
    quotas: QuotaTracker
    novelty: Novelty | None
    campaigns: CampaignGate
    breaker: Breaker
    setbacks: Setbacks
    draining: Callable[[], bool]


class OfferHandler:
    """Answers offers in a thread.

    Args:
        store: tells which samples are stored or deleted.
        settings: limits.
        rules: everything else that decides.
        metrics: counts offers and verdicts.
        replies: sends the verdicts.
    """

    def __init__(
        self,
        store: Store,
        *,
        settings: CollectorSettings,
        rules: OfferRules,
        metrics: CollectorMetrics,
        replies: Replies,
    ) -> None:
        self._store, self._settings = store, settings
        self._rules, self._metrics, self._replies = rules, metrics, replies
        self._offers = OfferQueue(
            max_waiting=settings.max_offers_waiting, max_per_vehicle=settings.max_offers_per_vehicle
        )
        rate = settings.quotas.offers_per_s
        self._rates = None if rate is None else Rates(rate)
        # A second bucket bounds the answers: up to twice the rate they are `busy`, above it there are none.
        self._refusals = None if rate is None else Rates(rate)
        self._batch_at: float | None = None
        self._often = Throttle(log)
        self._worker = Worker(
            "offers", self._run, wake=self._offers.close, on_failure=metrics.failures.labels("desk").inc
        )

    def start(self) -> None:
        """Starts the thread."""
        self._worker.start()

    def put(self, vehicle: str, payload: bytes) -> None:
        """Queues an offer.

        Above the vehicle's rate an offer gets `busy`. Above twice the rate, or if the queue is full, it is
        only counted; the vehicle offers again after its timeout.
        """
        now = time.monotonic()
        wait_s = 0.0 if self._rates is None else self._rates.wait_s(vehicle, now)
        if wait_s > 0:
            self._metrics.dropped.labels("rate").inc()
            if self._refusals is None or self._refusals.wait_s(vehicle, now) > 0:
                return  # a flood: an answer to each would cost more than the offers
            found = _ID.search(payload[:_ID_WITHIN])
            if found is not None:
                sample = found.group(1).decode()
                self._say_busy(vehicle, sample, "rate", "too many offers per second", retry_s=wait_s)
        elif not self._offers.put(Incoming(vehicle, payload, now)):
            self._metrics.dropped.labels("offer").inc()

    @property
    def waiting(self) -> int:
        """Returns the number of queued offers."""
        return len(self._offers)

    def oldest_s(self, now: float) -> float:
        """Returns the age in seconds of the oldest unanswered offer; 0 if there is none."""
        known = [at for at in (self._batch_at, self._offers.oldest_at()) if at is not None]
        return max(0.0, now - min(known)) if known else 0.0

    @property
    def alive(self) -> bool:
        """Returns False if the thread has died."""
        return self._worker.alive

    def close(self) -> None:
        """Answers the queued offers and ends the thread."""
        self._worker.close(timeout_s=10.0)

    def _run(self, _stop: threading.Event) -> None:
        while batch := self._offers.take(_BATCH):
            self._batch_at = min(incoming.arrived_at for incoming in batch)
            with self._worker.guard():
                self.decide(batch)
            self._batch_at = None

    def decide(self, batch: list[Incoming]) -> None:
        """Answers a batch of offers."""
        offers = [offer for offer in map(self._read, batch) if offer is not None]
        if not offers:
            return
        self._metrics.offers.inc(len(offers))
        ids = [offer.id for offer in offers]
        try:
            known, tombstoned = self._store.known_and_tombstoned(
                ids, vehicles=[each.vehicle for each in offers]
            )
        except Exception as error:  # whatever failed, the offers are not the cause: all get `busy`
            if isinstance(error, MisfireError):
                self._often.log(
                    logging.WARNING, "offers_put_off", {"problem": str(error)}, key=type(error).__name__
                )
            else:
                log.exception("offers_put_off", extra={"fields": {"offers": len(offers)}})
            self._rules.breaker.failed("look-up", error)
            for offer in offers:
                self._busy(offer, "store", "the store is not available")
            return
        self._rules.breaker.succeeded("look-up")
        for offer in offers:
            try:
                self._decide(offer, known, tombstoned)
            except Exception:
                self._metrics.failures.labels("desk").inc()
                log.exception("offer_not_judged", extra={"fields": {"sample": offer.id}})
                self._busy(offer, "failed", "this collector could not judge the offer")

    def _read(self, incoming: Incoming) -> Offer | None:
        """Parses an offer. If it is invalid, answers the sender (if an id can be read) and returns None."""
        try:
            offer = decode(Offer, incoming.payload)
            if any(map(_CONTROL.search, (offer.bundle, offer.trigger.name, offer.media_type))):
                raise MessageError("Offer: control characters in bundle, trigger or media type")
            if offer.embedding is not None:
                unpack_embedding(offer.embedding)
        except MessageError as error:
            self._refuse(incoming, _fields(incoming.payload), str(error))
            return None
        if offer.vehicle != incoming.vehicle:
            self._refuse(incoming, {"id": offer.id, "vehicle": offer.vehicle}, "")
            return None
        return offer

    def _refuse(self, incoming: Incoming, fields: dict[str, Any] | None, error: str) -> None:
        """Rejects an offer that breaks the protocol, or puts it off if that proves nothing about the sample.

        Put off are offers that are not JSON (damaged in transit), of another version (this collector is old),
        or of another vehicle (a vehicle was renamed while samples waited).
        """
        self._metrics.malformed.labels("offer").inc()
        sample = _sample_named(incoming.payload, fields)
        if sample is None:
            return
        if fields is None:
            self._put_off(
                incoming.vehicle, sample, "malformed", f"{error}; it may have been damaged on its way"
            )
        elif fields.get("v", PROTOCOL_VERSION) != PROTOCOL_VERSION:
            self._put_off(incoming.vehicle, sample, "version", error)
        elif fields.get("vehicle") != incoming.vehicle:
            other = str(fields.get("vehicle"))[:64]
            reason = f"Offer: vehicle {other} offered under the topic of {incoming.vehicle}"
            self._put_off(incoming.vehicle, sample, "identity", reason)
        else:
            self._replies.answer(incoming.vehicle, Rejected(id=sample, reason=error[:256]), "malformed")

    def _put_off(self, vehicle: str, sample: str, cause: str, reason: str) -> None:
        wait = self._rules.setbacks.add((vehicle, sample), time.monotonic())
        self._replies.answer(vehicle, Busy(id=sample, retry_after_s=wait, reason=reason[:256]), cause)

    def _decide(self, offer: Offer, known: set[str], tombstoned: set[str]) -> None:
        # First, even while draining or out of order: with `stored` a vehicle can free its disk.
        if offer.id in known:
            self._replies.answer(offer.vehicle, Stored(id=offer.id), "again")
        elif offer.id in tombstoned:
            self._decline(offer, "deleted", "the fleet deleted this sample")
        # Size and media type come before every `busy`: waiting would not change them.
        elif offer.size > (limit := self._settings.largest_sample):
            self._reject(offer, "size", f"{offer.size} bytes is above the limit of {limit}")
        elif offer.media_type not in IMAGES | VIDEOS:
            self._reject(offer, "media-type", f"media type {offer.media_type!r} is not taken here")
        elif self._rules.draining():
            self._busy(offer, "draining", "this collector is about to end")
        elif (wait_s := self._rules.setbacks.wait_s((offer.vehicle, offer.id), time.monotonic())) > 0:
            self._busy(
                offer, "failed", "this collector failed with this sample several times", retry_s=wait_s
            )
        elif not self._rules.breaker.admits(time.monotonic()):
            self._busy(offer, "store", "this collector cannot store now")
        else:
            self._consider(offer)

    def _consider(self, offer: Offer) -> None:
        # A sample under way was accepted before: a refusal now would waste the bytes that have come.
        underway = self._rules.transfers.find(offer.vehicle, offer.id) is not None
        now = time.monotonic()
        if not underway and (refusal := self._rules.campaigns.refusal(offer, now)) is not None:
            self._not_wanted(offer, "campaign", refusal)
        elif not underway and (refusal := self._rules.quotas.refusal(offer, now)) is not None:
            self._not_wanted(offer, "quota", refusal)
        elif not underway and (refusal := self._near_duplicate(offer)) is not None:
            self._not_wanted(offer, "near-duplicate", refusal)
        else:
            self._ask(offer)

    def _not_wanted(self, offer: Offer, cause: str, refusal: Refusal) -> None:
        if refusal.final:
            self._decline(offer, cause, refusal.reason)
        elif refusal.retry_s is not None:
            self._busy(offer, cause, refusal.reason, retry_s=refusal.retry_s)
        else:
            self._busy(offer, cause, f"{refusal.reason}, by what is still on its way", retry_s=_PENDING_S)

    def _near_duplicate(self, offer: Offer) -> Refusal | None:
        """Returns a refusal if enough similar samples are stored or under way.

        Only stored ones make it final. Remembered samples that are neither were deleted, and are forgotten.
        """
        novelty, near = self._rules.novelty, self._settings.near_duplicates
        if offer.embedding is None or offer.trigger.random:
            return None
        if (of_campaign := self._rules.campaigns.cluster(offer)) is not None:
            refusal = self._too_many(offer, *of_campaign, wanting="the campaign")
            if refusal is not None:
                return refusal
        if novelty is None or near is None:
            return None
        return self._too_many(offer, novelty, near.copies, wanting="the fleet")

    def _too_many(self, offer: Offer, novelty: Novelty, copies: int, *, wanting: str) -> Refusal | None:
        embedding = unpack_embedding(offer.embedding or "")
        similar = novelty.neighbours(offer.bundle, embedding, besides=offer.id)[: copies + _MAX_LOOKED_UP]
        if len(similar) < copies:
            return None
        stored = self._store.known(similar)
        coming = [sample for sample in similar if sample not in stored and novelty.expects(sample)]
        for gone in set(similar) - stored - set(coming):
            novelty.forget(gone)
        if len(stored) + len(coming) < copies:
            return None
        return Refusal(len(stored) >= copies, f"{wanting} has enough samples like this one")

    def _ask(self, offer: Offer) -> None:
        transfer = self._rules.transfers.open(offer, time.monotonic())
        if transfer == "full":
            self._busy(offer, "room", "too many transfers")
        elif transfer == "share":
            self._busy(offer, "share", "this vehicle holds its share of all transfers")
        elif not transfer.finishing:
            # Counted when requested, not when stored: offers at the same time must not all pass.
            self._rules.quotas.accept(offer)
            self._rules.campaigns.accept(offer)
            of_campaign = self._rules.campaigns.cluster(offer)
            memories = [self._rules.novelty, None if of_campaign is None else of_campaign[0]]
            for novelty in memories:
                if novelty is not None and offer.embedding is not None:
                    embedding = unpack_embedding(offer.embedding)
                    novelty.remember(offer.bundle, offer.id, embedding, stored=False)
            self._replies.send(offer.vehicle, offer.id, offset=transfer.received)

    def _decline(self, offer: Offer, cause: str, reason: str) -> None:
        self._replies.answer(offer.vehicle, Declined(id=offer.id, reason=f"{cause}: {reason}"[:256]), cause)

    def _reject(self, offer: Offer, cause: str, reason: str) -> None:
        self._replies.answer(offer.vehicle, Rejected(id=offer.id, reason=f"{cause}: {reason}"[:256]), cause)

    def _busy(self, offer: Offer, cause: str, reason: str, *, retry_s: float | None = None) -> None:
        """Answers `busy`; without `retry_s`, the wait grows with the number of open transfers."""
        if retry_s is None:
            load = len(self._rules.transfers) / self._settings.max_transfers
            # From 1 s when idle to 5 s when full: the fuller, the later vehicles come back.
            retry_s = 1.0 + 4.0 * load
        self._say_busy(offer.vehicle, offer.id, cause, reason, retry_s=retry_s)

    def _say_busy(self, vehicle: str, sample: str, cause: str, reason: str, *, retry_s: float) -> None:
        """Answers `busy` with a wait of one to two times `retry_s`."""
        # Jitter: otherwise all vehicles that were refused together would come back together.
        wait = min(_MAX_RETRY_S, retry_s * random.uniform(1.0, 2.0))
        self._replies.answer(vehicle, Busy(id=sample, retry_after_s=wait, reason=reason), cause)


def _fields(payload: bytes) -> dict[str, Any] | None:
    """Returns the payload's fields, or None if it is not a JSON object."""
    try:
        fields = json.loads(payload) if len(payload) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _sample_named(payload: bytes, fields: dict[str, Any] | None) -> str | None:
    """Returns the sample id in an invalid offer, so that its sender gets an answer; None if there is none."""
    if fields is not None:
        named = fields.get("id")
        return named if isinstance(named, str) and re.fullmatch(r"[0-9a-f]{64}", named) else None
    found = _ID.search(payload[:MAX_JSON_BYTES])
    return None if found is None else found.group(1).decode()
