"""Parses the gallery's query string: an empty field is no filter, and an error names the invalid field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar
from urllib.parse import urlencode

from fastapi import HTTPException, Query

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.gallery.query import ORDERS, Condition, Question
from misfire_fleet.moments import parse_moment
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.store.where import VERDICTS
from misfire_runtime.errors import ConfigError

Text = Annotated[str, Query(max_length=130)]
PAGE = 48
"""Samples per page: fills whole rows of 2, 3, 4 or 6 cards."""
MAX_IDS = 800
"""Ids in an address: servers and proxies take addresses of some ten kilobytes."""
MAX_CONDITIONS = 8
MAX_PAGE = 500
"""Bounds one answer of /api/samples."""
_ID = re.compile(r"[0-9a-f]{64}")
_STREAMS = {"": None, "random": True, "chosen": False}
_TRUTHS = {"": None, "yes": True, "no": False}
_VERDICTS = {"": None, **{name: name for name in VERDICTS}}
T = TypeVar("T")


@dataclass(frozen=True)
class GalleryQuery:
    """Holds what is asked and, in `values`, the non-empty fields as received, for links."""

    question: Question
    limit: int
    values: dict[str, str | list[str]]
    cursor: str = ""
    show: str = "grid"

    @property
    def filters(self) -> SampleFilter:
        """Returns the filters that all commands have."""
        return self.question.filters

    @property
    def narrowed(self) -> bool:
        """Returns True if there is a filter or an order, not only a form of the view."""
        return bool(self.values.keys() - {"show"})

    def link(self, **changes: str | list[str] | None) -> str:
        """Returns the gallery's address with other fields; None leaves one out."""
        fields = {name: value for name, value in (self.values | changes).items() if value}
        return "/uploads" + (f"?{urlencode(fields, doseq=True)}" if fields else "")


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
    snapshot: Text = "",
    selection: Text = "",
    pinned: Text = "",
    ids: Annotated[str, Query(max_length=MAX_IDS * 65)] = "",
    context: Annotated[list[str] | None, Query(max_length=MAX_CONDITIONS)] = None,
    order: Text = "",
    similar: Text = "",
    group: Text = "",
    fold: Text = "",
    box: Annotated[str, Query(max_length=200)] = "",
    show: Text = "",
    cursor: Annotated[str, Query(max_length=400)] = "",
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
        "snapshot": snapshot,
        "selection": selection,
        "pinned": pinned,
        "ids": ids,
        "order": order,
        "similar": similar,
        "group": group,
        "fold": fold,
        "box": box,
        "show": show,
    }
    conditions = [text.strip() for text in context or () if text.strip()]
    for name, text in [*given.items(), *(("context", text) for text in conditions), ("cursor", cursor)]:
        readable(name, text)
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
        snapshot=snapshot or None,
        selection=selection or None,
        pinned=_one_of("pinned", pinned, _TRUTHS),
        ids=_ids(ids),
        before_seq=None if not before else int(_number("before", before) or 0),
    )
    question = Question(
        filters,
        context=_conditions(conditions),
        order=_order(order, similar),
        similar=_sample("similar", similar),
        group=_sample("group", group),
        fold=bool(_one_of("fold", fold, _TRUTHS)),
        box_class=box,
    )
    shown = _one_of("show", show, {"": "grid", "grid": "grid", "boxes": "boxes", "map": "map"})
    values: dict[str, str | list[str]] = {name: value for name, value in given.items() if value}
    return GalleryQuery(
        question, limit, values | ({"context": conditions} if conditions else {}), cursor, shown
    )


def _order(text: str, similar: str) -> str:
    """Returns the order; without one, what is similar to a sample comes by similarity."""
    if not text:
        return "similar" if similar else "newest"
    if text in ORDERS or (text.startswith("score:") and len(text) > 6):
        return text
    raise HTTPException(422, f"order: {text!r} is none of {', '.join(ORDERS)}, score:NAME")


def _conditions(texts: list[str]) -> tuple[Condition, ...]:
    try:
        return tuple(Condition.parse(text) for text in texts)
    except ConfigError as error:
        raise HTTPException(422, str(error)) from error


def _sample(field: str, text: str) -> str:
    if text and _ID.fullmatch(text) is None:
        raise HTTPException(422, f"{field}: {text!r} is no id of 64 digits of 0-9 and a-f")
    return text


def _ids(text: str) -> tuple[str, ...] | None:
    if not text:
        return None
    return tuple(_sample("ids", each) for each in dict.fromkeys(text.replace(",", " ").split()))


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
