"""Defines the records that the store accepts and returns: frozen dataclasses, independent of the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.clock import wall_time
from misfire_runtime.messages import Answer, Offer, State, Telemetry


@dataclass(frozen=True, slots=True)
class NewSample:
    """Holds a verified upload to be stored.

    `stored_at` (seconds since 1970) is set here, so that the row and the record next to the blob agree.
    """

    offer: Offer
    data: bytes
    width: int
    height: int
    collector: str
    stored_at: float = field(default_factory=wall_time)


Outcome = Literal["stored", "duplicate", "deleted"]
"""`duplicate`: it was stored before; `deleted`: it has a tombstone."""


@dataclass(frozen=True)
class StoredSample:
    """Holds one row of `samples`. Times are seconds since 1970; `captured_at` is from `capture_time`."""

    seq: int
    id: str
    vehicle: str
    captured_at: float
    stored_at: float
    bundle: str
    percentile: float | None
    """The highest percentile of its scores, 0..1."""
    media_type: str
    size: int
    width: int
    height: int
    collector: str
    offer: Offer
    unreadable: str = ""
    """Why the row cannot be shown; if set, only `seq` and `id` are reliable."""

    @property
    def scores(self) -> dict[str, float]:
        """Returns the scores by name; a higher value means a more likely failure."""
        return self.offer.scores

    @property
    def percentiles(self) -> dict[str, float]:
        """Returns the percentiles in the calibration, 0..1, by score name."""
        return self.offer.percentiles

    @property
    def trigger(self) -> str:
        """Returns the name of the trigger that selected the sample."""
        return self.offer.trigger.name

    @property
    def random(self) -> bool:
        """Returns True if the sample belongs to the unbiased random stream."""
        return self.offer.trigger.random

    @property
    def prediction(self) -> Mapping[str, Answer]:
        """Returns a summary of the model's answer, such as {"class": "green", "confidence": 0.93}."""
        return self.offer.prediction

    @cached_property
    def embedding(self) -> NDArray[np.float32] | None:
        """Returns the embedding, [D] float32, or None if the offer has none."""
        from misfire_runtime.messages import unpack_embedding

        return None if self.offer.embedding is None else unpack_embedding(self.offer.embedding)


@dataclass(frozen=True)
class SampleFilter:
    """Selects samples; None means any. `before_seq` continues a listing after the row with this `seq`."""

    vehicle: str | None = None
    trigger: str | None = None
    bundle: str | None = None
    random: bool | None = None
    captured_from: float | None = None
    captured_to: float | None = None
    min_percentile: float | None = None
    labelled: bool | None = None
    label_class: str | None = None
    """A class that the sample's label names."""
    verdict: str | None = None
    """right, wrong, missed or ignore; "any", or "none" if nobody judged the sample."""
    snapshot: str | None = None
    """Name of a snapshot that holds the sample."""
    selection: str | None = None
    """Name of a selection that holds the sample."""
    pinned: bool | None = None
    ids: tuple[str, ...] | None = None
    """One of these samples."""
    before_seq: int | None = None


ANY = SampleFilter()


@dataclass(frozen=True)
class VehicleSummary:
    """Describes one vehicle: its last state and heartbeat, and counts of its samples and refusals."""

    name: str
    online: bool
    first_seen: float
    state: State | None
    state_at: float | None
    telemetry: Telemetry | None
    telemetry_at: float | None
    stored: int
    bytes_stored: int
    last_stored_at: float | None
    declined: int
    rejected: int
    silent: bool = False
    """True if it reported that it is online, but its heartbeats are missing."""
    unreadable: str = ""
    """Why its state or heartbeat cannot be shown."""


@dataclass(frozen=True)
class Totals:
    """Holds the totals of the store."""

    samples: int
    bytes: int
    random: int
    vehicles: int
    online: int
    declined: int
    rejected: int
    deleted: int


@dataclass(frozen=True)
class Hold:
    """Describes a legal hold: matching samples cannot be deleted until it is released. None matches any."""

    name: str
    reason: str
    sample: str | None = None
    vehicle: str | None = None
    captured_from: float | None = None
    captured_to: float | None = None
    created_at: float = 0.0
    released_at: float | None = None


@dataclass(frozen=True)
class Deletion:
    """Counts what a deletion did, or would do (`dry_run`)."""

    deleted: int
    bytes: int
    held: int
    """Samples that matched, but were kept because of a legal hold."""
    blobs_removed: int = 0
    dry_run: bool = False
