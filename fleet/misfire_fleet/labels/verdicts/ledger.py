"""Records verdicts: what a person says of a vehicle's answer. Records are added, and none is changed.

    NewVerdict --give: checked in full, one transaction--> rows of an act, and a label if it says one
    the name of an act --undo--> rows that bring back what held before it

A verdict is `right`, `wrong`, `missed` (something) or `ignore`. On a class or on classes, a right verdict
labels the sample with the answer, and a wrong or missed one with the correction, if it has one. Boxes are
labelled if the person drew or moved some. Such labels have the source `person`, and count like all others; if
the person takes the verdict back, they no longer count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, RowMapping, select

from misfire_fleet.errors import SampleGoneError, VerdictConflictError, VerdictRefusedError
from misfire_fleet.labels.answers import answer_of
from misfire_fleet.labels.checking import storable
from misfire_fleet.labels.content import (
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    canonical,
    parse,
)
from misfire_fleet.labels.verdicts.folding import answer_key
from misfire_fleet.labels.verdicts.recording import Draft, Given, Recorder, content_of, newest_of
from misfire_fleet.labels.verdicts.undoing import undo_act
from misfire_fleet.store import Store
from misfire_fleet.store.database import one_of
from misfire_fleet.store.labels import is_withdrawn, next_moment
from misfire_fleet.store.records import ANY, SampleFilter, StoredSample
from misfire_fleet.store.rows import sample_of
from misfire_fleet.store.schema import labels, samples, verdicts
from misfire_fleet.store.store import conditions_of
from misfire_fleet.store.verdicts import NONE, VerdictLine, settled

Verdict: TypeAlias = Literal["right", "wrong", "missed", "ignore"]
MAX_SHARED = 200
"""Samples of one act: more would be judged without being looked at."""
MAX_AGE_S = 30 * 86_400.0
"""A page keeps a verdict that could not be sent; this old, its clock is not believed."""
_PAGE = 5000
_MIN_SIDE = 1.0
"""Pixels; a box without an area cannot be matched."""
_ROUNDING = 0.5
"""Pixels that a box may leave its picture by: a pointer rests on the border."""


@dataclass(frozen=True)
class NewVerdict:
    """A verdict to be recorded.

    Attributes:
        act: name that the caller chose, 8 to 40 letters, digits, `-` and `_`. The same one again is no new
            verdict, so a request may be repeated.
        annotator: name of the person.
        samples: ids; the first was shown, the others are near-duplicates that share the verdict.
        verdict: of the vehicle's answer.
        label: the correction, in pixels of the stored picture; None if the person gave none.
        add_classes: adds classes that the fleet does not have.
        blind: score and trigger were hidden.
        took_s: seconds from showing the picture to the key; None if it is not known.
        age_s: seconds since the key.
        after: the act whose verdict the person knew to hold for the first sample: "" for none; None is not
            compared.
    """

    act: str
    annotator: str
    samples: tuple[str, ...]
    verdict: Verdict
    label: Label | None = None
    add_classes: bool = False
    blind: bool = True
    took_s: float | None = None
    age_s: float = 0.0
    after: str | None = None


@dataclass(frozen=True)
class Act:
    """An act of a person that still holds: what can be undone. `at`: seconds since 1970."""

    act: str
    sample: str
    verdict: Verdict
    count: int
    """Samples that have its verdict."""
    at: float
    label: Label | None


class VerdictLedger:
    """Adds and reads the verdicts of a store. Thread-safe, as the store is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recorder = Recorder(store)

    def give(self, new: NewVerdict) -> Given:
        """Records a verdict, with its label, in one transaction.

        Raises:
            SampleGoneError: the sample that was shown is not, or no longer, in the store.
            VerdictRefusedError: something is wrong with the verdict; all of it is named.
            VerdictConflictError: the person judged the sample meanwhile, or the act is another one's.
            StoreUnavailableError: nothing was recorded; the call may be repeated.
        """
        _require_writable(new)
        with self._recorder.transaction() as (connection, prefix):
            done = self._recorder.repeated(
                connection, new.act, new.annotator, asked=new.samples, verdict=new.verdict
            )
            if done is not None:
                return done
            found = self._stored(connection, new.samples)
            if new.samples[0] not in found:
                raise SampleGoneError(f"sample {new.samples[0][:16]}: it was deleted, or never stored")
            return self._give(connection, prefix, new, found)

    def undo(self, act: str, *, annotator: str, undoes: str) -> Given:
        """Takes an act back: what held before it holds again, and its labels no longer count.

        Args:
            act: name of this undoing, as in `NewVerdict`.
            annotator: who gave the verdict.
            undoes: the act.

        Raises:
            VerdictRefusedError: there is no such act of that person.
            VerdictConflictError: the person judged the sample again since, or took the act back already.
            StoreUnavailableError: nothing was recorded; the call may be repeated.
        """
        with self._recorder.transaction() as (connection, prefix):
            done = self._recorder.repeated(connection, act, annotator)
            if done is not None:
                return done
            given = self._recorder.of_act(connection, undoes)
            if not given or given[0]["annotator"] != annotator or given[0]["undoes"]:
                raise VerdictRefusedError(f"there is no verdict {undoes[:40]!r} of {annotator!r} to undo")
            return undo_act(self._recorder, connection, prefix, act, given)

    def last_acts(self, annotator: str, *, limit: int = 20) -> list[Act]:
        """Returns the newest acts of a person that hold, the last first."""
        undoing = verdicts.alias()
        query = (
            select(verdicts)
            .where(
                verdicts.c.annotator == annotator,
                ~verdicts.c.shared,
                verdicts.c.undoes == "",
                ~select(undoing.c.seq).where(undoing.c.undoes == verdicts.c.act).exists(),
            )
            .order_by(verdicts.c.recorded_at.desc())
            .limit(limit)
        )
        with self._store.database.read() as connection:
            rows = connection.execute(query).mappings().all()
            return [self._act(connection, row) for row in rows]

    def history(self, sample: str, *, limit: int = 200) -> list[VerdictLine]:
        """Returns the newest `limit` rows about a sample, oldest first."""
        if not storable(sample):
            return []
        query = select(verdicts).where(verdicts.c.sample == sample)
        query = query.order_by(verdicts.c.recorded_at.desc()).limit(limit)
        with self._store.database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [VerdictLine.model_construct(**_without_seq(row)) for row in reversed(rows)]

    def _give(
        self, connection: Connection, prefix: str, new: NewVerdict, found: Mapping[str, StoredSample]
    ) -> Given:
        before = newest_of(connection, new.annotator, list(found))
        shown, left_out = found[new.samples[0]], {}
        known = before.get(shown.id)
        if new.after is not None and (known["holds"] if known else "") != new.after:
            verdict = known["verdict"] if known else NONE
            raise VerdictConflictError(
                f"sample {shown.id[:16]}: your verdict is {verdict!r} meanwhile, given in another window"
            )
        _require_fitting(new, shown)
        judged: list[StoredSample] = []
        for key in dict.fromkeys(new.samples):
            sample = found.get(key)
            why = _why_not(sample, shown, before.get(key))
            if sample is None or (why and sample is not shown):
                left_out[key] = why or "it was deleted"
            else:
                judged.append(sample)
        draft = Draft(new.act, new.annotator, 0.0, next_moment(connection))
        draft.at = max(0.0, draft.moment - new.age_s)
        versions = self._label(connection, prefix, new, judged, before=before, moment=draft.moment)
        for sample in judged:
            earlier = before.get(sample.id)
            version = versions.get(sample.id)
            replaced = earlier["label_version"] if earlier else None
            draft.add(
                sample.id,
                new.verdict,
                holds=new.act,
                label_version=version,
                withdraws=replaced if replaced != version else None,
                shared=sample is not shown,
                blind=new.blind,
                took_s=new.took_s if sample is shown else None,
            )
        self._recorder.keep(connection, draft)
        return Given(
            new.act,
            tuple(each.id for each in judged),
            left_out,
            sum(v is not None for v in versions.values()),
        )

    def _label(
        self,
        connection: Connection,
        prefix: str,
        new: NewVerdict,
        judged: Sequence[StoredSample],
        *,
        before: Mapping[str, RowMapping],
        moment: float,
    ) -> dict[str, int]:
        """Records the labels of a verdict; returns their versions by sample."""
        if new.label is not None:
            some = judged[:1] if isinstance(new.label, BoxesLabel) else judged
            wanted = {sample.id: new.label for sample in some}
        elif new.verdict == "right":
            wanted = self._accepted(connection, judged)
        else:
            return {}
        accepted = new.label is None
        versions = self._recorder.label(
            connection, prefix, new.annotator, wanted, moment, add_classes=accepted or new.add_classes
        )
        for key in wanted:
            earlier = before.get(key)
            # The same label again is no new record: it stays that of the person's verdict.
            if key not in versions and earlier is not None and earlier["label_version"] is not None:
                versions[key] = earlier["label_version"]
        return versions

    def _accepted(self, connection: Connection, judged: Sequence[StoredSample]) -> dict[str, Label]:
        """Returns the answers that a right verdict makes labels of: classes, of samples labelled alike."""
        counting = select(labels.c.sample, labels.c.kind).where(
            one_of(labels.c.sample, [each.id for each in judged], on=connection), ~is_withdrawn()
        )
        kinds = {row.sample: row.kind for row in connection.execute(counting)}
        wanted: dict[str, Label] = {}
        for sample in judged:
            answer = answer_of(sample)
            label = None if answer is None else answer.label
            if not isinstance(label, (ClassLabel, ClassesLabel)):
                continue
            if kinds.get(sample.id, label.kind) == label.kind and storable(canonical(label)):
                wanted[sample.id] = label
        return wanted

    def _stored(self, connection: Connection, ids: Sequence[str]) -> dict[str, StoredSample]:
        query = select(samples).where(one_of(samples.c.id, ids, on=connection))
        return {row.id: sample_of(row) for row in connection.execute(query)}

    def _act(self, connection: Connection, row: RowMapping) -> Act:
        count = len(self._recorder.of_act(connection, row["act"]))
        content = content_of(connection, row["sample"], row["annotator"], row["label_version"])
        label = None if content is None else parse(content, where=f"label of sample {row['sample'][:16]}")
        return Act(row["act"], row["sample"], row["verdict"], count, row["at"], label)


