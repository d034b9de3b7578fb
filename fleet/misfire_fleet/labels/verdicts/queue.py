"""Deals out what a person judges next: pages of samples in the order of a queue, near-duplicates folded.

URL --Query--> phases: condition and order by an index --page from a cursor--> rows --fold--> Candidate

The database decides and sorts; nothing is read but the rows of one page. What the person judged already is
left out, and so is what somebody else did, except for a share that is judged by two people to compare them: a
sample is in it by the last digits of its id, so it is the same share for everybody, whatever its scores.

| order   | first                               | then                     |
|---------|-------------------------------------|--------------------------|
| random  | the random stream, by id (a hash)   | the others, the newest   |
| dealt   | frames that were dealt for field truth (`ids` of the filters), by id |   |
| score   | the highest percentile of a score   | samples without one      |
| cluster | the largest group of near-duplicates among the 2,000 with the highest percentile |  |
| newest  | the last stored                     |                          |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from sqlalchemy import ColumnElement, Row, UnaryExpression, and_, case, func, or_, select, true

from misfire_fleet.labels.verdicts.folding import SIMILARITY, Foldable, Group, answer_key, fold
from misfire_fleet.store import Store
from misfire_fleet.store.labels import is_labelled
from misfire_fleet.store.records import ANY, SampleFilter, StoredSample
from misfire_fleet.store.schema import samples, verdicts
from misfire_fleet.store.store import conditions_of
from misfire_fleet.store.verdicts import NONE, has_verdict, is_judged_by, is_judged_by_another, is_newest
from misfire_runtime.errors import ConfigError

Order: TypeAlias = Literal["random", "dealt", "score", "cluster", "newest"]
ORDERS: tuple[Order, ...] = ("random", "dealt", "score", "cluster", "newest")
BLIND: tuple[Order, ...] = ("random", "dealt")
"""Orders in which scores stay hidden, and each frame is judged by itself: a failure rate counts frames."""
SECOND = 0.1
"""Share of samples that two people judge."""
MAX_LIMIT = 50
_WINDOW, _CLUSTER_WINDOW = 400, 2000
"""Rows that are folded with each other; clusters are found only within the window."""
_DIGITS = 6
"""Hexadecimal digits of an id that decide who judges it: 16 million steps."""


@dataclass(frozen=True)
class Query:
    """Says what a person judges.

    Attributes:
        annotator: name of the person.
        order: see the module.
        filters: select samples.
        fold: lets near-duplicates share a verdict, but in BLIND orders.
        second: share of samples that two people judge, 0..1.
        similarity: of near-duplicates.
    """

    annotator: str
    order: Order = "random"
    filters: SampleFilter = ANY
    fold: bool = True
    second: float = SECOND
    similarity: float = SIMILARITY

    @property
    def folds(self) -> bool:
        """Returns True if near-duplicates share a verdict."""
        return self.order == "cluster" or (self.fold and self.order not in BLIND)


@dataclass(frozen=True)
class Candidate:
    """A sample to judge. `others`: near-duplicates that share its verdict."""

    sample: StoredSample
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """Holds what to judge next. `cursor`: where the next page starts; None if there is nothing more."""

    candidates: tuple[Candidate, ...]
    cursor: str | None


@dataclass(frozen=True)
class _Phase:
    """One part of a queue: its rows, their order, and which of them are after a row."""

    condition: ColumnElement[bool]
    order: tuple[UnaryExpression[Any], ...]
    key: Callable[[Row[Any]], list[Any]]
    after: Callable[[Sequence[Any]], ColumnElement[bool]]


def next_page(store: Store, query: Query, *, cursor: str = "", limit: int = 24) -> Page:
    """Returns the next candidates of a queue.

    Args:
        store: of the samples.
        query: what is judged.
        cursor: of the page before; "" starts at the beginning.
        limit: candidates.

    Raises:
        ConfigError: the cursor is not one of this queue.
    """
    phases = _PHASES[query.order]()
    start, place = _parsed(cursor, len(phases))
    window = _CLUSTER_WINDOW if query.order == "cluster" else _WINDOW if query.folds else limit
    found: list[tuple[int, Row[Any]]] = []
    with store.database.read() as connection:
        for number in range(start, len(phases)):
            phase = phases[number]
            wanted = and_(phase.condition, _is_open(query), *conditions_of(query.filters))
            statement = select(*_COLUMNS).where(wanted).order_by(*phase.order).limit(window - len(found))
            if number == start and place:
                statement = statement.where(phase.after(place))
            found += [(number, row) for row in connection.execute(statement)]
            if len(found) == window:
                break
    rows = [row for _number, row in found]
    groups = fold([_foldable(row) for row in rows], similarity=query.similarity) if query.folds else None
    groups = [Group([row.id]) for row in rows] if groups is None else groups
    if query.order == "cluster":
        groups.sort(key=lambda group: -len(group.ids))
    taken = groups[:limit]
    candidates = _candidates(store, taken)
    if len(found) < window and len(taken) == len(groups):
        return Page(candidates, None)
    if query.order == "cluster" or not taken:
        return Page(candidates, "")
    last = next(each for each in found if each[1].id == taken[-1].ids[0])
    return Page(candidates, _text(last[0], phases[last[0]].key(last[1])))


def count_open(store: Store, query: Query) -> int:
    """Returns how many samples are left to judge, near-duplicates counted one by one."""
    # Counted from the side of the verdicts, which are few: what matches, less what is closed of it.
    mine = func.max(case((verdicts.c.annotator == query.annotator, 1), else_=0))
    direct = func.max(case((verdicts.c.annotator == query.annotator, 0), (verdicts.c.shared, 0), else_=1))
    closed = (
        select(verdicts.c.sample)
        .where(verdicts.c.verdict != NONE, is_newest(verdicts))
        .group_by(verdicts.c.sample)
        .having(or_(mine == 1, direct == 0, ~_in_share(verdicts.c.sample, query.second)))
        .subquery()
    )
    matches = and_(true(), *conditions_of(query.filters))
    total = select(func.count()).select_from(samples).where(matches)
    without = select(func.count()).select_from(samples).join(closed, closed.c.sample == samples.c.id)
    with store.database.read() as connection:
        return int(connection.scalar(total) or 0) - int(connection.scalar(without.where(matches)) or 0)


def answered_classes(store: Store, *, newest: int = 500) -> list[str]:
    """Returns the classes in the answers of the newest samples, sorted: what a correction may choose from."""
    query = select(samples.c.offer).order_by(samples.c.seq.desc()).limit(newest)
    with store.database.read() as connection:
        offers = list(connection.scalars(query))
    found: set[str] = set()
    for offer in offers:
        kind, *names = answer_key(_prediction(offer))
        if kind == "boxes":
            found |= {name for name, _count in names}
        elif kind in ("class", "classes"):
            found |= set(names)
    return sorted(name for name in found if 1 <= len(name) <= 200)


_COLUMNS = tuple(samples.c[name] for name in ("seq", "id", "bundle", "percentile", "embedding", "offer"))


def _is_open(query: Query) -> ColumnElement[bool]:
    """Returns the condition on a row of `samples` that this person should judge it."""
    compared = and_(
        _in_share(samples.c.id, query.second), is_judged_by_another(query.annotator, directly=True)
    )
    return and_(~is_judged_by(query.annotator), or_(~is_judged_by_another(query.annotator), compared))


def _in_share(sample: ColumnElement[str], share: float) -> ColumnElement[bool]:
    """Returns the condition that a sample is judged by two people."""
    limit = f"{int(min(1.0, max(0.0, share)) * 16**_DIGITS):0{_DIGITS}x}"
    digits = func.substr(sample, 65 - _DIGITS, _DIGITS)
    # A share of 1 is one digit more than ids have.
    return digits < limit if len(limit) == _DIGITS else digits >= ""


def _by_id(condition: ColumnElement[bool]) -> _Phase:
    return _Phase(condition, (samples.c.id.asc(),), lambda row: [row.id], lambda key: samples.c.id > key[0])


def _by_seq(condition: ColumnElement[bool]) -> _Phase:
    return _Phase(
        condition, (samples.c.seq.desc(),), lambda row: [row.seq], lambda key: samples.c.seq < key[0]
    )


def _by_percentile() -> _Phase:
    percentile = samples.c.percentile
    return _Phase(
        percentile.is_not(None),
        (percentile.desc(), samples.c.id.desc()),
        lambda row: [row.percentile, row.id],
        lambda key: or_(percentile < key[0], and_(percentile == key[0], samples.c.id < key[1])),
    )


_PHASES: dict[str, Callable[[], tuple[_Phase, ...]]] = {
    "random": lambda: (_by_id(samples.c.random.is_(True)), _by_seq(samples.c.random.is_(False))),
    "dealt": lambda: (_by_id(or_(~is_labelled(), has_verdict("any"))),),
    "score": lambda: (_by_percentile(), _by_id(samples.c.percentile.is_(None))),
    "cluster": lambda: (_by_percentile(), _by_id(samples.c.percentile.is_(None))),
    "newest": lambda: (_by_seq(samples.c.seq.is_not(None)),),
}


def _text(phase: int, key: Sequence[Any]) -> str:
    return json.dumps([phase, *key], separators=(",", ":"))


def _parsed(cursor: str, phases: int) -> tuple[int, list[Any]]:
    """Returns the phase of a cursor and the key in it. Raises ConfigError."""
    if not cursor:
        return 0, []
    try:
        phase, *key = json.loads(cursor[:300])
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError("cursor: not one of this queue") from error
    kinds = [type(each) for each in key]
    whole = all(not isinstance(each, int) or abs(each) < 2**63 for each in key)
    if type(phase) is not int or not 0 <= phase < phases or kinds not in _SHAPES or not whole:
        raise ConfigError("cursor: not one of this queue")
    if any(isinstance(each, str) and "\0" in each for each in key):
        raise ConfigError("cursor: not one of this queue")
    return phase, key


_SHAPES: list[list[type]] = [[str], [int], [float, str], [int, str]]


def _candidates(store: Store, groups: Sequence[Group]) -> tuple[Candidate, ...]:
    found = {sample.id: sample for sample in store.among([group.ids[0] for group in groups])}
    return tuple(
        Candidate(found[group.ids[0]], tuple(group.ids[1:])) for group in groups if group.ids[0] in found
    )


def _foldable(row: Row[Any]) -> Foldable:
    raw = row.embedding
    embedding = None if not raw or len(raw) % 2 else np.frombuffer(raw, "<f2").astype(np.float32)
    return Foldable(row.id, row.bundle, answer_key(_prediction(row.offer)), embedding)


def _prediction(offer: Any) -> dict[str, Any]:
    # A damaged row has no answer, and is folded with nothing that has one.
    try:
        found = json.loads(offer).get("prediction", {})
    except (ValueError, TypeError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
