"""Defines offer records: everything that the fleet knows about a sample besides its bytes.

    offer + what the collector found --offer_record--> a line of `offers/<group>`, one file per commit group
                                     --row_of--------> the row of `samples`

The records are stored next to the blobs. A row is a function of its record, so all rows can be rebuilt from
the blob store.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from misfire_fleet.errors import StoreError
from misfire_fleet.store.blobs import Document
from misfire_fleet.store.records import NewSample
from misfire_runtime.messages import LAST_DATE, Offer
from misfire_runtime.toml import explain

log = logging.getLogger(__name__)

# Earlier clocks were never set: they count from 1970.
_YEAR_2000 = 946_684_800.0
_DAY_S = 86_400.0


class OfferRecord(BaseModel):
    """Holds the vehicle's offer and what the collector adds. `stored_at`: seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    v: Literal[1] = 1
    stored_at: Annotated[float, Field(ge=0, le=LAST_DATE)]
    collector: Annotated[str, Field(max_length=64)]
    width: Annotated[int, Field(ge=0)]
    height: Annotated[int, Field(ge=0)]
    offer: Offer


def offer_record(sample: NewSample) -> OfferRecord:
    """Returns the record of a verified sample."""
    return OfferRecord(
        stored_at=sample.stored_at,
        collector=sample.collector,
        width=sample.width,
        height=sample.height,
        offer=sample.offer,
    )


def group_of(records: Iterable[OfferRecord]) -> Document:
    """Returns the records as one document, with a line of JSON each.

    The name is derived from the content, so a retry after a failure writes the same name again.
    """
    data = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
    return Document("offers", hashlib.sha256(data).hexdigest()[:40], data)


def split_group(data: bytes) -> dict[str, bytes]:
    """Returns the lines of a document by sample id, without damaged lines."""
    lines = {}
    for line in data.splitlines(keepends=True):
        # A damaged line must not hide the others.
        with suppress(StoreError):
            lines[parse_record(line).offer.id] = line
    return lines


def parse_record(raw: bytes) -> OfferRecord:
    """Parses a line of a document. Raises StoreError if it is damaged or of a newer version."""
    try:
        return OfferRecord.model_validate_json(raw)
    except ValidationError as error:
        raise StoreError(explain(error, file="offer record", most=1, show_input=False)) from error


def row_of(record: OfferRecord, *, offers: str) -> dict[str, Any]:
    """Returns the row of `samples`, without `seq`; `offers` is the name of the record's document."""
    offer = record.offer
    return {
        "id": offer.id,
        "vehicle": offer.vehicle,
        "captured_at": capture_time(offer, stored_at=record.stored_at),
        "stored_at": record.stored_at,
        "bundle": offer.bundle,
        "trigger": offer.trigger.name,
        "random": offer.trigger.random,
        "percentile": max(offer.percentiles.values(), default=None),
        "media_type": offer.media_type,
        "size": offer.size,
        "width": record.width,
        "height": record.height,
        "collector": record.collector,
        "embedding": None if offer.embedding is None else base64.b64decode(offer.embedding),
        "offer": offer.model_dump_json(),
        "offers": offers,
    }


def capture_time(offer: Offer, *, stored_at: float) -> float:
    """Returns the best known capture time, in seconds since 1970.

    This is the recording's own date, else the vehicle's clock, else `stored_at`. A time more than a day after
    `stored_at` is ignored, and so is a vehicle's clock before 2000: a clock without a battery starts in 1970.
    The offer keeps the original times.
    """
    latest = stored_at + _DAY_S
    if offer.recorded_at is not None and offer.recorded_at <= latest:
        return offer.recorded_at
    wall = offer.captured_at.wall
    return wall if _YEAR_2000 <= wall <= latest else stored_at
