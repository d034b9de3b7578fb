"""Serves the verdict screen's queue of what to judge, and the verdicts themselves, as JSON.

GET  /api/verdicts/queue    what to judge next      POST /api/verdicts        a verdict
GET  /api/verdicts/items/ID one of them             POST /api/verdicts/undo   takes one back
GET  /api/verdicts/classes  to correct with         GET  /api/verdicts/acts, /summary, /api/verdicts?sample=ID

What a person judges by is all that an item has: no score, no trigger, no probability of the answer. They
come with the answer to the verdict, and only if they are asked for, which the screen never does in the orders
`random` and `dealt`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException
from fastapi import Query as Parameter
from pydantic import BaseModel, ConfigDict, Field

from misfire_fleet.console.access import Caller, requires
from misfire_fleet.console.filters import readable, sample_id
from misfire_fleet.console.format import utc
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.shared import Shared
from misfire_fleet.labels.answers import answer_of
from misfire_fleet.labels.content import BoxesLabel, ClassesLabel, ClassLabel, PointsLabel, ValuesLabel
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.labels.verdicts.counting import Summary, VerdictCounts
from misfire_fleet.labels.verdicts.ledger import MAX_AGE_S, MAX_SHARED, NewVerdict, VerdictLedger
from misfire_fleet.labels.verdicts.queue import (
    MAX_LIMIT,
    ORDERS,
    SECOND,
    Candidate,
    Order,
    Query,
    answered_classes,
    count_open,
    next_page,
)
from misfire_fleet.store.records import StoredSample
from misfire_fleet.store.where import parse_where, where_of
from misfire_fleet.truth.deals import dealt_frames
from misfire_runtime.errors import ConfigError

_MAX_CONDITIONS, _MAX_CONDITION = 20, 50_000
_AS_IT_IS_BYTES = 400_000
"""A larger picture is shown as a thumbnail of 1,024 pixels, so that the next one is there in time."""
_DECODED = frozenset({"image/jpeg", "image/png", "image/webp"})
_CLASSES_S = 10.0
_MOST_SHARES = 8
_MOST_BUNDLES = 16

Labeller = Annotated[Caller, Depends(requires("labeller"))]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Act = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,40}$")]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(ge=0, le=MAX_AGE_S, allow_inf_nan=False)]


class ItemJson(BaseModel):
    """Describes a sample to judge. Places are in pixels of the stored picture.

    Attributes:
        picture: path of what to show.
        kind: of the answer: class, classes, boxes, points, values, or other.
        answer: what the vehicle answered, without scores.
        others: near-duplicates that share the verdict.
        after: the act that holds for this person; "" for none.
    """

    sample: str
    picture: str
    blob: str
    width: int
    height: int
    clip: bool
    vehicle: str
    captured: str
    kind: Literal["class", "classes", "boxes", "points", "values", "other"]
    answer: dict[str, Any]
    others: list[str] = []
    after: str = ""


class QueuePage(BaseModel):
    """Holds what to judge next. Pass `cursor` to get the next page; null if there is nothing more."""

    items: list[ItemJson]
    cursor: str | None
    left: int | None = None
    """Samples left to judge, on the first page."""


class VerdictIn(BaseModel):
    """A verdict to record; see docs/verdicts.md."""

    model_config = ConfigDict(extra="forbid")

    act: Act
    annotator: Name | None = None
    """Who judges; with accounts, who is signed in."""
    samples: Annotated[list[Id], Field(min_length=1, max_length=MAX_SHARED)]
    verdict: Literal["right", "wrong", "missed", "ignore"]
    label: Annotated[ClassLabel | ClassesLabel | BoxesLabel, Field(discriminator="kind")] | None = None
    add_classes: bool = False
    blind: bool = True
    took_s: Seconds | None = None
    age_s: Seconds = 0.0
    after: Act | Literal[""] | None = None
    reveal: bool = False
    """Asks for scores and trigger."""


class UndoIn(BaseModel):
    """An act to take back."""

    model_config = ConfigDict(extra="forbid")

    act: Act
    annotator: Name | None = None
    undoes: Act


class GivenJson(BaseModel):
    """Says what was recorded. left_out: why near-duplicates do not share the verdict, by id."""

    act: str
    samples: list[str]
    left_out: dict[str, str]
    labelled: int
    repeated: bool
    reveal: dict[str, Any] | None = None


class ActJson(BaseModel):
    """Describes an act that holds, and can be taken back."""

    act: str
    sample: str
    verdict: str
    count: int
    at: float
    label: dict[str, Any] | None


class RecordJson(BaseModel):
    """Describes one record about a sample: who said what, and when. Times are seconds since 1970."""

    act: str
    sample: str
    annotator: str
    verdict: str
    undoes: str
    shared: bool
    blind: bool
    took_s: float | None
    at: float
    recorded_at: float


class ClassesJson(BaseModel):
    """Lists the fleet's classes, and others that vehicles answered lately."""

    fleet: list[str]
    answered: list[str]


