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
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, RowMapping, select

from misfire_fleet.errors import SampleGoneError, VerdictConflictError, VerdictRefusedError
from misfire_fleet.labels.answers import answer_of
from misfire_fleet.labels.checking import NewLabel, storable
from misfire_fleet.labels.content import (
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    canonical,
    parse,
)
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.labels.verdicts.folding import answer_key
from misfire_fleet.store import Store
from misfire_fleet.store.database import one_of
from misfire_fleet.store.labels import PERSON, is_withdrawn, next_moment
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
class Given:
    """Says what was recorded.

    Attributes:
        act: its name.
        samples: ids that have the verdict now.
        left_out: why other samples do not have it, by id.
        labelled: how many of them were labelled with it.
        repeated: it was recorded before.
    """

    act: str
    samples: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    labelled: int = 0
    repeated: bool = False


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


@dataclass
class _Draft:
    """Collects the rows of an act."""

    act: str
    annotator: str
    at: float
    moment: float
    lines: list[VerdictLine] = field(default_factory=list)

    def add(self, sample: str, verdict: str, **values: Any) -> None:
        self.lines.append(
            VerdictLine(
                act=self.act,
                sample=sample,
                annotator=self.annotator,
                verdict=verdict,
                at=self.at,
                recorded_at=self.moment,
                **values,
            )
        )


