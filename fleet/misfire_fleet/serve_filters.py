"""The gallery's query string: an empty field is no filter, and one that cannot be read is named."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated

from fastapi import HTTPException, Query

from misfire_fleet.store_records import SampleFilter

Text = Annotated[str, Query(max_length=130)]
PAGE = 48
MAX_PAGE = 500


@dataclass(frozen=True)
class GalleryQuery:
    """`filters` for the store; `values` are the non-empty fields as they came, to be put into links."""

    filters: SampleFilter
    limit: int
    values: dict[str, str]


def gallery_query(
    *,
    vehicle: Text = "",
    trigger: Text = "",
    bundle: Text = "",
    stream: Text = "",
    since: Text = "",
    until: Text = "",
    percentile: Text = "",
    before: Text = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
) -> GalleryQuery:
    """Reads the fields. Raises HTTPException 422 that names a field which cannot be read."""
    given = {
        "vehicle": vehicle,
        "trigger": trigger,
        "bundle": bundle,
        "stream": stream,
        "since": since,
        "until": until,
        "percentile": percentile,
    }
    filters = SampleFilter(
        vehicle=vehicle or None,
        trigger=trigger or None,
        bundle=bundle or None,
        random={"": None, "random": True, "chosen": False}.get(stream) if stream else None,
        captured_from=_time("since", since),
        captured_to=_time("until", until),
        min_percentile=_number("percentile", percentile),
        before_seq=None if not before else int(_number("before", before) or 0),
    )
    return GalleryQuery(filters, limit, {name: value for name, value in given.items() if value})


def _time(field: str, text: str) -> float | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise HTTPException(422, f"{field}: {text!r} is not a time such as 2026-01-31T12:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _number(field: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise HTTPException(422, f"{field}: {text!r} is not a number") from error
    if not abs(value) <= 2**53:
        raise HTTPException(422, f"{field}: {text!r} is out of range")
    return value
