"""Parses the gallery's query string: an empty field is no filter, and an error names the invalid field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import HTTPException, Query

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.moments import parse_moment
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.store.where import VERDICTS

Text = Annotated[str, Query(max_length=130)]
PAGE = 48
"""Samples per page: fills whole rows of 2, 3, 4 or 6 cards."""
MAX_PAGE = 500
"""Bounds one answer of /api/samples."""
_ID = re.compile(r"[0-9a-f]{64}")
_STREAMS = {"": None, "random": True, "chosen": False}
_TRUTHS = {"": None, "yes": True, "no": False}
_VERDICTS = {"": None, **{name: name for name in VERDICTS}}
T = TypeVar("T")


@dataclass(frozen=True)
class GalleryQuery:
    """Holds the parsed filters and, in `values`, the non-empty fields as received, for links."""

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
    labelled: Text = "",
    label_class: Annotated[str, Query(alias="class", max_length=200)] = "",
    verdict: Text = "",
    before: Text = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
) -> GalleryQuery:
    """Parses the fields. Raises HTTPException 422 that names the invalid field."""
    given = {
        "vehicle": vehicle,
        "trigger": trigger,
        "bundle": bundle,
        "stream": stream,
        "since": since,
        "until": until,
        "percentile": percentile,
        "labelled": labelled,
        "class": label_class,
        "verdict": verdict,
    }
    for field, text in given.items():
        readable(field, text)
    filters = SampleFilter(
        vehicle=vehicle or None,
        trigger=trigger or None,
        bundle=bundle or None,
        random=_one_of("stream", stream, _STREAMS),
        captured_from=_time("since", since),
        captured_to=_time("until", until),
        min_percentile=_number("percentile", percentile),
        labelled=_one_of("labelled", labelled, _TRUTHS),
        label_class=label_class or None,
        verdict=_one_of("verdict", verdict, _VERDICTS),
        before_seq=None if not before else int(_number("before", before) or 0),
    )
    return GalleryQuery(filters, limit, {name: value for name, value in given.items() if value})


def readable(field: str, text: str) -> str:
    """Returns the text. Raises HTTPException 422 if the database cannot store it or it is not UTF-8."""
    # PostgreSQL refuses NUL in text; bytes that are not UTF-8 arrive here as replacement characters.
    if "\0" in text or "\N{REPLACEMENT CHARACTER}" in text:
        raise HTTPException(422, f"{field}: not readable as text")
    return text


def sample_id(text: str) -> str:
    """Returns the sample id in a path. Raises SampleGoneError if it is not 64 hexadecimal digits."""
    if _ID.fullmatch(text) is None:
        raise SampleGoneError(f"sample {text[:64]!r}: an id has 64 digits of 0-9 and a-f")
    return text


def _one_of(field: str, text: str, values: Mapping[str, T]) -> T:
    if text not in values:
        known = ", ".join(repr(each) for each in values if each)
        raise HTTPException(422, f"{field}: {text!r} is none of {known}")
    return values[text]


def _time(field: str, text: str) -> float | None:
    try:
        return parse_moment(text) if text else None
    except ValueError as error:
        raise HTTPException(422, f"{field} {text!r}: {error}") from error


def _number(field: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise HTTPException(422, f"{field}: {text!r} is not a number") from error
    # Beyond 2**53 a float does not hold every integer. The negated comparison refuses NaN too.
    if not abs(value) <= 2**53:
        raise HTTPException(422, f"{field}: {text!r} is out of range")
    return value