class VerdictLedger:
    """Adds and reads the verdicts of a store. Thread-safe, as the store is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows = store.deletion.verdicts
        self._labels = LabelLedger(store)

    def give(self, new: NewVerdict) -> Given:
        """Records a verdict, with its label, in one transaction.

        Raises:
            SampleGoneError: the sample that was shown is not, or no longer, in the store.
            VerdictRefusedError: something is wrong with the verdict; all of it is named.
            VerdictConflictError: the person judged the sample meanwhile, or the act is another one's.
            StoreUnavailableError: nothing was recorded; the call may be repeated.
        """
        _require_writable(new)
        with self._transaction() as (connection, prefix):
            done = self._repeated(connection, new.act, new.annotator, asked=new.samples, verdict=new.verdict)
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
        with self._transaction() as (connection, prefix):
            done = self._repeated(connection, act, annotator)
            if done is not None:
                return done
            given = self._of_act(connection, undoes)
            if not given or given[0]["annotator"] != annotator or given[0]["undoes"]:
                raise VerdictRefusedError(f"there is no verdict {undoes[:40]!r} of {annotator!r} to undo")
            return self._undo(connection, prefix, act, given)

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

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Connection, str]]:
        """Opens a transaction with the lock of deletions, and the mark of its documents of labels."""
        rows = self._store.deletion.labels
        prefix, written = rows.begin(), False
        try:
            with self._store.deletion.groups.alone() as connection:
                yield connection, prefix
                rows.commit(connection, prefix)
            written = True
        finally:
            # Documents of labels that were not committed must not come back.
            if not written:
                rows.abandon(prefix)

    def _give(
        self, connection: Connection, prefix: str, new: NewVerdict, found: Mapping[str, StoredSample]
    ) -> Given:
        before = _newest_of(connection, new.annotator, list(found))
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
        draft = _Draft(new.act, new.annotator, 0.0, next_moment(connection))
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
        self._rows.add(connection, draft.lines)
        return Given(
            new.act,
            tuple(each.id for each in judged),
            left_out,
            sum(v is not None for v in versions.values()),
        )

    def _undo(self, connection: Connection, prefix: str, act: str, given: Sequence[RowMapping]) -> Given:
        annotator, undone = str(given[0]["annotator"]), str(given[0]["act"])
        now = _newest_of(connection, annotator, [row["sample"] for row in given])
        draft = _Draft(act, annotator, 0.0, next_moment(connection))
        draft.at = draft.moment
        left_out: dict[str, str] = {}
        restored: dict[str, Label] = {}
        plans: list[tuple[RowMapping, RowMapping | None]] = []
        for row in given:
            key = str(row["sample"])
            if now[key]["holds"] != undone:
                why = (
                    f"sample {key[:16]}: you took this verdict back already"
                    if now[key]["verdict"] == NONE
                    else f"sample {key[:16]}: you judged it again since; undo that first"
                )
                if not row["shared"]:
                    raise VerdictConflictError(why)
                left_out[key] = why
                continue
            earlier = _before(connection, row)
            plans.append((row, earlier))
            if earlier is not None and earlier["label_version"] != now[key]["label_version"]:
                content = _content_of(connection, key, annotator, earlier["label_version"])
                if content is not None:
                    restored[key] = parse(content, where=f"label of sample {key[:16]}")
        versions = self._record(connection, prefix, annotator, restored, draft.moment, add_classes=True)
        for row, earlier in plans:
            key = str(row["sample"])
            version = versions.get(key, earlier["label_version"] if earlier and key not in restored else None)
            draft.add(
                key,
                earlier["verdict"] if earlier else NONE,
                holds=earlier["holds"] if earlier else "",
                undoes=undone,
                label_version=version,
                withdraws=now[key]["label_version"] if now[key]["label_version"] != version else None,
                shared=row["shared"],
            )
        if not draft.lines:
            raise VerdictConflictError(next(iter(left_out.values())))
        self._rows.add(connection, draft.lines)
        return Given(act, tuple(line.sample for line in draft.lines), left_out)

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
        versions = self._record(
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

    def _record(
        self,
        connection: Connection,
        prefix: str,
        annotator: str,
        wanted: Mapping[str, Label],
        moment: float,
        *,
        add_classes: bool,
    ) -> dict[str, int]:
        if not wanted:
            return {}
        at = datetime.fromtimestamp(moment, timezone.utc)
        new = [NewLabel(key, label, PERSON, annotator, at) for key, label in wanted.items()]
        added = self._labels.add_within(
            connection, new, prefix=prefix, moment=moment, add_classes=add_classes, actor=annotator
        )
        if not added.ok:
            raise VerdictRefusedError(*added.problems())
        query = select(labels.c.sample, labels.c.version).where(
            one_of(labels.c.sample, list(wanted), on=connection),
            labels.c.source == PERSON,
            labels.c.annotator == annotator,
            labels.c.recorded_at == moment,
        )
        return {row.sample: row.version for row in connection.execute(query)}

    def _repeated(
        self,
        connection: Connection,
        act: str,
        annotator: str,
        *,
        asked: Sequence[str] | None = None,
        verdict: str = "",
    ) -> Given | None:
        """Returns what an act recorded before; None if it is new. `asked`: None for an undoing."""
        rows = self._of_act(connection, act)
        if not rows:
            return None
        same = rows[0]["annotator"] == annotator and bool(rows[0]["undoes"]) == (asked is None)
        if asked is not None:
            same = same and rows[0]["verdict"] == verdict and rows[0]["sample"] == asked[0]
        if not same:
            raise VerdictConflictError(f"the name {act!r} is that of another verdict; choose another name")
        labelled = sum(row["label_version"] is not None for row in rows)
        return Given(act, tuple(row["sample"] for row in rows), {}, labelled, repeated=True)

    def _of_act(self, connection: Connection, act: str) -> Sequence[RowMapping]:
        query = select(verdicts).where(verdicts.c.act == act).order_by(verdicts.c.shared, verdicts.c.seq)
        return connection.execute(query).mappings().all() if storable(act) else []

    def _stored(self, connection: Connection, ids: Sequence[str]) -> dict[str, StoredSample]:
        query = select(samples).where(one_of(samples.c.id, ids, on=connection))
        return {row.id: sample_of(row) for row in connection.execute(query)}

    def _act(self, connection: Connection, row: RowMapping) -> Act:
        count = len(self._of_act(connection, row["act"]))
        content = _content_of(connection, row["sample"], row["annotator"], row["label_version"])
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


def _newest_of(connection: Connection, annotator: str, ids: Sequence[str]) -> dict[str, RowMapping]:
    """Returns a person's newest row about each sample."""
    query = select(verdicts).where(
        one_of(verdicts.c.sample, ids, on=connection), verdicts.c.annotator == annotator
    )
    rows = connection.execute(query.order_by(verdicts.c.recorded_at)).mappings().all()
    return {row["sample"]: row for row in rows}


def _before(connection: Connection, row: RowMapping) -> RowMapping | None:
    """Returns the person's row that held before this one; None if there was none."""
    query = select(verdicts).where(
        verdicts.c.sample == row["sample"],
        verdicts.c.annotator == row["annotator"],
        verdicts.c.recorded_at < row["recorded_at"],
    )
    return connection.execute(query.order_by(verdicts.c.recorded_at.desc()).limit(1)).mappings().one_or_none()


def _content_of(connection: Connection, sample: str, annotator: str, version: int | None) -> str | None:
    if version is None:
        return None
    query = select(labels.c.content).where(
        labels.c.sample == sample,
        labels.c.source == PERSON,
        labels.c.annotator == annotator,
        labels.c.version == version,
    )
    found = connection.scalar(query)
    return None if found is None else str(found)


def _without_seq(row: RowMapping) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seq"}
