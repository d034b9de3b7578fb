"""Counts the failures that a campaign's uploads found, beside the random stream of the same frames.

campaign (--where), not random --labels, judged by the answer in the offer--> Rates --+
random stream of the same bundle, vehicle and time --likewise--> Rates ---------------+--> quotients
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import func, select

from misfire_fleet.bought.rates import Rates, quotient, rates_of
from misfire_fleet.datasets.splits import GroupBy, keys_of
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.store import Store
from misfire_fleet.store.labels import MACHINES
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.store.schema import samples
from misfire_fleet.store.store import conditions_of
from misfire_fleet.truth.judging import Judge, UnjudgedError
from misfire_runtime.errors import ConfigError
from misfire_train.metrics import Estimate

_PAGE = 500
_DRIVE: tuple[GroupBy, ...] = ("drive",)


@dataclass(frozen=True)
class Stream:
    """Holds what a stream of uploads cost and found. `unjudged`: labels that cannot be judged, by reason."""

    uploads: int
    bytes: int
    rates: Rates
    unjudged: Mapping[str, int]


@dataclass(frozen=True)
class Findings:
    """Holds a campaign beside the random stream, and the quotients of their rates."""

    campaign: Stream
    random: Stream
    per_label: Estimate
    per_gb: Estimate
    notes: tuple[str, ...]


def both_filters(where: SampleFilter) -> tuple[SampleFilter, SampleFilter]:
    """Returns the filters of a campaign and of the random stream beside it.

    Raises ConfigError if the campaign is the random stream itself, or all uploads.
    """
    if where.random:
        raise ConfigError("--where random=yes is the random stream itself; name what a campaign took")
    beside = SampleFilter(
        vehicle=where.vehicle,
        bundle=where.bundle,
        captured_from=where.captured_from,
        captured_to=where.captured_to,
        random=True,
    )
    return replace(where, random=False), beside


def find(
    store: Store, where: SampleFilter, *, judge: Judge, replicates: int = 1000, seed: int = 0
) -> Findings:
    """Returns what a campaign found, beside the random stream.

    Args:
        store: the fleet's store.
        where: what the campaign took.
        judge: the rule of the task.
        replicates: number of resamples.
        seed: of the resamples.

    Raises:
        ConfigError: the campaign is the random stream itself.
        StoreError: one of both has no upload.
    """
    filters = both_filters(where)
    streams = []
    for name, each in zip(("the campaign", "the random stream"), filters, strict=True):
        stream = _stream(store, each, judge=judge, replicates=replicates, seed=seed)
        if not stream.uploads:
            raise StoreError(f"{name} has no upload; is --where right?")
        streams.append(stream)
    campaign, random = streams
    notes = []
    for name, stream in zip(("the campaign's", "the random"), streams, strict=True):
        if stream.rates.labels < stream.uploads:
            notes.append(
                f"{stream.rates.labels} of {stream.uploads} of {name} uploads are labelled and judged: the "
                "rates are those of all of them only if the labelled ones were not chosen by their score."
            )
    return Findings(
        campaign,
        random,
        quotient(campaign.rates.per_label, random.rates.per_label),
        quotient(campaign.rates.per_gb, random.rates.per_gb),
        tuple(notes),
    )


def ids_of(store: Store, where: SampleFilter) -> set[str]:
    """Returns the ids of matching samples."""
    with store.database.read() as connection:
        return set(connection.scalars(select(samples.c.id).where(*conditions_of(where))))


def _stream(store: Store, where: SampleFilter, *, judge: Judge, replicates: int, seed: int) -> Stream:
    query = select(func.count(), func.sum(samples.c.size)).where(*conditions_of(where))
    with store.database.read() as connection:
        uploads, total = connection.execute(query).one()
    unjudged: Counter[str] = Counter()
    rows = list(_judged(store, where, judge, unjudged))
    failed, size, groups = (np.array([row[column] for row in rows]) for column in range(3))
    rates = rates_of(failed.astype(bool), size, groups, replicates=replicates, seed=seed)
    return Stream(int(uploads), int(total or 0), rates, dict(unjudged))


def _judged(
    store: Store, where: SampleFilter, judge: Judge, unjudged: Counter[str]
) -> Iterator[tuple[bool, int, str]]:
    """Yields (failed, bytes, drive) of each sample that a person labelled and that can be judged."""
    page: list[Any] = []
    for record in LabelLedger(store).current(where):
        if record.source in MACHINES:
            unjudged["labelled by machines"] += 1
            continue
        page.append(record)
        if len(page) == _PAGE:
            yield from _judge_page(store, page, judge, unjudged)
            page = []
    yield from _judge_page(store, page, judge, unjudged)


def _judge_page(
    store: Store, page: Sequence[Any], judge: Judge, unjudged: Counter[str]
) -> Iterator[tuple[bool, int, str]]:
    labels = {record.sample: record.label for record in page}
    for sample in store.among(list(labels)):
        try:
            failed = judge.failed_on(sample, labels[sample.id])
        except UnjudgedError as error:
            unjudged[str(error)] += 1
            continue
        keys = keys_of(sample.vehicle, sample.captured_at, sample.offer.model_dump_json(), needed=_DRIVE)
        yield failed, sample.size, keys["drive"]
