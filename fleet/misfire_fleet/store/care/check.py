"""Compares the database with the blob store (rows, blobs, offers, ledger), and repairs what can be repaired.

`check` only reads. It lists the blobs first and the rows afterwards, so samples that arrive meanwhile are not
reported. It uses about 150 bytes of memory per blob.
`repair` adds what one side has and the other lacks. It removes only blobs of samples that are deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, select, update

from misfire_fleet.errors import SampleGoneError, StoreUnavailableError
from misfire_fleet.store.care.integrity import integrity
from misfire_fleet.store.curated import candidates, snapshots
from misfire_fleet.store.labels import known_classes
from misfire_fleet.store.offers import OfferRecord, group_of, parse_record, row_of, split_group
from misfire_fleet.store.rows import sample_of
from misfire_fleet.store.schema import holds, samples, tombstones
from misfire_fleet.store.store import Store
from misfire_runtime.clock import wall_time

MAX_EXAMPLES = 5
_ON_ITS_WAY_S = 600.0
"""Seconds. A younger blob without a row may belong to a group that is being committed."""
_GROUP = 500
"""Ids per query and rows per batch."""
PROBLEMS = {
    "database_damaged": "the database is damaged: restore a backup, or misfire fleet rebuild",
    "rows_without_blob": "the bytes are lost; delete the rows with misfire fleet delete --sample",
    "blobs_without_row": "their offers are here: --repair adds the rows",
    "blobs_without_offer": "no row and no offer: nothing is known of them but their bytes",
    "rows_without_offer": "could not be built again: --repair writes their offers",
    "wrong_size": "the blob has not the size that the row says",
    "wrong_hash": "the bytes are not those whose hash is their name",
    "not_removed": "deleted, but the blob is still here: --repair removes it",
    "not_in_ledger": "deletions, holds and classes that a rebuild would forget: --repair notes them",
    "labels_without_document": "labels that a rebuild would forget: --repair writes their documents",
    "labels_without_row": "documents of labels that no row names: --repair adds the rows",
    "verdicts_without_document": "verdicts that a rebuild would forget: --repair writes their documents",
    "verdicts_without_row": "documents of verdicts that no row names: --repair adds the rows",
    "snapshots_damaged": "the manifest is lost or altered: misfire fleet snapshot rebuild NAME",
    "snapshots_without_row": "in the ledger and not in the database: --repair adds the rows",
    "bundles_damaged": "the archive is lost or altered: publish the same bundle again",
    "bundles_without_row": "gate verdicts and publications only in the ledger: --repair adds the rows",
}


@dataclass
class Check:
    """Holds the findings of a check. `problems` maps a kind (see PROBLEMS) to ids or sentences."""

    deep: bool
    rows: int = 0
    blobs: int = 0
    bytes: int = 0
    problems: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in PROBLEMS})

    @property
    def sound(self) -> bool:
        """Returns True if there is no problem."""
        return not any(self.problems.values())

    def add(self, kind: str, what: str) -> None:
        """Adds one problem."""
        self.problems[kind].append(what)

    def to_dict(self) -> dict[str, Any]:
        """Returns an object for JSON: counts, and the first few problems of each kind."""
        return {
            "sound": self.sound,
            "deep": self.deep,
            "rows": self.rows,
            "blobs": self.blobs,
            "bytes": self.bytes,
            "problems": {kind: len(found) for kind, found in self.problems.items()},
            "examples": {kind: found[:MAX_EXAMPLES] for kind, found in self.problems.items() if found},
        }


def check(store: Store, *, deep: bool = False) -> Check:
    """Compares rows, blobs, offers and ledger.

    Args:
        store: the open store; a fleet may be running on it.
        deep: also reads and hashes every blob and reads every offer document.

    Raises:
        StoreUnavailableError: the blob store, or a sound database, does not answer.
    """
    found = Check(deep)
    problems = integrity(store.database)
    found.problems["database_damaged"] += problems
    blobs, young = _blobs(store, found)
    try:
        # A damaged database ends the comparison somewhere; what was found until then is still reported.
        _compare(store, found, blobs, young)
        _compare_ledger(store, found)
        found.problems["labels_without_document"] += store.deletion.labels.lost(deep=deep)
        found.problems["labels_without_row"] += store.deletion.labels.unowned()
        found.problems["verdicts_without_document"] += store.deletion.verdicts.lost(deep=deep)
        found.problems["verdicts_without_row"] += store.deletion.verdicts.unowned()
        found.problems["snapshots_damaged"] += snapshots.damaged(store.database, store.blobs)
        found.problems["snapshots_without_row"] += [
            entry["detail"]["name"] for entry in _missing_snapshots(store)
        ]
        found.problems["bundles_damaged"] += candidates.damaged(store.database, store.blobs)
        found.problems["bundles_without_row"] += [
            f"{entry['action']} {entry['detail'].get('bundle') or entry['detail'].get('candidate')}"
            for entry in _missing_bundles(store)
        ]
    except StoreUnavailableError as error:
        if not problems:
            raise
        found.add("database_damaged", f"the comparison ended early: {error}")
    return found


def _blobs(store: Store, found: Check) -> tuple[dict[bytes, int], set[bytes]]:
    """Returns the sizes of all blobs by id, and the ids of the young ones."""
    # Ids as 32 bytes instead of 64 characters: the dict holds every blob of the store.
    sizes: dict[bytes, int] = {}
    young = set()
    for entry in store.blobs.entries():
        key = bytes.fromhex(entry.sample)
        sizes[key] = entry.size
        found.bytes += entry.size
        if wall_time() - entry.modified_at < _ON_ITS_WAY_S:
            young.add(key)
    found.blobs = len(sizes)
    return sizes, young


def _compare(store: Store, found: Check, blobs: dict[bytes, int], young: set[bytes]) -> None:
    groups = set(store.blobs.documents("offers"))
    owned = set()
    lost = []
    for row in _rows(store):
        found.rows += 1
        size = blobs.pop(bytes.fromhex(row.id), None)
        if size is None:
            lost.append(row.id)
        elif size != row.size:
            found.add("wrong_size", row.id)
        elif found.deep and not _hash_fits(store, row.id):
            found.add("wrong_hash", row.id)
        if row.offers is None or row.offers not in groups:
            found.add("rows_without_offer", row.id)
        else:
            owned.add(row.offers)
    # A sample may have been stored or deleted during this loop, so suspects are looked up again.
    still, _ = _met(store, lost)
    found.problems["rows_without_blob"] += [
        key for key in lost if key in still and not store.blobs.exists(key)
    ]
    if found.deep:
        found.problems["rows_without_offer"] += _unrecorded(store, owned)
    _judge_rest(store, found, [key.hex() for key in blobs], young)


def _judge_rest(store: Store, found: Check, rest: list[str], young: set[bytes]) -> None:
    """Classifies the blobs without a row: being committed, deleted, or orphans with or without an offer."""
    known, tombstoned = _met(store, rest)
    found.problems["not_removed"] += sorted(tombstoned)
    orphans = {key for key in rest if key not in known | tombstoned and bytes.fromhex(key) not in young}
    if orphans:
        offered = {key for name in store.blobs.documents("offers") for key in _lines(store, name)}
        found.problems["blobs_without_row"] += sorted(orphans & offered)
        found.problems["blobs_without_offer"] += sorted(orphans - offered)


def _met(store: Store, ids: Sequence[str]) -> tuple[set[str], set[str]]:
    """Returns the ids that are stored and the ids that are deleted."""
    known: set[str] = set()
    tombstoned: set[str] = set()
    for start in range(0, len(ids), _GROUP):
        here, gone = store.known_and_tombstoned(ids[start : start + _GROUP])
        known |= here
        tombstoned |= gone
    return known, tombstoned


def _unrecorded(store: Store, owned: set[str]) -> list[str]:
    """Returns the ids of rows whose offer document exists and has no record of them."""
    missing = []
    for name in sorted(owned):
        lines = _lines(store, name)
        with store.database.read() as connection:
            asked = connection.scalars(select(samples.c.id).where(samples.c.offers == name))
            missing += [key for key in asked if key not in lines]
    return missing


def _compare_ledger(store: Store, found: Check) -> None:
    noted, held, named = store.deletion.ledger.noted()
    with store.database.read() as connection:
        tombstoned = connection.scalars(select(tombstones.c.id).execution_options(yield_per=_GROUP))
        found.problems["not_in_ledger"] += [key for key in tombstoned if key not in noted]
        names = connection.scalars(select(holds.c.name))
        found.problems["not_in_ledger"] += [f"hold {name}" for name in names if name not in held]
        unnamed = sorted(known_classes(connection) - named)
        found.problems["not_in_ledger"] += [f"class {name}" for name in unnamed]


def _rows(store: Store) -> Iterator[Any]:
    query = select(samples.c.id, samples.c.size, samples.c.offers)
    with store.database.read() as connection:
        yield from connection.execution_options(yield_per=_GROUP).execute(query)


def _lines(store: Store, name: str) -> dict[str, bytes]:
    try:
        return split_group(store.blobs.document("offers", name))
    except SampleGoneError:
        return {}


def _hash_fits(store: Store, sample: str) -> bool:
    try:
        return hashlib.sha256(store.read_blob(sample)).hexdigest() == sample
    except SampleGoneError:
        return True  # deleted meanwhile; lost blobs are reported as "rows_without_blob"


def repair(store: Store, found: Check) -> dict[str, int]:
    """Repairs the problems in `found` that can be repaired.

    Returns:
        The number of repaired problems by kind.

    Raises:
        StoreUnavailableError: the store stopped answering; repairs made before remain.
    """
    mended = {
        "rows_without_offer": _write_offers(store, found.problems["rows_without_offer"]),
        "blobs_without_row": add_rows(store, set(found.problems["blobs_without_row"])),
        "not_in_ledger": _note_missing(store),
        "labels_without_document": store.deletion.labels.write_again(
            found.problems["labels_without_document"]
        ),
        "labels_without_row": store.deletion.labels.restore(found.problems["labels_without_row"]),
        "verdicts_without_document": store.deletion.verdicts.write_again(
            found.problems["verdicts_without_document"]
        ),
        "verdicts_without_row": store.deletion.verdicts.restore(found.problems["verdicts_without_row"]),
        "snapshots_without_row": _restore_snapshots(store),
        "bundles_without_row": _restore_bundles(store),
    }
    store.deletion.doom(found.problems["not_removed"])
    mended["not_removed"] = store.deletion.purge()
    return mended


def _write_offers(store: Store, ids: Sequence[str]) -> int:
    written = 0
    for start in range(0, len(ids), _GROUP):
        query = select(samples).where(samples.c.id.in_(ids[start : start + _GROUP])).order_by(samples.c.seq)
        with store.deletion.groups.alone() as connection:
            rows = connection.execute(query).all()
            if not rows:
                continue
            group = group_of(map(_record_of, rows))
            # The document before the rows that name it.
            store.blobs.keep(group)
            keys = [row.id for row in rows]
            connection.execute(update(samples).where(samples.c.id.in_(keys)).values(offers=group.name))
            written += len(rows)
    return written


def _record_of(row: Row[Any]) -> OfferRecord:
    return OfferRecord.model_construct(
        v=1,
        stored_at=row.stored_at,
        collector=row.collector,
        width=row.width,
        height=row.height,
        offer=sample_of(row).offer,
    )


def _missing_snapshots(store: Store) -> list[Mapping[str, Any]]:
    return snapshots.missing(store.database, store.deletion.ledger.entries())


def _restore_snapshots(store: Store) -> int:
    added = 0
    for entry in _missing_snapshots(store):
        with store.deletion.groups.alone() as connection:
            added += snapshots.restore(connection, store.blobs, entry)
    return added


def _missing_bundles(store: Store) -> list[Mapping[str, Any]]:
    return candidates.missing(store.database, store.deletion.ledger.entries())


def _restore_bundles(store: Store) -> int:
    entries = _missing_bundles(store)
    for entry in entries:
        with store.deletion.groups.alone() as connection:
            candidates.restore(store.database, connection, entry)
    return len(entries)


def add_rows(store: Store, wanted: set[str] | None = None) -> int:
    """Adds a row for each offer record that has a blob and no row. A deleted sample gets no row.

    Args:
        store: the open store.
        wanted: ids to add; None adds all.

    Returns:
        The number of added rows.
    """
    # Oldest group first: `seq` counts up with each inserted row, and the console sorts by it.
    order = []
    for name in store.blobs.documents("offers"):
        records = _records(store, name, wanted)
        if records:
            order.append((records[0].stored_at, name))
    added = 0
    for _, name in sorted(order):
        rows = [
            row_of(record, offers=name)
            for record in _records(store, name, wanted)
            # A row must never be visible without its blob.
            if store.blobs.exists(record.offer.id)
        ]
        with store.database.write() as connection:
            ids = store.database.ids([row["id"] for row in rows])
            # In the transaction of the insert: a deletion at the same time must not be undone.
            gone = set(connection.scalars(store.database.among(tombstones), ids))
            fresh = [row for row in rows if row["id"] not in gone]
            added += len(store.database.insert_new(connection, samples, fresh))
    return added


def _records(store: Store, name: str, wanted: set[str] | None) -> list[OfferRecord]:
    """Returns the records of an offer document, oldest first."""
    lines = _lines(store, name).items()
    records = [parse_record(line) for key, line in lines if wanted is None or key in wanted]
    return sorted(records, key=lambda record: record.stored_at)


def _note_missing(store: Store) -> int:
    noted, held, named = store.deletion.ledger.noted()
    with store.database.read() as connection:
        unnamed = sorted(known_classes(connection) - named)
        graves = [dict(row) for row in connection.execute(select(tombstones)).mappings()]
        covered = [dict(row) for row in connection.execute(select(holds)).mappings()]
    graves = [grave for grave in graves if grave["id"] not in noted]
    covered = [row for row in covered if row["name"] not in held]
    for start in range(0, len(graves), _GROUP):
        store.deletion.ledger.note(action="tombstones", tombstones=graves[start : start + _GROUP])
    for row in covered:
        store.deletion.ledger.note(action="hold", detail=row)
    if unnamed:
        store.deletion.ledger.note(action="classes", actor="repair", detail={"names": unnamed})
    return len(graves) + len(covered) + len(unnamed)
