"""Finds what a bundle's scores should look like: its manifest's quantiles if known, else its first days."""

from __future__ import annotations

import io
import logging
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from misfire_fleet.store import Store
from misfire_fleet.store.curated import candidates
from misfire_fleet.truth.bins import Bins, deciles
from misfire_fleet.truth.intervals import Array
from misfire_fleet.truth.rollups import Step
from misfire_runtime.bundle import MANIFEST, Manifest
from misfire_runtime.errors import MisfireError

log = logging.getLogger(__name__)

FIRST_S = 2 * 86_400
"""Length of the first days of a bundle that is not published."""
LEVELS = (0.5, 0.9, 0.99)
_MOST = 64
"""Manifests that are kept."""


@dataclass(frozen=True)
class Reference:
    """Holds the expected distribution of a score.

    Attributes:
        source: "calibration" (the manifest's hold-out), or "first days".
        quantiles: at `LEVELS`.
        edges: where PSI cuts scores, [9].
        below: share of frames at or below each edge, [9].
        ends_at: end of the first days, seconds since 1970; None for a calibration.
    """

    source: str
    quantiles: tuple[float, ...]
    edges: Array
    below: Array
    ends_at: int | None = None


class Calibrations:
    """Reads the manifests of published bundles, once each: an archive may be large."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[str, Manifest | None] = {}

    def reference(self, bundle: str, score: str, steps: Sequence[Step]) -> Reference | None:
        """Returns the reference of a bundle's score; None if nothing is known of it.

        Args:
            bundle: `name@version`.
            score: its name.
            steps: all frames of the bundle, oldest first, for the first days.
        """
        manifest = self._manifest(bundle)
        for spec in () if manifest is None else manifest.scores:
            if spec.name == score:
                table = spec.calibration.quantiles
                levels, values = np.array(table.levels), np.array(table.values)
                edges = np.interp(deciles(), levels, values)
                # Of equal values the highest level: so many frames are at or below.
                below = np.array([levels[np.searchsorted(values, edge, side="right") - 1] for edge in edges])
                below = np.maximum(below, np.interp(edges, values, levels))
                found = tuple(float(q) for q in np.interp(LEVELS, levels, values))
                return Reference("calibration", found, edges, below)
        return _first_days(steps)

    def _manifest(self, bundle: str) -> Manifest | None:
        published = {row.bundle: row for row in candidates.published(self._store.database)}
        row = published.get(bundle)
        if row is None:
            return None
        with self._lock:
            if row.sha256 not in self._known:
                if len(self._known) >= _MOST:
                    self._known.clear()
                try:
                    self._known[row.sha256] = _read(candidates.archive_bytes(self._store.blobs, row))
                except (MisfireError, tarfile.TarError, KeyError, ValueError) as error:
                    log.warning(
                        "manifest_not_read", extra={"fields": {"bundle": bundle, "problem": str(error)}}
                    )
                    self._known[row.sha256] = None
            return self._known[row.sha256]


def _read(archive: bytes) -> Manifest:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        source = tar.extractfile(MANIFEST)
        return Manifest.model_validate_json(b"" if source is None else source.read())


def _first_days(steps: Sequence[Step]) -> Reference | None:
    if not steps:
        return None
    ends = steps[0].begins + FIRST_S
    found = Bins()
    for step in steps:
        if step.begins < ends:
            found.merge(step.bins)
    edges = found.quantiles(deciles())
    if edges is None:
        return None
    return Reference(
        "first days", tuple(found.quantiles(LEVELS) or ()), np.array(edges), found.below(edges), ends
    )
