"""Reads what a dry run estimates from: sketches of all frames, and the random stream's samples.

telemetry, samples --of the vehicles that are meant, since a time--> Beats by block of time, Drawn

More than can be read in seconds is thinned at random, at a known rate: heartbeats by their number, samples
by their id, which is a hash. Heartbeats have this machine's times, so a vehicle's clock does not matter.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError
from sqlalchemy import func, select

from misfire_fleet.errors import StoreError
from misfire_fleet.store import Store
from misfire_fleet.store.curated import candidates
from misfire_fleet.store.database import one_of
from misfire_fleet.store.schema import samples, telemetry
from misfire_fleet.truth.histogram import Histogram
from misfire_runtime.bundle import Manifest

_MOST_BEATS = 20_000
_MOST_DRAWN = 50_000
_PAGE = 2_000
_STEP = 48_271
"""Scatters consecutive numbers of heartbeats: vehicles report in turns, and every n-th row could be one's."""
_MODULUS = 2_147_483_647


@dataclass
class Beats:
    """Holds scores of all frames by (block or vehicle, bundle, score), and frames by block and vehicle.

    share: of the heartbeats that were read.  first: time of the first one.
    """

    scores: dict[tuple[int | str, str, str], Histogram] = field(default_factory=dict)
    frames: dict[tuple[int, str], float] = field(default_factory=dict)
    share: float = 1.0
    first: float = math.inf
    read: int = 0
    bad: int = 0

    def above(self, block: int, bundle: str, score: str, least: float) -> float:
        """Returns the number of frames at or above a score in a block."""
        found = self.scores.get((block, bundle, score))
        if found is None:
            return 0.0
        values, counts = found.table()
        return float(counts[values >= least].sum()) / self.share

    def names(self) -> dict[str, set[str]]:
        """Returns the scores by bundle."""
        found: dict[str, set[str]] = {}
        for _block, bundle, score in self.scores:
            found.setdefault(bundle, set()).add(score)
        return found

    def merged(self, bundle: str, score: str) -> Histogram | None:
        """Returns all scores of a bundle; None if there are none."""
        parts = [h for (_block, b, s), h in self.scores.items() if (b, s) == (bundle, score)]
        if not parts:
            return None
        whole = Histogram()
        for part in parts:
            whole.merge(part)
        return whole


@dataclass(frozen=True)
class Drawn:
    """Holds a frame of the random stream: its offer, the frames it stands for, when, and how large."""

    id: str
    offer: Mapping[str, Any]
    weight: float
    captured_at: float
    size: int


def first_heard(store: Store, vehicles: Collection[str], since: float) -> float | None:
    """Returns the time of the first heartbeat since then; None if there is none."""
    with store.database.read() as connection:
        query = select(func.min(telemetry.c.received_at)).where(telemetry.c.received_at >= since)
        query = query.where(one_of(telemetry.c.vehicle, list(vehicles), on=connection))
        found = connection.scalar(query)
    return None if found is None else float(found)


def read_beats(
    store: Store,
    vehicles: Collection[str],
    *,
    since: float,
    until: float,
    blocks: int,
    most: int = _MOST_BEATS,
    by_vehicle: bool = False,
) -> Beats:
    """Returns the sketches of these vehicles' heartbeats, by equal blocks of the time between.

    Args:
        store: has the heartbeats.
        vehicles: names.
        since: seconds since 1970, by this machine's clock.
        until: likewise, exclusive.
        blocks: number of blocks.
        most: heartbeats to read; more are thinned.
        by_vehicle: scores by vehicle instead of by block.
    """
    found = Beats()
    columns = telemetry.c
    with store.database.read() as connection:
        meant = one_of(columns.vehicle, list(vehicles), on=connection)
        within = (columns.received_at >= since, columns.received_at < until, meant)
        count = int(connection.scalar(select(func.count()).select_from(telemetry).where(*within)) or 0)
        every = math.ceil(count / most) if count > most else 1
        found.share = 1.0 / every
        query = select(columns.seq, columns.vehicle, columns.received_at, columns.payload).where(*within)
        if every > 1:
            query = query.where((columns.seq * _STEP) % _MODULUS % every == 0)
        for row in connection.execution_options(stream_results=True).execute(query.order_by(columns.seq)):
            block = min(blocks - 1, int((row.received_at - since) / (until - since) * blocks))
            _add_beat(found, row, block, row.vehicle if by_vehicle else block)
    return found


