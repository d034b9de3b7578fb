"""What goes into the store and comes out of it: plain frozen records, no database in sight."""

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
    """A verified upload on its way into the store: `data` is what `offer` announced, and decodes.

    `stored_at` (seconds since 1970) is set here, so that the row and the record beside the blob agree.
    """

    offer: Offer
    data: bytes
    width: int
    height: int
    collector: str
    stored_at: float = field(default_factory=wall_time)


Outcome = Literal["stored", "duplicate", "deleted"]
"""`duplicate`: it was there already; `deleted`: a tombstone forbids it."""


@dataclass(frozen=True)
class StoredSample:
    """One row of `samples`. Times are seconds since 1970; `captured_at` is that of `capture_time`."""

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
    """What is wrong with a row that cannot be shown; only `seq` and `id` of it are sure then."""

    @property
    def scores(self) -> dict[str, float]:
        """Score name to value; higher means a failure is likelier."""
        return self.offer.scores

    @property
    def percentiles(self) -> dict[str, float]:
        """Score name to where it lies in its calibration, 0..1."""
        return self.offer.percentiles

    @property
    def trigger(self) -> str:
        """The name of what chose it."""
        return self.offer.trigger.name

    @property
    def random(self) -> bool:
        """True on the unbiased random stream."""
        return self.offer.trigger.random

    @property
    def prediction(self) -> Mapping[str, Answer]:
        """The model's answer in brief, such as {"class": "green", "confidence": 0.93}."""
        return self.offer.prediction

    @cached_property
    def embedding(self) -> NDArray[np.float32] | None:
        """[D] float32, or None where the offer carried none."""
        from misfire_runtime.messages import unpack_embedding

        return None if self.offer.embedding is None else unpack_embedding(self.offer.embedding)


@dataclass(frozen=True)
class SampleFilter:
    """Which samples; None means any. `before_seq` continues a listing behind its last row."""

    vehicle: str | None = None
    trigger: str | None = None
    bundle: str | None = None
    random: bool | None = None
    captured_from: float | None = None
    captured_to: float | None = None
    min_percentile: float | None = None
    before_seq: int | None = None


ANY = SampleFilter()


@dataclass(frozen=True)
class VehicleSummary:
    """One vehicle as the fleet knows it, with what it stored and what it was refused."""

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
    """It said that it is online, and its heartbeats are missing."""
    unreadable: str = ""
    """What is wrong with a state or heartbeat that cannot be shown."""


@dataclass(frozen=True)
class Totals:
    """The store in numbers."""

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
    """A legal hold: what it covers cannot be deleted until it is released. None covers everything."""

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
    """What a deletion did, or would do (`dry_run`)."""

    deleted: int
    bytes: int
    held: int
    """Matched, but kept because of a legal hold."""
    blobs_removed: int = 0
    dry_run: bool = False
