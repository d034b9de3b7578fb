"""Decides about samples of campaigns: ended, paused, full, without the privacy it requires, seen too often.

Campaigns and their counts are read from the store periodically, because other collectors store samples too;
what this collector accepted since then is added. Only what is durable declines for good: an ended campaign
never runs again, and stored samples are enough of a reason. Else the vehicle gets `busy` and offers again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select

from misfire_fleet.campaigns.ledger import Campaign, CampaignLedger, Progress
from misfire_fleet.campaigns.spec import trigger_of
from misfire_fleet.collector.policy.near_duplicates import Novelty
from misfire_fleet.collector.policy.quota import STALE_S, Refusal
from misfire_fleet.collector.settings import NearDuplicates
from misfire_fleet.store import Store
from misfire_fleet.store.schema import samples
from misfire_fleet.store.store import vector
from misfire_runtime.messages import Offer
from misfire_runtime.triggers.campaigns import PREFIX

ACTOR = "collector"
"""Who ends a campaign that is full or past, in the audit log."""
_MOST = 10_000
"""Campaigns that are kept in memory; samples of an older one that ended are taken as any other."""
_REMEMBERED = 20_000
_MOST_STRANGERS = 1_000
"""Bounds memory: the names are foreign."""
_PAUSED_S = 1800.0
"""A paused campaign may start again at any time, so its samples wait in the spool."""


@dataclass
class _Known:
    campaign: Campaign
    stored: Progress = field(default_factory=Progress)
    novelty: Novelty | None = None
    seen_seq: int = 0


class CampaignGate:
    """Holds the campaigns. Thread-safe. Times are monotonic seconds, passed by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._accepted: dict[str, tuple[str, int, bool]] = {}
        """Campaign, bytes, and whether it is stored, by sample, since the last refresh."""
        self._refreshed_at: float | None = None
        self._strangers: dict[str, float] = {}
        """When a campaign that is not known was first named: it may have started after the last refresh."""

    def refresh(self, store: Store, *, now: float) -> None:
        """Ends finished campaigns, and reads all with their counts. Raises StoreUnavailableError."""
        ledger = CampaignLedger(store)
        ledger.end_finished(actor=ACTOR)
        fresh = {each.spec.trigger: _Known(each) for each in ledger.listed(limit=_MOST)}
        active = [
            each.campaign.name for each in fresh.values() if each.campaign.state in ("running", "paused")
        ]
        for name, progress in ledger.progress_of(active).items():
            fresh[trigger_of(name)].stored = progress
        with self._lock:
            waiting = [sample for sample, (_name, _size, stored) in self._accepted.items() if stored]
        # Looked up after the counts: in the other order, a sample stored in between would count twice.
        counted = store.known(waiting)
        with self._lock:
            for trigger, known in fresh.items():
                before = self._known.get(trigger)
                if before is not None:
                    known.novelty, known.seen_seq = before.novelty, before.seen_seq
            self._known, self._refreshed_at = fresh, now
            self._strangers = {name: at for name, at in self._strangers.items() if at > now - STALE_S}
            for sample in counted:
                self._accepted.pop(sample, None)
        for known in fresh.values():
            if known.campaign.state == "running" and known.campaign.spec.how_much.per_cluster is not None:
                _remember(known, store)

    def refusal(self, offer: Offer, now: float) -> Refusal | None:
        """Returns why the sample of a campaign is not wanted; None if it is, or is no campaign's."""
        if not offer.trigger.name.startswith(PREFIX):
            return None
        with self._lock:
            known = self._known.get(offer.trigger.name)
            if known is None:
                return self._unknown(offer.trigger.name, now)
            fresh = [
                (size, stored)
                for sample, (trigger, size, stored) in self._accepted.items()
                if trigger == offer.trigger.name and sample != offer.id
            ]
            current = self._refreshed_at is not None and now - self._refreshed_at < STALE_S
        refusal = _unfit(known.campaign, offer)
        if refusal is not None:
            return refusal
        campaign = known.campaign
        reason = _excess(campaign, known.stored, offer.size, fresh)
        if reason is None:
            return None
        alone = _excess(campaign, known.stored, offer.size, [each for each in fresh if each[1]])
        return Refusal(current and alone is not None, reason)

    def _unknown(self, trigger: str, now: float) -> Refusal | None:
        """Puts off the samples of a campaign that the next refresh may know; takes them if it does not."""
        if len(self._strangers) >= _MOST_STRANGERS:
            return None
        seen = self._strangers.setdefault(trigger, now)
        if self._refreshed_at is not None and self._refreshed_at > seen:
            return None
        return Refusal(False, f"{trigger[:64]} is not known here yet")

    def cluster(self, offer: Offer) -> tuple[Novelty, int] | None:
        """Returns the memory of near-duplicates that an offer is compared with, and how many are wanted."""
        with self._lock:
            known = self._known.get(offer.trigger.name)
        if known is None or known.novelty is None:
            return None
        copies = known.campaign.spec.how_much.per_cluster
        return None if copies is None else (known.novelty, copies)

    def accept(self, offer: Offer) -> None:
        """Counts an accepted offer of a campaign."""
        if offer.trigger.name.startswith(PREFIX):
            with self._lock:
                self._accepted.setdefault(offer.id, (offer.trigger.name, offer.size, False))

    def stored(self, sample: str) -> None:
        """Marks an accepted sample as stored."""
        with self._lock:
            if sample in self._accepted:
                self._accepted[sample] = (*self._accepted[sample][:2], True)
            novelties = self._novelties()
        for novelty in novelties:
            novelty.arrived(sample)

    def given_up(self, sample: str) -> None:
        """Removes an accepted sample that was not stored."""
        with self._lock:
            self._accepted.pop(sample, None)
            novelties = self._novelties()
        for novelty in novelties:
            novelty.forget(sample)

    def _novelties(self) -> list[Novelty]:
        return [known.novelty for known in self._known.values() if known.novelty is not None]