def _add_beat(found: Beats, row: Any, block: int, place: int | str) -> None:
    try:
        beat = json.loads(row.payload)
        bundle, sketches = str(beat.get("bundle", "")), dict(beat.get("sketches") or {})
    except (ValueError, TypeError, AttributeError, RecursionError):
        found.bad += 1
        return
    found.read += 1
    found.first = min(found.first, row.received_at)
    most = 0.0
    for score, text in sketches.items():
        part = found.scores.setdefault((place, bundle, str(score)), Histogram())
        try:
            most = max(most, part.add(str(text)))
        except ValueError:
            found.bad += 1
    key = (block, row.vehicle)
    found.frames[key] = found.frames.get(key, 0.0) + most / found.share


def read_stream(
    store: Store, vehicles: Collection[str], *, since: float, until: float, most: int = _MOST_DRAWN
) -> tuple[list[Drawn], int]:
    """Returns the random stream's frames of these vehicles, and the number whose offers have no rate."""
    columns = samples.c
    drawn: list[Drawn] = []
    unknown = 0
    with store.database.read() as connection:
        meant = one_of(columns.vehicle, list(vehicles), on=connection)
        within = (columns.random, columns.captured_at >= since, columns.captured_at < until, meant)
        count = int(connection.scalar(select(func.count()).select_from(samples).where(*within)) or 0)
        share = min(1.0, most / count) if count else 1.0
        query = select(columns.id, columns.captured_at, columns.size, columns.offer).where(*within)
        if share < 1.0:
            query = query.where(columns.id < f"{int(share * 16**8):08x}")
        for row in connection.execute(query.order_by(columns.id)):
            try:
                offer = json.loads(row.offer)
                rate = (offer.get("trigger") or {}).get("rate")
            except (ValueError, TypeError, AttributeError, RecursionError):
                continue
            if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
                unknown += 1
                continue
            drawn.append(Drawn(row.id, offer, 1 / (rate * share), float(row.captured_at), int(row.size)))
    return drawn, unknown


def sizes(
    store: Store, vehicles: Collection[str], *, trigger: str | None = None, limit: int = 2000
) -> list[int]:
    """Returns the sizes in bytes of the newest samples of these vehicles."""
    with store.database.read() as connection:
        query = select(samples.c.size).where(one_of(samples.c.vehicle, list(vehicles), on=connection))
        if trigger is not None:
            query = query.where(samples.c.trigger == trigger)
        return [int(size) for size in connection.scalars(query.order_by(samples.c.seq.desc()).limit(limit))]


def score_of(store: Store, bundle: str, known: Collection[str], wanted: str | None) -> str:
    """Returns the score that a campaign looks at on a bundle.

    Args:
        store: may have the bundle published, whose manifest names its own score.
        bundle: `name@version`.
        known: scores that are recorded of it.
        wanted: by the campaign; None is the bundle's own.

    Raises:
        StoreError: the bundle has no such score, or it is not known which is its own.
    """
    if wanted is not None:
        if wanted not in known:
            raise StoreError(f"{bundle} has no score {wanted}; it has {', '.join(sorted(known))}")
        return wanted
    manifest = published_manifest(store, bundle)
    if manifest is not None and manifest.default_score:
        return manifest.default_score
    if len(known) == 1:
        return next(iter(known))
    listed = ", ".join(sorted(known))
    raise StoreError(f"which score {bundle} triggers on is not known here: name one of {listed}")


def published_manifest(store: Store, bundle: str) -> Manifest | None:
    """Returns the manifest of a published bundle; None if none of that name is published, or it is lost."""
    try:
        data = candidates.archive_bytes(store.blobs, candidates.found(store.database, bundle))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            file = tar.extractfile("manifest.json")
            return None if file is None else Manifest.model_validate_json(file.read())
    except (StoreError, KeyError, tarfile.TarError, ValidationError):
        return None


def calibration_pairs(
    store: Store, bundle: str, score: str, *, limit: int = 5000
) -> tuple[Sequence[float], Sequence[float]]:
    """Returns scores and their percentiles in the newest samples of a bundle, sorted by score."""
    query = (
        select(samples.c.offer).where(samples.c.bundle == bundle).order_by(samples.c.seq.desc()).limit(limit)
    )
    pairs = []
    with store.database.read() as connection:
        for text in connection.scalars(query):
            offer = json.loads(text)
            value, level = offer.get("scores", {}).get(score), offer.get("percentiles", {}).get(score)
            if isinstance(value, (int, float)) and isinstance(level, (int, float)):
                pairs.append((float(value), float(level)))
    pairs.sort()
    ordered = np.array(pairs or np.zeros((0, 2)))
    return list(ordered[:, 0]), list(ordered[:, 1])
