"""Keeps the gallery's columns up to date with the store, and answers from them.

    store --newest rows at once, older ones in the background--> Columns, Vectors --view--> a query's answer

Each request reads what was stored, judged and labelled since the last one. Rows that were deleted, or that
PostgreSQL committed out of order, are found by comparing the number of rows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json
from sqlalchemy import Connection, Row, Select, func, select

from misfire_fleet.gallery.columns import VERDICTS, Columns, View
from misfire_fleet.gallery.duplicates import Leaders
from misfire_fleet.gallery.vectors import Vectors
from misfire_fleet.store import Store
from misfire_fleet.store.database import one_of
from misfire_fleet.store.labels import newest_label
from misfire_fleet.store.schema import label_names, labels, samples, verdicts
from misfire_fleet.store.verdicts import verdicts_of
from misfire_runtime.errors import MisfireError

log = logging.getLogger(__name__)

_AT_ONCE = 2000
"""Rows that one request may add; the rest is added in the background."""
_SMALL = 20_000
"""Rows up to which every request counts them; above, every two seconds."""
_COUNT_S = 2.0
_PAUSE_S = 0.01
_MAX_BOXES = 64
_MAX_TEXT = 200
_READ = tuple(
    samples.c[name]
    for name in (
        *("seq", "id", "vehicle", "captured_at", "stored_at", "bundle", "trigger", "random"),
        *("percentile", "size", "embedding", "offer"),
    )
)


@dataclass(frozen=True)
class Similar:
    """Holds what resembles a sample.

    Attributes:
        values: cosine similarity of each row of the view; NaN if it cannot be compared.
        comparable: rows of the same bundle with an embedding of this size.
        of: rows of the same bundle.
    """

    values: NDArray[np.float32]
    comparable: int
    of: int


class GalleryIndex:
    """Holds the columns and vectors of one store. Thread-safe.

    Args:
        store: the open store.
        folder: where vectors are kept from one start to the next; None keeps them in memory.
        on_deleted: called, in a thread of its own, after samples were found deleted, and after the start.
    """

    def __init__(
        self, store: Store, *, folder: Path | None = None, on_deleted: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._on_deleted = on_deleted
        self._columns = Columns()
        self._vectors = Vectors(folder)
        self._leaders: dict[tuple[int, int], Leaders] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._builder: threading.Thread | None = None
        self._complete = False
        self._version = 0
        self._counted_at = 0.0
        self._judged_to = self._labelled_to = -1.0
        self._view: View | None = None

    def view(self) -> View:
        """Returns the columns as of now. Older rows of a large store may still be missing (`complete`).

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        with self._lock:
            if self._view is None:
                self._begin()
            else:
                self._follow()
            assert self._view is not None
            return self._view

    def similar(self, view: View, seq: int) -> Similar | None:
        """Returns how similar all rows are to the one with this `seq`; None if it has no embedding."""
        place = view.places([seq])
        if not len(place) or view.columns["slot"][place[0]] < 0:
            return None
        bundle, size = view.columns["bundle"][place[0]], int(view.columns["dimensions"][place[0]])
        same = view.columns["bundle"] == bundle
        which = np.flatnonzero(same & (view.columns["dimensions"] == size))
        vector = self._vectors.read(size, view.columns["slot"][place])[0]
        values = np.full(len(view), np.nan, np.float32)
        values[which] = self._vectors.similarities(size, view.columns["slot"][which], vector)
        return Similar(values, len(which), int(same.sum()))

    def vectors(self, view: View, places: NDArray[Any], dimensions: int) -> NDArray[np.float32]:
        """Returns the unit vectors of rows that have some of this size, [N, D]."""
        return self._vectors.read(dimensions, view.columns["slot"][places])

    def recount(self) -> None:
        """Compares the rows with the store at the next request: some were deleted."""
        self._counted_at = 0.0

    def close(self) -> None:
        """Ends the background thread and writes the vectors."""
        self._stop.set()
        if self._builder is not None:
            self._builder.join(30)
        with self._lock:
            self._vectors.close()

    # --- what was stored

    def _begin(self) -> None:
        with self._store.database.read() as connection:
            self._judged_to, self._labelled_to = _last_said(connection)
            rows = connection.execute(select(*_READ).order_by(samples.c.seq.desc()).limit(_AT_ONCE)).all()
            self._add(connection, rows)
        self._complete = len(rows) < _AT_ONCE
        self._seen()
        if not self._complete:
            self._builder = threading.Thread(target=self._build, name="gallery-index", daemon=True)
            self._builder.start()
        else:
            self._vectors.keep(self._columns.rows.column("seq").tolist())
            self._sweep()

    def _build(self) -> None:
        """Adds the older rows, the newest first."""
        failures = 0
        while not self._stop.wait(_PAUSE_S if not failures else min(30.0, 2.0**failures)):
            try:
                with self._lock:
                    if self._older():
                        return
                failures = 0
            except MisfireError as error:
                failures += 1
                log.warning("gallery_waits", extra={"fields": {"why": str(error)}})
            except Exception:
                # Without older rows the gallery still shows the newest ones, and says that some are missing.
                log.exception("gallery_incomplete")
                return

    def _older(self) -> bool:
        """Adds some older rows; returns True if there are no more."""
        seqs = self._columns.rows.column("seq")
        first = int(seqs[0]) if len(seqs) else 0
        query = select(*_READ).where(samples.c.seq < first).order_by(samples.c.seq.desc()).limit(_AT_ONCE)
        with self._store.database.read() as connection:
            rows = connection.execute(query).all()
            self._add(connection, rows)
        self._complete = len(rows) < _AT_ONCE
        if self._complete:
            self._vectors.keep(self._columns.rows.column("seq").tolist())
            self._sweep()
        self._seen()
        return self._complete

    def _follow(self) -> None:
        """Adds what came since the last request."""
        seqs = self._columns.rows.column("seq")
        last = int(seqs[-1]) if len(seqs) else -1
        query = select(*_READ).where(samples.c.seq > last).order_by(samples.c.seq).limit(_AT_ONCE)
        changed = False
        with self._store.database.read() as connection:
            rows = connection.execute(query).all()
            if rows:
                self._add(connection, rows)
                changed = True
            changed |= self._hear(connection)
            if self._complete and self._is_time_to_count(len(rows)):
                changed |= self._compare(connection)
        if changed:
            self._seen()

    def _is_time_to_count(self, added: int) -> bool:
        now = time.monotonic()
        wanted = added < _AT_ONCE and (
            self._columns.rows.count <= _SMALL or now - self._counted_at > _COUNT_S
        )
        if wanted:
            self._counted_at = now
        return wanted

    def _compare(self, connection: Connection) -> bool:
        """Drops deleted rows, and adds those that were committed late; returns True if there were some."""
        count = connection.scalar(select(func.count()).select_from(samples))
        if count == self._columns.rows.count:
            return False
        stored = np.fromiter(connection.scalars(select(samples.c.seq)), np.int64)
        own = self._columns.rows.column("seq")
        gone = ~np.isin(own, stored)
        self._vectors.forget(
            self._columns.rows.column("dimensions")[gone], self._columns.rows.column("slot")[gone]
        )
        if len(self._columns.keep(stored)):
            self._sweep()
        late = stored[~np.isin(stored, own)][:_AT_ONCE]
        if len(late):
            query = select(*_READ).where(one_of(samples.c.seq, late.tolist(), on=connection))
            self._add(connection, connection.execute(query).all())
        return True

    def _sweep(self) -> None:
        """Lets others forget what was deleted, outside of the lock and of the request."""

        def run() -> None:
            try:
                self._on_deleted()
            except (MisfireError, OSError) as error:
                log.warning("deleted_not_forgotten", extra={"fields": {"why": str(error)}})

        threading.Thread(target=run, name="gallery-sweep", daemon=True).start()

    def _seen(self) -> None:
        self._columns.sort()
        self._version += 1
        self._view = self._columns.view(complete=self._complete, version=self._version)

    def _add(self, connection: Connection, rows: Sequence[Row[Any]]) -> None:
        if not rows:
            return
        rows = sorted(rows, key=lambda row: int(row.seq))
        offers = [_offer_of(row.offer) for row in rows]
        columns = self._columns
        seqs = [int(row.seq) for row in rows]
        bundles = columns.numbers("bundle", (_text(row.bundle) for row in rows))
        raw = [row.embedding if isinstance(row.embedding, bytes) else b"" for row in rows]
        dimensions, slots = self._vectors.put(seqs, [_text(row.id) for row in rows], raw)
        values: dict[str, Any] = {
            "seq": seqs,
            "captured_at": [_number(row.captured_at) for row in rows],
            "stored_at": [_number(row.stored_at) for row in rows],
            "vehicle": columns.numbers("vehicle", (_text(row.vehicle) for row in rows)),
            "bundle": bundles,
            "trigger": columns.numbers("trigger", (_text(row.trigger) for row in rows)),
            "random": [bool(row.random) for row in rows],
            "percentile": [_number(row.percentile) for row in rows],
            "size": [row.size if isinstance(row.size, int) and abs(row.size) < 2**62 else 0 for row in rows],
            "dimensions": dimensions,
            "slot": slots,
            "group": self._grouped(np.array(seqs, np.int64), np.array(bundles), dimensions, slots),
        }
        values |= self._scores(offers) | self._context(offers)
        columns.rows.append(len(rows), values)
        self._add_boxes(seqs, offers)
        self._hear_of(connection, [_text(row.id) for row in rows], unsorted=True)

    def _grouped(
        self, seqs: NDArray[np.int64], bundles: NDArray[Any], dimensions: NDArray[Any], slots: NDArray[Any]
    ) -> NDArray[np.int64]:
        groups = np.zeros(len(seqs), np.int64)
        for bundle, size in {(int(b), int(d)) for b, d in zip(bundles, dimensions, strict=True) if d}:
            which = np.flatnonzero((bundles == bundle) & (dimensions == size))
            leaders = self._leaders.setdefault((bundle, size), Leaders(size))
            groups[which] = leaders.assign(self._vectors.read(size, slots[which]), seqs[which])
        return groups

    def _scores(self, offers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, NDArray[np.float64]] = {}
        for key, prefix in (("scores", "score:"), ("percentiles", "level:")):
            for place, offer in enumerate(offers):
                for name, value in _pairs(offer.get(key)):
                    column = prefix + name
                    if column not in found:
                        if not self._columns.score_columns(name):
                            continue
                        found[column] = np.full(len(offers), np.nan)
                    found[column][place] = _number(value)
        return found

    def _context(self, offers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, NDArray[np.int32]] = {}
        for place, offer in enumerate(offers):
            for key, value in _pairs(offer.get("context")):
                column = f"context:{key}"
                if column not in found:
                    if not self._columns.context_column(key):
                        continue
                    found[column] = np.full(len(offers), -1, np.int32)
                found[column][place] = self._columns.names[column].number(context_text(value))
        return found

    def _add_boxes(self, seqs: Sequence[int], offers: Sequence[dict[str, Any]]) -> None:
        rows: dict[str, list[Any]] = defaultdict(list)
        names = self._columns.names["class"]
        for seq, offer in zip(seqs, offers, strict=True):
            prediction = offer.get("prediction")
            listed = prediction.get("boxes") if isinstance(prediction, dict) else None
            for number, box in enumerate(listed[:_MAX_BOXES] if isinstance(listed, list) else (), start=1):
                corners = box.get("box") if isinstance(box, dict) else None
                if not isinstance(corners, list) or len(corners) != 4:
                    continue
                x0, y0, x1, y1 = (_number(value) for value in corners)
                if not (x0 < x1 and y0 < y1 and max(map(abs, (x0, y0, x1, y1))) < 1e6):
                    continue
                rows["seq"].append(seq)
                rows["number"].append(number)
                rows["name"].append(names.number(_text(box.get("class", "?"))))
                rows["p"].append(float(np.clip(_number(box.get("p")), 0, 1)))
                rows["score"].append(_number(box.get("score")))
                for name, value in zip(("x0", "y0", "x1", "y1"), (x0, y0, x1, y1), strict=True):
                    rows[name].append(value)
        if rows:
            self._columns.boxes.append(len(rows["seq"]), rows)

    # --- what people said

    def _hear(self, connection: Connection) -> bool:
        """Reads verdicts and labels that were recorded since the last request."""
        judged_to, labelled_to = _last_said(connection)
        ids: set[str] = set()
        for table, last, known in (
            (verdicts, judged_to, self._judged_to),
            (labels, labelled_to, self._labelled_to),
        ):
            if last > known:
                query = select(table.c.sample).where(table.c.recorded_at > known).distinct()
                ids |= set(connection.scalars(query))
        self._judged_to, self._labelled_to = judged_to, labelled_to
        listed = sorted(ids)
        for start in range(0, len(listed), _AT_ONCE):
            self._hear_of(connection, listed[start : start + _AT_ONCE])
        return bool(ids)

    def _hear_of(self, connection: Connection, ids: Sequence[str], *, unsorted: bool = False) -> None:
        """Reads the verdicts and labels of samples."""
        columns = self._columns
        if unsorted:
            columns.sort()
        said = {table: _named(connection, table, ids) for table in (verdicts, labels)}
        concerned = sorted(said[verdicts] | said[labels])
        if not concerned:
            return
        query = select(samples.c.id, samples.c.seq).where(one_of(samples.c.id, concerned, on=connection))
        seqs: dict[str, int] = {row.id: int(row.seq) for row in connection.execute(query)}
        judged = verdicts_of(connection, concerned)
        newest = select(samples.c.id, newest_label().label("label")).where(
            one_of(samples.c.id, concerned, on=connection)
        )
        label_of = {row.id: row.label for row in connection.execute(newest) if row.label is not None}
        classes = _classes(connection, list(label_of.values()))
        own = columns.rows.column("seq")
        for name, seq in seqs.items():
            place = int(np.searchsorted(own, seq))
            if place == len(own) or own[place] != seq:
                continue
            verdict = judged[name]["verdict"] if name in judged else "none"
            columns.rows.column("verdict")[place] = VERDICTS.index(verdict) if verdict in VERDICTS else 0
            columns.rows.column("labelled")[place] = name in label_of
            named = classes.get(label_of.get(name, -1), [])
            columns.label_names[seq] = tuple(columns.numbers("class", named))


def context_text(value: Any) -> str:
    """Returns a value of the context as text, as it is written in a filter."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, int | float) else _text(value)


def _last_said(connection: Connection) -> tuple[float, float]:
    judged, labelled = (
        connection.scalar(select(func.max(table.c.recorded_at))) for table in (verdicts, labels)
    )
    return float(judged or 0.0), float(labelled or 0.0)


def _named(connection: Connection, table: Any, ids: Sequence[str]) -> set[str]:
    query: Select[Any] = select(table.c.sample).where(one_of(table.c.sample, ids, on=connection)).distinct()
    return set(connection.scalars(query))


def _classes(connection: Connection, seqs: Sequence[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    if seqs:
        query = select(label_names).where(one_of(label_names.c.label, seqs, on=connection))
        for row in connection.execute(query):
            found[row.label].append(row.name)
    return found


def _offer_of(text: Any) -> dict[str, Any]:
    """Returns the document of an offer; an empty one if the row is damaged."""
    try:
        found = from_json(text)
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _pairs(document: Any) -> Iterable[tuple[str, Any]]:
    return document.items() if isinstance(document, dict) else ()


def _text(value: Any) -> str:
    return str(value)[:_MAX_TEXT]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return float("nan")
    return float(value)
