"""What a collector allows: sizes, memory, quotas, near-duplicates, and its timers, checked by pydantic."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from misfire_fleet.decoding.decoder import Decoder
from misfire_fleet.decoding.headers import Limits
from misfire_runtime.messages import MAX_CHUNK_BYTES, MAX_SAMPLE_BYTES, MIN_CHUNK_BYTES, Name

MIB = 1024 * 1024


class NearDuplicates(BaseModel):
    """Decline what the fleet has seen `copies` times, by cosine similarity of embeddings of one bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    similarity: float = Field(default=0.98, gt=0, le=1)
    copies: int = Field(default=3, ge=1)
    remembered: int = Field(default=20_000, ge=1, le=1_000_000)
    """How many of the newest embeddings of each bundle are compared with."""


class Quotas(BaseModel):
    """Per vehicle; None is no limit. The random stream is free of `samples_per_day`, not of the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples_per_day: int | None = Field(default=None, ge=0)
    bytes_per_day: int | None = Field(default=None, ge=0)
    offers_per_s: float | None = Field(default=100.0, gt=0)
    """Above it, with a burst of ten seconds' worth, the answer is `busy`."""


class CollectorSettings(BaseModel):
    """All settings of one collector; the defaults suit one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_sample_bytes: int = Field(default=32 * MIB, gt=0, le=MAX_SAMPLE_BYTES)
    max_pixels: int = Field(default=40_000_000, gt=0)
    """Of a picture or a frame; 8K cameras have 33 million."""
    max_decoded_bytes: int = Field(default=256 * MIB, gt=0)
    """Memory that decoding one sample may need, and all large ones together: pixels x channels x depth, the
    coefficients of a progressive JPEG."""
    max_decode_s: float = Field(default=10.0, gt=0, le=600)
    """Processor time that decoding one sample may take."""
    decoders: int | None = Field(default=None, ge=2, le=64)
    """Processes that decode; by default one per processor, at least 2 and at most 8."""
    max_transfers: int = Field(default=256, ge=1)
    max_transfer_bytes: int = Field(default=256 * MIB, gt=0)
    """Memory for samples on their way: all that were asked for and are not yet committed. A vehicle may hold
    as much of both as it leaves free, half at most."""
    max_offers_waiting: int = Field(default=10_000, ge=1)
    max_offers_per_vehicle: int = Field(default=256, ge=1)
    """Offers that wait to be answered, of all vehicles and of one; more are dropped, and offered again."""
    max_unproven_vehicles: int = Field(default=1_000, ge=0)
    """So many vehicles of which no sample is stored are written down; more of them are counted only."""
    unproven_vehicle_days: float = Field(default=7.0, gt=0)
    """Such a vehicle is forgotten after this time without a heartbeat."""
    chunk_bytes: int = Field(default=MAX_CHUNK_BYTES, ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)
    """Largest chunk asked for; a broker that announces a smaller packet limit lowers it."""
    group_samples: int = Field(default=64, ge=1)
    group_bytes: int = Field(default=32 * MIB, gt=0)
    """A commit takes at most this many samples and bytes at once."""
    workers: int = Field(default=8, ge=1, le=64)
    """Samples that are verified and written at once; an object store far away wants more."""
    stall_s: float = Field(default=15.0, gt=0)
    """A transfer without a new byte for this long is asked for again, from where it stands."""
    abandon_s: float = Field(default=120.0, gt=0)
    """... and given up after this long; the vehicle offers it again."""
    min_bytes_per_s: float = Field(default=256.0, gt=0)
    """A transfer that is slower on average than this is given up, too, after its first `abandon_s`."""
    probe_s: float = Field(default=10.0, gt=0)
    """While the store takes no samples, one is asked for this often to find out whether it does again."""
    drain_s: float = Field(default=10.0, ge=0)
    """At the end, how long running transfers may take to complete."""
    shared: Literal["auto", "always", "never"] = "auto"
    """Shared subscription: `auto` falls back to a plain one where the broker does not deliver to it."""
    group: Name = "collectors"
    """Name of the shared subscription's group, the same for all collectors of a fleet. Make it a secret: on a
    broker that checks rights only on delivery, whoever knows it can join and swallow offers."""
    canary_s: float = Field(default=3.0, gt=0)
    """How long a canary may take to come back."""
    watchdog_s: float = Field(default=30.0, gt=0)
    """How often the canary flies once the collector works."""
    restate_s: float = Field(default=300.0, gt=0)
    """How often the broker is asked for the states of all vehicles again."""
    quotas: Quotas = Quotas()
    near_duplicates: NearDuplicates | None = None

    def decoder(self) -> Decoder:
        """A decoder with these limits."""
        limits = Limits(
            max_pixels=self.max_pixels, max_bytes=self.max_decoded_bytes, max_seconds=self.max_decode_s
        )
        return Decoder(workers=self.decoders, limits=limits)

    @property
    def largest_sample(self) -> int:
        """In bytes: what is larger than all memory for transfers could never be taken."""
        return min(self.max_sample_bytes, self.max_transfer_bytes)