def settled_verdicts(store: Store, filters: SampleFilter = ANY) -> Iterator[VerdictLine]:
    """Yields the verdict of each sample that matches and was judged, by sample id; memory is one page."""
    found = settled().subquery()
    query = (
        select(found)
        .join(samples, samples.c.id == found.c.sample)
        .where(*conditions_of(filters))
        .order_by(found.c.sample)
        .limit(_PAGE)
    )
    after = ""
    while True:
        with store.database.read() as connection:
            rows = connection.execute(query.where(found.c.sample > after)).mappings().all()
        for row in rows:
            yield VerdictLine.model_construct(**_without_seq(row))
        if len(rows) < _PAGE:
            return
        after = rows[-1]["sample"]


def _require_writable(new: NewVerdict) -> None:
    """Raises VerdictRefusedError if a name or a number of a verdict cannot be recorded."""
    problems = []
    name = new.annotator
    if not 1 <= len(name) <= 64 or name != name.strip() or not name.isprintable() or not storable(name):
        problems.append("a name has 1 to 64 letters that can be printed")
    if not 1 <= len(new.samples) <= MAX_SHARED:
        problems.append(f"a verdict is on 1 to {MAX_SHARED} samples")
    if not 0 <= new.age_s <= MAX_AGE_S or not 0 <= (new.took_s or 0.0) <= MAX_AGE_S:
        problems.append("its seconds are out of range")
    if problems:
        raise VerdictRefusedError(*problems)