def verdict_query(
    *,
    by: Annotated[str, Parameter(max_length=64)] = "",
    order: Annotated[str, Parameter(max_length=16)] = "random",
    where: Annotated[list[str] | None, Parameter(max_length=_MAX_CONDITIONS)] = None,
    fold: Annotated[str, Parameter(max_length=8)] = "yes",
    second: Annotated[float, Parameter(ge=0, le=1, allow_inf_nan=False)] = SECOND,
) -> Query:
    """Parses a queue's address. Raises HTTPException 422 that names the invalid field."""
    if order not in ORDERS:
        raise HTTPException(422, f"order: {order!r} is none of {', '.join(ORDERS)}")
    if fold not in ("yes", "no"):
        raise HTTPException(422, f"fold: {fold!r} is neither 'yes' nor 'no'")
    conditions = [text.strip() for text in where or () if text.strip()]
    for text in conditions:
        # A file of this machine is nothing that a browser may name.
        if len(text) > _MAX_CONDITION or text.replace(" ", "").startswith("ids=@"):
            raise HTTPException(422, f"where: {text[:40]!r}: give ids with commas")
        readable("where", text)
    try:
        filters = parse_where(conditions)
    except ConfigError as error:
        raise HTTPException(422, str(error).replace("--where", "where")) from error
    chosen: Order = next(each for each in ORDERS if each == order)
    return Query(readable("by", by), chosen, filters, fold=fold == "yes", second=second)


Queue = Annotated[Query, Depends(verdict_query)]


def verdicts_api(shared: Shared) -> APIRouter:
    """Returns the routes under /api/verdicts."""
    store = shared.store
    router, ledger, counts = APIRouter(prefix="/api/verdicts"), VerdictLedger(store), VerdictCounts(store)
    # The ids are those of a page before, so that a page costs no reading of the whole stream.
    dealt = lru_cache(_MOST_BUNDLES)(
        lambda bundle: Recent(lambda: _dealt(shared, bundle), max_age_s=_CLASSES_S)
    )
    answered = Recent(lambda: answered_classes(store), max_age_s=_CLASSES_S)

    @router.get("/queue")
    def queue(
        query: Queue,
        cursor: Annotated[str, Parameter(max_length=300)] = "",
        limit: Annotated[int, Parameter(ge=1, le=MAX_LIMIT)] = 24,
    ) -> QueuePage:
        """Lists what a person (`by`) judges next."""
        query = _with_dealt(query, dealt)
        try:
            page = next_page(store, query, cursor=cursor, limit=limit)
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error
        return QueuePage(
            items=[item_of(each) for each in page.candidates],
            cursor=page.cursor,
            left=None if cursor else count_open(store, query),
        )

    @router.get("/items/{sample}")
    def item(sample: str) -> ItemJson:
        return item_of(Candidate(store.get(sample_id(sample))))

    @router.get("/classes")
    def classes() -> ClassesJson:
        known = [each.name for each in LabelLedger(store).classes()]
        return ClassesJson(fleet=known, answered=sorted(set(answered()) - set(known)))

    @router.get("/acts")
    def acts(
        by: Annotated[str, Parameter(max_length=64)],
        limit: Annotated[int, Parameter(ge=1, le=100)] = 20,
    ) -> list[ActJson]:
        """Lists the last verdicts of a person that hold, the newest first."""
        found = ledger.last_acts(readable("by", by), limit=limit)
        return [
            ActJson(**{**asdict(each), "label": each.label.model_dump(mode="json") if each.label else None})
            for each in found
        ]

    @router.get("/summary")
    def summary_(bundle: Annotated[str, Parameter(max_length=130)] = "") -> Summary:
        """Counts verdicts by bundle and person, and compares people."""
        return counts.summary(bundle=readable("bundle", bundle) or None)

    @router.get("")
    def records(sample: str) -> list[RecordJson]:
        """Lists all records about a sample, oldest first."""
        found = ledger.history(sample_id(sample))
        return [RecordJson.model_validate(each.model_dump()) for each in found]

    @router.post("", status_code=201)
    def give(body: VerdictIn, caller: Labeller) -> GivenJson:
        """Records a verdict. The same `act` again changes nothing."""
        values = body.model_dump(exclude={"samples", "label", "reveal"})
        values["annotator"] = annotator_of(caller, body.annotator)
        given = ledger.give(NewVerdict(samples=tuple(body.samples), label=body.label, **values))
        shown = reveal_of(store.get(body.samples[0])) if body.reveal else None
        return _given(asdict(given), shown)

    @router.post("/undo", status_code=201)
    def undo(body: UndoIn, caller: Labeller) -> GivenJson:
        """Takes an act of a person back: what held before it holds again."""
        annotator = annotator_of(caller, body.annotator)
        return _given(asdict(ledger.undo(body.act, annotator=annotator, undoes=body.undoes)), None)

    return router


