"""Defines a collector's settings: sizes, memory, quotas, near-duplicates and timers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from misfire_fleet.decoding.decoder import Decoder
from misfire_fleet.decoding.headers import Limits
from misfire_runtime.messages import MAX_CHUNK_BYTES, MAX_SAMPLE_BYTES, MIN_CHUNK_BYTES, Name

MIB = 1024 * 1024


class NearDuplicates(BaseModel):
    """Declines samples similar to `copies` stored ones, by cosine similarity of embeddings of one bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    similarity: float = Field(default=0.98, gt=0, le=1)
    copies: int = Field(default=3, ge=1)
    remembered: int = Field(default=20_000, ge=1, le=1_000_000)
    """Number of newest embeddings of each bundle to compare with."""


class Quotas(BaseModel):
    """Limits each vehicle; None means no limit. `samples_per_day` does not apply to the random stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples_per_day: int | None = Field(default=None, ge=0)
    bytes_per_day: int | None = Field(default=None, ge=0)
    offers_per_s: float | None = Field(default=100.0, gt=0)
    """Offers above this rate get `busy`, after a burst of ten seconds' worth."""


class CollectorSettings(BaseModel):
    """Holds all settings of one collector. The defaults suit one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_sample_bytes: int = Field(default=32 * MIB, gt=0, le=MAX_SAMPLE_BYTES)
    max_pixels: int = Field(default=40_000_000, gt=0)
    """Pixels of a picture or frame; an 8K frame has 33 million."""
    max_decoded_bytes: int = Field(default=256 * MIB, gt=0)
    """Memory for decoding one sample, and for all large ones together: pixels x channels x depth, or the
    coefficients of a progressive JPEG."""
    max_decode_s: float = Field(default=10.0, gt=0, le=600)
    """Processor time for decoding one sample."""
    # At least 2: a process stays free for small pictures while costly ones occupy the others.
    decoders: int | None = Field(default=None, ge=2, le=64)
    """Number of decoding processes. Default: one per processor, at least 2 and at most 8."""
    max_transfers: int = Field(default=256, ge=1)
    max_transfer_bytes: int = Field(default=256 * MIB, gt=0)
    """Memory for samples that were requested and are not yet committed. One vehicle may use at most as many
    transfers and bytes as it leaves free, so at most half."""
    max_offers_waiting: int = Field(default=10_000, ge=1)
    max_offers_per_vehicle: int = Field(default=256, ge=1)
    """Waiting offers of all vehicles and of one. More are dropped, and vehicles repeat them."""
    max_unproven_vehicles: int = Field(default=1_000, ge=0)
    """Number of vehicles without a stored sample that are kept in the database. More are only counted."""
    unproven_vehicle_days: float = Field(default=7.0, gt=0)
    """A vehicle without a stored sample is deleted after this time without a heartbeat."""
    chunk_bytes: int = Field(default=MAX_CHUNK_BYTES, ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)
    """Largest requested chunk. A broker with a smaller packet limit lowers it."""
    group_samples: int = Field(default=64, ge=1)
    group_bytes: int = Field(default=32 * MIB, gt=0)
    """Maximum number of samples and bytes per commit."""
    workers: int = Field(default=8, ge=1, le=64)
    """Samples that are verified and written concurrently. A remote object store needs more."""
    stall_s: float = Field(default=15.0, gt=0)
    """A transfer without a new byte for this long is requested again, from the first missing byte."""
    abandon_s: float = Field(default=120.0, gt=0)
    """A transfer without a new byte for this long is given up; the vehicle offers the sample again."""
    min_bytes_per_s: float = Field(default=256.0, gt=0)
    """A transfer with a lower average rate is given up, too, once it is older than `abandon_s`."""
    probe_s: float = Field(default=10.0, gt=0)
    """While the store takes no samples, one is requested at this interval to test it."""
    drain_s: float = Field(default=10.0, ge=0)
    """Time for running transfers to complete when the collector ends."""
    shared: Literal["auto", "always", "never"] = "auto"
    """Shared subscription: `auto` falls back to a plain one if the broker does not deliver to it."""
    group: Name = "collectors"
    """Name of the shared subscription's group, the same for all collectors of a fleet. Keep it secret: on a
    broker that checks permissions only on delivery, anyone who knows it can join and receive offers."""
    canary_s: float = Field(default=3.0, gt=0)
    """Time for a canary to come back."""
    watchdog_s: float = Field(default=30.0, gt=0)
    """Interval between canaries once the collector works."""
    restate_s: float = Field(default=300.0, gt=0)
    """Interval at which the states of all vehicles are requested from the broker again."""
    quotas: Quotas = Quotas()
    near_duplicates: NearDuplicates | None = None

    def decoder(self) -> Decoder:
        """Returns a new decoder with these limits."""
        limits = Limits(
            max_pixels=self.max_pixels, max_bytes=self.max_decoded_bytes, max_seconds=self.max_decode_s
        )
        return Decoder(workers=self.decoders, limits=limits)

    @property
    def largest_sample(self) -> int:
        """Returns the size in bytes of the largest sample that is accepted.

        A sample larger than the memory of all transfers could never be received.
        """
        return min(self.max_sample_bytes, self.max_transfer_bytes)
