"""Reads what leaves for a label tool out of the store: samples, their labels, and the vehicles' answers.

store + filter --pages of the database, by sample id--> ExportItem, one after another
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from sqlalchemy import select

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.labels.answers import answer_of
from misfire_fleet.labels.content import LabelRecord
from misfire_fleet.labels.formats.base import ENDINGS, ExportItem
from misfire_fleet.labels.ledger import record_of
from misfire_fleet.store import Store
from misfire_fleet.store.labels import newest_label
from misfire_fleet.store.records import ANY, SampleFilter, StoredSample
from misfire_fleet.store.rows import sample_of
from misfire_fleet.store.schema import labels, samples, snapshot_samples
from misfire_fleet.store.store import conditions_of
from misfire_fleet.store.verdicts import verdicts_of

PAGE = 200
_SPLITS = {"train": "train", "holdout": "val", "val": "val", "test": "test"}
"""The words of label formats for the sides of a snapshot."""


def export_items(
    store: Store,
    filters: SampleFilter = ANY,
    *,
    pictures: bool = True,
    up_to: float | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[ExportItem]:
    """Yields the pictures that match, by sample id, each with its label; memory is one page and one picture.

    Args:
        store: of the samples.
        filters: select samples. With a snapshot, each item has its side, and the label that it had then.
        pictures: reads each picture's bytes ahead, so that one deleted meanwhile is left out as a whole.
        up_to: ignores labels that were recorded later, seconds since 1970.
        left_out: counts what is not yielded, by reason.
    """
    counts = Counter[str]() if left_out is None else left_out
    query = select(samples).where(*conditions_of(filters, up_to=up_to)).order_by(samples.c.id).limit(PAGE)
    after = ""
    while True:
        with store.database.read() as connection:
            rows = [sample_of(row) for row in connection.execute(query.where(samples.c.id > after))]
        ids = [sample.id for sample in rows]
        sides, hashes = _in_snapshot(store, ids, filters.snapshot)
        records = labels_of(store, ids, up_to=up_to, contents=hashes)
        judged = _verdicts_of(store, ids)
        for sample in rows:
            why = _not_a_picture(sample)
            if why:
                counts[why] += 1
                continue
            try:
                read = _read_ahead(store, sample.id) if pictures else _reader(store, sample.id)
            except SampleGoneError:
                counts["samples that were deleted meanwhile"] += 1
                continue
            yield export_item(
                sample,
                read=read,
                record=records.get(sample.id),
                split=sides.get(sample.id, ""),
                verdict=judged.get(sample.id, ""),
            )
        if len(rows) < PAGE:
            return
        after = ids[-1]


def export_item(
    sample: StoredSample,
    *,
    read: Callable[[], bytes],
    record: LabelRecord | None = None,
    split: str = "",
    verdict: str = "",
) -> ExportItem:
    """Returns a stored picture as an item. `read` returns its bytes."""
    offer = sample.offer
    return ExportItem(
        sample=sample.id,
        media_type=sample.media_type,
        width=sample.width,
        height=sample.height,
        vehicle=sample.vehicle,
        bundle=sample.bundle,
        captured_at=sample.captured_at,
        trigger=sample.trigger,
        read=read,
        reason=offer.trigger.reason,
        random=sample.random,
        percentile=sample.percentile,
        scores=sample.scores,
        percentiles=sample.percentiles,
        context=offer.context,
        answer=answer_of(sample),
        record=record,
        split=split,
        verdict=verdict,
    )


def _verdicts_of(store: Store, ids: Sequence[str]) -> dict[str, str]:
    with store.database.read() as connection:
        return {key: row["verdict"] for key, row in verdicts_of(connection, ids).items()}


def labels_of(
    store: Store,
    ids: Sequence[str],
    *,
    up_to: float | None = None,
    contents: Mapping[str, str] | None = None,
) -> dict[str, LabelRecord]:
    """Returns the labels of a page of samples by id.

    Args:
        store: of the samples.
        ids: at most some hundred.
        up_to: ignores labels that were recorded later, seconds since 1970.
        contents: hash of the content that is wanted instead of the newest, by sample id.
    """
    query = select(labels).join(samples, labels.c.sample == samples.c.id).where(labels.c.sample.in_(ids))
    if contents:
        query = query.where(labels.c.content_hash.in_(set(contents.values()))).order_by(labels.c.at)
    else:
        query = query.where(labels.c.seq == newest_label(up_to=up_to))
    with store.database.read() as connection:
        rows = connection.execute(query).mappings().all()
    return {
        row["sample"]: record_of(row)
        for row in rows
        if not contents or contents.get(row["sample"]) == row["content_hash"]
    }


def _in_snapshot(store: Store, ids: Sequence[str], name: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the splits, and the hashes of the labels that a snapshot has, by sample id."""
    if name is None:
        return {}, {}
    columns = snapshot_samples.c.sample, snapshot_samples.c.side, snapshot_samples.c.label
    query = select(*columns).where(snapshot_samples.c.snapshot == name, snapshot_samples.c.sample.in_(ids))
    with store.database.read() as connection:
        rows = connection.execute(query).all()
    return {row.sample: _SPLITS.get(row.side, "train") for row in rows}, {
        row.sample: row.label for row in rows
    }


def _not_a_picture(sample: StoredSample) -> str:
    if sample.unreadable:
        return "samples whose row is damaged"
    if sample.media_type not in ENDINGS:
        return f"clips and other uploads that are no picture ({sample.media_type[:40]})"
    return "" if sample.width > 0 and sample.height > 0 else "samples without a size"


def _read_ahead(store: Store, sample: str) -> Callable[[], bytes]:
    data = store.read_blob(sample)
    return lambda: data


def _reader(store: Store, sample: str) -> Callable[[], bytes]:
    return lambda: store.read_blob(sample)
