"""Records the rows of an act, and the labels that belong to it, in one transaction.

transaction --Draft: lines of an act--> rows and document of verdicts      labels --> records of a person
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from misfire_fleet.errors import VerdictConflictError, VerdictRefusedError
from misfire_fleet.labels.checking import NewLabel, storable
from misfire_fleet.labels.content import Label
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.store import Store
from misfire_fleet.store.database import one_of
from misfire_fleet.store.labels import PERSON
from misfire_fleet.store.schema import labels, verdicts
from misfire_fleet.store.verdicts import VerdictLine


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


@dataclass
class Draft:
    """Collects the rows of an act. `at`: when the person pressed the key; `moment`: of its recording."""

    act: str
    annotator: str
    at: float
    moment: float
    lines: list[VerdictLine] = field(default_factory=list)

    def add(self, sample: str, verdict: str, **values: Any) -> None:
        """Adds the row about a sample."""
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


class Recorder:
    """Writes acts of a store, and finds them again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._labels = LabelLedger(store)

    @contextmanager
    def transaction(self) -> Iterator[tuple[Connection, str]]:
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

    def keep(self, connection: Connection, draft: Draft) -> None:
        """Writes the rows of an act, its document first."""
        self._store.deletion.verdicts.add(connection, draft.lines)

    def label(
        self,
        connection: Connection,
        prefix: str,
        annotator: str,
        wanted: Mapping[str, Label],
        moment: float,
        *,
        add_classes: bool,
    ) -> dict[str, int]:
        """Records labels of a person by sample; returns the versions of those that are new.

        Raises VerdictRefusedError with all that is wrong with them.
        """
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

    def repeated(
        self,
        connection: Connection,
        act: str,
        annotator: str,
        *,
        asked: Sequence[str] | None = None,
        verdict: str = "",
    ) -> Given | None:
        """Returns what an act recorded before; None if it is new. `asked`: None for an undoing."""
        rows = self.of_act(connection, act)
        if not rows:
            return None
        same = rows[0]["annotator"] == annotator and bool(rows[0]["undoes"]) == (asked is None)
        if asked is not None:
            same = same and rows[0]["verdict"] == verdict and rows[0]["sample"] == asked[0]
        if not same:
            raise VerdictConflictError(f"the name {act!r} is that of another verdict; choose another name")
        labelled = sum(row["label_version"] is not None for row in rows)
        return Given(act, tuple(row["sample"] for row in rows), {}, labelled, repeated=True)

    def of_act(self, connection: Connection, act: str) -> Sequence[RowMapping]:
        """Returns the rows of an act, that of the shown sample first."""
        query = select(verdicts).where(verdicts.c.act == act).order_by(verdicts.c.shared, verdicts.c.seq)
        return connection.execute(query).mappings().all() if storable(act) else []


def newest_of(connection: Connection, annotator: str, ids: Sequence[str]) -> dict[str, RowMapping]:
    """Returns a person's newest row about each sample."""
    query = select(verdicts).where(
        one_of(verdicts.c.sample, ids, on=connection), verdicts.c.annotator == annotator
    )
    rows = connection.execute(query.order_by(verdicts.c.recorded_at)).mappings().all()
    return {row["sample"]: row for row in rows}


def content_of(connection: Connection, sample: str, annotator: str, version: int | None) -> str | None:
    """Returns the content of a version of a person's label; None if there is none."""
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
