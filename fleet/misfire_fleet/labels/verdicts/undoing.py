"""Takes an act back: what held before it holds again, and its labels no longer count.

rows of the act --those that still hold--> the person's rows before --> rows of the undoing, labels restored

An undoing is an act too: it adds rows, and changes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, select

from misfire_fleet.errors import VerdictConflictError
from misfire_fleet.labels.content import Label, parse
from misfire_fleet.labels.verdicts.recording import Draft, Given, Recorder, content_of, newest_of
from misfire_fleet.store.labels import next_moment
from misfire_fleet.store.schema import verdicts
from misfire_fleet.store.verdicts import NONE


@dataclass(frozen=True)
class _Plan:
    """Holds what is taken back of a sample. `before`: the row of the person that holds again, or None."""

    row: RowMapping
    now: RowMapping
    before: RowMapping | None

    @property
    def sample(self) -> str:
        return str(self.row["sample"])


def undo_act(
    recorder: Recorder, connection: Connection, prefix: str, act: str, given: Sequence[RowMapping]
) -> Given:
    """Records the undoing `act` of the rows of another act.

    Args:
        recorder: writes it.
        connection: a transaction of the recorder.  prefix: of its documents of labels.
        act: name of the undoing.
        given: rows of the act that is undone, that of the shown sample first.

    Raises:
        VerdictConflictError: the person judged the shown sample again since, or took the act back already.
    """
    annotator, undone = str(given[0]["annotator"]), str(given[0]["act"])
    plans, left_out = _plans(connection, given)
    if not plans:
        raise VerdictConflictError(next(iter(left_out.values())))
    moment = next_moment(connection)
    draft = Draft(act, annotator, moment, moment)
    restored = _restored(connection, plans, annotator)
    versions = recorder.label(connection, prefix, annotator, restored, moment, add_classes=True)
    for plan in plans:
        before, now = plan.before, plan.now["label_version"]
        kept = before["label_version"] if before and plan.sample not in restored else None
        version = versions.get(plan.sample, kept)
        draft.add(
            plan.sample,
            before["verdict"] if before else NONE,
            holds=before["holds"] if before else "",
            undoes=undone,
            label_version=version,
            withdraws=now if now != version else None,
            shared=plan.row["shared"],
        )
    recorder.keep(connection, draft)
    return Given(act, tuple(line.sample for line in draft.lines), left_out)


def _plans(connection: Connection, given: Sequence[RowMapping]) -> tuple[list[_Plan], dict[str, str]]:
    """Returns what can be taken back, and why other samples cannot."""
    annotator, undone = str(given[0]["annotator"]), str(given[0]["act"])
    newest = newest_of(connection, annotator, [row["sample"] for row in given])
    plans, left_out = [], {}
    for row in given:
        key = str(row["sample"])
        now = newest[key]
        if now["holds"] == undone:
            plans.append(_Plan(row, now, _before(connection, row)))
            continue
        again = (
            "took this verdict back already"
            if now["verdict"] == NONE
            else "judged it again since; undo that first"
        )
        why = f"sample {key[:16]}: you {again}"
        if not row["shared"]:
            raise VerdictConflictError(why)
        left_out[key] = why
    return plans, left_out


def _restored(connection: Connection, plans: Sequence[_Plan], annotator: str) -> Mapping[str, Label]:
    """Returns the labels of the verdicts that hold again, by sample, if they are not the newest anyway."""
    found: dict[str, Label] = {}
    for plan in plans:
        if plan.before is None or plan.before["label_version"] == plan.now["label_version"]:
            continue
        content = content_of(connection, plan.sample, annotator, plan.before["label_version"])
        if content is not None:
            found[plan.sample] = parse(content, where=f"label of sample {plan.sample[:16]}")
    return found


def _before(connection: Connection, row: RowMapping) -> RowMapping | None:
    """Returns the person's row that held before this one; None if there was none."""
    query = select(verdicts).where(
        verdicts.c.sample == row["sample"],
        verdicts.c.annotator == row["annotator"],
        verdicts.c.recorded_at < row["recorded_at"],
    )
    return connection.execute(query.order_by(verdicts.c.recorded_at.desc()).limit(1)).mappings().one_or_none()