def _require_fitting(new: NewVerdict, shown: StoredSample) -> None:
    """Raises VerdictRefusedError if a label contradicts its verdict, its task or its picture."""
    label = new.label
    if label is None:
        return
    if new.verdict in ("right", "ignore"):
        raise VerdictRefusedError(f"a verdict {new.verdict!r} has no correction")
    answer = answer_of(shown)
    answered = None if answer is None else answer.label
    if not isinstance(label, (ClassLabel, ClassesLabel, BoxesLabel)):
        raise VerdictRefusedError(
            f"a label of kind {label.kind} is not made with a verdict; use a label tool"
        )
    if answered is not None and answered.kind != label.kind:
        raise VerdictRefusedError(f"a label of kind {label.kind}, but the answer is of kind {answered.kind}")
    if not isinstance(label, BoxesLabel):
        if answered is not None and _same(answered, label):
            raise VerdictRefusedError(f"a verdict {new.verdict!r}, but its label is the vehicle's answer")
        return
    problems = []
    for number, box in enumerate(label.boxes, start=1):
        outside = (
            min(box.x0, box.y0) < -_ROUNDING
            or box.x1 > shown.width + _ROUNDING
            or box.y1 > shown.height + _ROUNDING
        )
        if box.degrees:
            problems.append(f"box {number} ({box.name[:40]}) is turned; use a label tool")
        elif box.x1 - box.x0 < _MIN_SIDE or box.y1 - box.y0 < _MIN_SIDE:
            problems.append(f"box {number} ({box.name[:40]}) has a side below {_MIN_SIDE:g} pixel")
        elif outside:
            size = f"{shown.width} x {shown.height}"
            problems.append(f"box {number} ({box.name[:40]}) leaves the picture of {size} pixels")
    if problems:
        raise VerdictRefusedError(*problems)


def _same(answered: Label, label: Label) -> bool:
    if isinstance(answered, ClassesLabel) and isinstance(label, ClassesLabel):
        return set(answered.names) == set(label.names)
    return answered == label


def _why_not(sample: StoredSample | None, shown: StoredSample, before: RowMapping | None) -> str:
    """Returns why a near-duplicate does not share a verdict; "" if it does."""
    if sample is None:
        return "it was deleted"
    if before is not None and before["verdict"] != NONE:
        return "you judged it by itself"
    if sample.bundle != shown.bundle or answer_key(sample.prediction) != answer_key(shown.prediction):
        return "the vehicle answered something else"
    return ""


def _without_seq(row: RowMapping) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seq"}