def annotator_of(caller: Caller, named: str | None) -> str:
    """Returns who judges: with accounts, the caller; else the name that the request gives.

    Raises:
        HTTPException: 403 for another name than the caller's; 422 without accounts and without a name.
    """
    if caller.how == "open":
        if named is None:
            raise HTTPException(422, "annotator: say who judges")
        return named
    if named not in (None, caller.name):
        raise HTTPException(403, f"annotator: you are {caller.name!r}, and judge in your own name only")
    return caller.name


def item_of(candidate: Candidate) -> ItemJson:
    """Returns what a person judges by."""
    sample = candidate.sample
    kind, answer = _answer(sample)
    as_it_is = sample.media_type in _DECODED and sample.size <= _AS_IT_IS_BYTES
    return ItemJson(
        sample=sample.id,
        picture=f"/blobs/{sample.id}" if as_it_is else f"/thumbs/{sample.id}?width=1024",
        blob=f"/blobs/{sample.id}",
        width=max(1, sample.width),
        height=max(1, sample.height),
        clip=sample.media_type.startswith("video/"),
        vehicle=sample.vehicle,
        captured=utc(sample.captured_at),
        kind=kind,
        answer=answer,
        others=list(candidate.others),
    )


def reveal_of(sample: StoredSample) -> dict[str, Any]:
    """Returns what the screen hides until the verdict is given."""
    return {
        "trigger": sample.trigger,
        "reason": sample.offer.trigger.reason,
        "random": sample.random,
        "percentile": sample.percentile,
        "scores": sample.scores,
        "percentiles": sample.percentiles,
    }


def queue_values(query: Query) -> dict[str, Any]:
    """Returns the fields of a queue's address, for the form."""
    return {
        "order": query.order,
        "where": where_of(query.filters),
        "fold": query.fold,
        "second": query.second,
    }


def _with_dealt(query: Query, dealt: Callable[[str], Recent[list[str]]]) -> Query:
    """Returns the query; in the order `dealt`, of the frames that were dealt. Raises HTTPException 422."""
    if query.order != "dealt":
        return query
    bundle = query.filters.bundle
    if bundle is None:
        raise HTTPException(422, "order: dealt frames are those of a bundle: where=bundle=NAME@VERSION")
    ids, known = dealt(bundle)(), query.filters.ids
    # Nothing is left of other frames; an id that no sample has keeps the list from being empty.
    chosen = ids if known is None else sorted(set(ids) & set(known)) or ["-"]
    return replace(query, filters=replace(query.filters, ids=tuple(chosen)))


def _dealt(shared: Shared, bundle: str) -> list[str]:
    ids = dealt_frames(shared.store, bundle)
    if not ids:
        raise HTTPException(422, f"order: nothing was dealt of {bundle}: misfire fleet truth --to-label 300")
    return ids


def _given(values: dict[str, Any], reveal: dict[str, Any] | None) -> GivenJson:
    return GivenJson(**{**values, "samples": list(values["samples"])}, reveal=reveal)


def _answer(sample: StoredSample) -> tuple[str, dict[str, Any]]:
    """Returns the kind of an answer, and what is shown of it."""
    found = answer_of(sample)
    match None if found is None else found.label:
        case ClassLabel(name=name):
            return "class", {"name": name}
        case ClassesLabel(names=names):
            return "classes", {"names": list(names)}
        case BoxesLabel(boxes=boxes):
            shown = [{"name": b.name, "x0": b.x0, "y0": b.y0, "x1": b.x1, "y1": b.y1} for b in boxes]
            return "boxes", {"boxes": shown, "more": found.more if found else 0}
        case PointsLabel(points=points):
            return "points", {"points": [[p.x, p.y] for p in points if p.visible]}
        case ValuesLabel(values=values):
            return "values", {"values": list(values)}
        case _:
            return "other", _shares(sample)


def _shares(sample: StoredSample) -> dict[str, Any]:
    """Returns the largest shares of a mask's classes."""
    shares = sample.prediction.get("shares")
    if not isinstance(shares, dict):
        return {}
    numbers = {name: value for name, value in shares.items() if isinstance(value, (int, float))}
    largest = sorted(numbers.items(), key=lambda each: -each[1])[:_MOST_SHARES]
    return {"shares": dict(largest)}
