"""Reads what a score means in errors: the expected loss by score, from the manifests of published bundles.

A bundle's calibration has, for each score, the mean loss of held-out frames with that score. A score that
counts errors by itself, such as `expected_errors`, needs no table.
"""

from __future__ import annotations

import io
import logging
import math
import tarfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.errors import StoreError
from misfire_fleet.gallery.columns import View
from misfire_fleet.store import Store
from misfire_fleet.store.curated.candidates import archive_bytes, published
from misfire_fleet.store.records import StoredSample
from misfire_runtime.bundle import LossTable, Manifest

log = logging.getLogger(__name__)
COUNTS = {"expected_errors": "errors"}
"""Scores that are the number of errors that a frame is expected to have, and their unit."""
_MANIFEST = "manifest.json"
_UNITS = {"detection": "errors"}


@dataclass(frozen=True)
class Expected:
    """A score's expected loss. unit: "errors", or "loss" in the task's own unit."""

    score: str
    loss: float
    unit: str


@dataclass(frozen=True)
class _Known:
    """What a bundle's manifest says of its scores."""

    task: str
    default: str
    tables: Mapping[str, LossTable]


class Losses:
    """Holds the tables of all published bundles. Thread-safe; reads an archive once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], _Known | None] = {}
        self._by_label: dict[str, _Known] = {}
        self._of_view: tuple[tuple[int, int], NDArray[np.float64]] | None = None

    def refresh(self) -> None:
        """Reads the bundles that were published since. Raises StoreUnavailableError."""
        rows = published(self._store.database)
        with self._lock:
            for row in rows:
                key = (row.bundle, row.sha256)
                if key in self._known:
                    continue
                self._known[key] = found = self._read(row)
                if found is not None:
                    self._by_label[row.bundle] = found

    def of(self, sample: StoredSample) -> list[Expected]:
        """Returns the expected loss of each score of a sample that has one; the bundle's own score first."""
        known = self._by_label.get(sample.bundle)
        found = []
        for name, value in sample.scores.items():
            if known is not None and name in known.tables:
                loss, unit = known.tables[name].expected(value), _UNITS.get(known.task, "loss")
                found.append(Expected(name, loss, unit))
            elif name in COUNTS and value >= 0:
                found.append(Expected(name, value, COUNTS[name]))
        first = known.default if known is not None else ""
        return sorted(found, key=lambda each: (each.score != first, each.score not in COUNTS, each.score))

    def column(self, view: View) -> NDArray[np.float64]:
        """Returns the expected loss of each row by its bundle's own score, NaN if it is not known."""
        key = (view.version, len(self._by_label))
        with self._lock:
            if self._of_view is not None and self._of_view[0] == key:
                return self._of_view[1]
        losses: NDArray[np.float64] = np.full(len(view), np.nan)
        for name in COUNTS:
            if f"score:{name}" in view.columns:
                losses = np.array(view.columns[f"score:{name}"], np.float64)
        for bundle, known in list(self._by_label.items()):
            column = view.columns.get(f"score:{known.default}")
            table = known.tables.get(known.default)
            if column is not None and table is not None:
                rows = view.columns["bundle"] == view.names["bundle"].find(bundle)
                losses[rows] = _interpolated(table, column[rows])
        with self._lock:
            self._of_view = (key, losses)
        return losses

    def _read(self, row: Any) -> _Known | None:
        try:
            with tarfile.open(fileobj=io.BytesIO(archive_bytes(self._store.blobs, row))) as tar:
                source = tar.extractfile(_MANIFEST)
                manifest = Manifest.model_validate_json(b"" if source is None else source.read())
        except (StoreError, tarfile.TarError, KeyError, ValueError) as error:
            fields = {"bundle": row.bundle, "why": str(error)[:200]}
            log.warning("manifest_not_read", extra={"fields": fields})
            return None
        tables = {
            score.name: score.calibration.expected_loss
            for score in manifest.scores
            if score.calibration.expected_loss is not None
        }
        return _Known(manifest.task, manifest.default_score, tables)


def _interpolated(table: LossTable, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns what `LossTable.expected` returns for each score, NaN for NaN."""
    found = np.exp(np.interp(scores, table.scores, [math.log(loss) for loss in table.losses]))
    return np.where(np.isnan(scores), np.nan, found)