def _unfit(campaign: Campaign, offer: Offer) -> Refusal | None:
    """Returns why a campaign takes no sample, or not this one."""
    spec = campaign.spec
    missing = sorted(set(spec.privacy) - set(offer.privacy))
    if missing:
        return Refusal(True, f"campaign {spec.name} requires {', '.join(missing)}"[:200])
    if campaign.state == "ended":
        return Refusal(True, f"campaign {spec.name} has ended: {campaign.reason}"[:200])
    if campaign.state != "running":
        return Refusal(False, f"campaign {spec.name} is {campaign.state}", retry_s=_PAUSED_S)
    return None


def _excess(campaign: Campaign, stored: Progress, size: int, fresh: Sequence[tuple[int, bool]]) -> str | None:
    most = campaign.spec.how_much
    if most.samples is not None and stored.samples + len(fresh) >= most.samples:
        return f"campaign {campaign.name} has its {most.samples} samples"
    if most.bytes is not None and stored.bytes + sum(each[0] for each in fresh) + size > most.bytes:
        return f"campaign {campaign.name} has no room left in its {most.bytes} bytes"
    return None


def _remember(known: _Known, store: Store) -> None:
    """Reads the embeddings of a campaign's samples that are new since the last time."""
    most = known.campaign.spec.how_much
    if known.novelty is None:
        near = NearDuplicates(
            similarity=most.similarity, copies=most.per_cluster or 1, remembered=_REMEMBERED
        )
        known.novelty = Novelty(near)
    columns = samples.c
    query = (
        select(columns.seq, columns.id, columns.bundle, columns.embedding)
        .where(columns.trigger == known.campaign.spec.trigger, columns.seq > known.seen_seq)
        .where(columns.embedding.is_not(None))
        .order_by(columns.seq.desc())
        .limit(_REMEMBERED)
    )
    with store.database.read() as connection:
        rows = connection.execute(query).all()
    for row in reversed(rows):
        known.novelty.remember(row.bundle, row.id, vector(row.embedding))
        known.seen_seq = max(known.seen_seq, row.seq)
