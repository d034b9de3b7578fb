"""Converts database rows to records, also those that an older version or a damaged page made invalid.

An invalid row must not break a listing: its record has the reason (`unreadable`), the id or name, and empty
values for the rest. It is logged once.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Row

from misfire_fleet.store.records import StoredSample
from misfire_runtime.messages import (
    LAST_DATE,
    MAX_INTEGER,
    Clock,
    Message,
    Name,
    Offer,
    SampleId,
    Trigger,
    WallTime,
)
from misfire_runtime.toml import explain

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
_Text = Annotated[str, Field(max_length=130)]
_Whole = Annotated[int, Field(ge=0, le=MAX_INTEGER)]


class _Columns(BaseModel):
    """Validates the columns of `samples`, except the offer."""

    model_config = ConfigDict(allow_inf_nan=False, from_attributes=True)

    seq: int
    id: SampleId
    vehicle: Name
    captured_at: WallTime
    stored_at: WallTime
    bundle: _Text
    percentile: float | None
    media_type: _Text
    size: _Whole
    width: _Whole
    height: _Whole
    collector: _Text


def sample_of(row: Row[Any]) -> StoredSample:
    """Returns the record of a row of `samples`."""
    try:
        columns = _Columns.model_validate(row)
        return StoredSample(**columns.model_dump(), offer=Offer.model_validate_json(row.offer))
    except ValidationError as error:
        problem = problem_of(error)
    _note(f"sample {str(row.id)[:64]}", problem)
    return _unreadable(row, problem)


def _unreadable(row: Row[Any], problem: str) -> StoredSample:
    """Returns a record with the valid columns, and an offer made from them."""
    kept: dict[str, Any] = {
        "vehicle": "",
        "captured_at": 0.0,
        "stored_at": 0.0,
        "bundle": "",
        "percentile": None,
        "media_type": "",
        "size": 0,
        "width": 0,
        "height": 0,
        "collector": "",
    }
    with suppress(ValidationError):
        kept = _Columns.model_validate(row).model_dump(exclude={"seq", "id"})
    name = str(row.id)[:64]
    trigger = row.trigger if isinstance(row.trigger, str) else ""
    offer = Offer.model_construct(
        id=name,
        vehicle=kept["vehicle"],
        size=kept["size"],
        media_type=kept["media_type"],
        captured_at=Clock(wall=kept["stored_at"], monotonic=0.0, boot_id=""),
        bundle=kept["bundle"],
        scores={},
        trigger=Trigger.model_construct(name=trigger[:64], random=bool(row.random)),
    )
    return StoredSample(seq=int(row.seq), id=name, offer=offer, unreadable=problem, **kept)


def message_of(kind: type[M], text: Any, owner: str) -> tuple[M | None, str]:
    """Returns a stored message and "", or None and the problem. `owner` names it in the log."""
    if text is None:
        return None, ""
    try:
        return kind.model_validate_json(text), ""
    except ValidationError as error:
        problem = f"{kind.__name__.lower()}: {problem_of(error)}"
    _note(owner, problem)
    return None, problem


def whole(value: Any) -> int:
    """Returns a count; 0 if the column has no number."""
    try:
        return int(value or 0)
    except (ValueError, OverflowError, TypeError):
        return 0


def seconds(value: Any) -> float | None:
    """Returns a time; None if the column has none, or one outside of the calendar."""
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= LAST_DATE else None


def problem_of(error: ValidationError) -> str:
    """Returns the first problem, in at most 200 characters."""
    return explain(error, most=1, show_input=False)[:200]


@lru_cache(10_000)
def _note(what: str, problem: str) -> None:
    """Logs a problem once, however often a page shows the row: the cache remembers the calls."""
    log.warning("row_not_shown", extra={"fields": {"row": what, "problem": problem}})
