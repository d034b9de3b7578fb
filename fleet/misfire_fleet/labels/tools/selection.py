"""Reads the samples that are to be labelled out of the store: the most suspicious ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, and_, func, literal, or_, select

from misfire_fleet.labels.formats.base import ENDINGS, ExportItem
from misfire_fleet.labels.items import export_item
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.store.rows import sample_of
from misfire_fleet.store.schema import samples
from misfire_fleet.store.store import conditions_of

_PAGE = 1000
"""Rows per query: each one sorts all that match."""


def most_suspicious(
    store: Store, filters: SampleFilter, *, limit: int | None = None, by_id: bool = False
) -> Iterator[ExportItem]:
    """Yields matching pictures by the highest percentile of their scores, highest first.

    Those without a percentile come last, and of two with the same one the older first. Pages begin where the
    last one ended, so samples that arrive meanwhile make no other be told twice or left out.

    Args:
        store: of the samples.
        filters: samples that are wanted.
        limit: ends after this many; None yields all.
        by_id: sorts by id instead, which is as good as by chance.
    """
    rank: ColumnElement[float] = literal(0.0) if by_id else func.coalesce(samples.c.percentile, -1.0)
    tie: ColumnElement[Any] = samples.c.id if by_id else samples.c.seq
    query = (
        select(samples, rank.label("rank"))
        .where(samples.c.media_type.in_(list(ENDINGS)), *conditions_of(filters))
        .order_by(rank.desc(), tie)
    )
    told, page = 0, query
    while True:
        with store.database.read() as connection:
            rows = connection.execute(page.limit(_PAGE)).all()
        for row in rows:
            if limit is not None and told >= limit:
                return
            sample = sample_of(row)
            if not sample.unreadable and sample.width > 0 < sample.height:
                told += 1
                yield export_item(sample, read=_reader(store, sample.id))
        if len(rows) < _PAGE:
            return
        last = rows[-1]
        page = query.where(
            or_(rank < last.rank, and_(rank == last.rank, tie > (last.id if by_id else last.seq)))
        )


def blinded(item: ExportItem) -> ExportItem:
    """Returns an item without what a model thought of it, for labels that must not depend on that."""
    return replace(
        item,
        answer=None,
        percentile=None,
        scores={},
        percentiles={},
        trigger="",
        reason="",
        random=False,
    )


def _reader(store: Store, sample: str) -> Callable[[], bytes]:
    return lambda: store.read_blob(sample)


def count_among(store: Store, ids: Sequence[str], filters: SampleFilter) -> int:
    """Returns how many of at most a thousand samples match."""
    query = select(func.count()).select_from(samples).where(samples.c.id.in_(ids), *conditions_of(filters))
    with store.database.read() as connection:
        return int(connection.scalar(query) or 0)
