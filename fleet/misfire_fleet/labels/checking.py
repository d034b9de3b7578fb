"""Checks new labels against what the store has, and reports in full what is wrong with them.

    NewLabel --write_spool--> a temporary file --groups--> Checker.check --> rows to insert, or problems

The labels go through a file: they are parsed before the database is locked, and never are all in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import IO, Any

from misfire_fleet.labels.content import (
    Label,
    canonical,
    names_in,
)
from misfire_runtime.messages import LAST_DATE

MAX_NAME = 200
"""Characters of a class or an annotator."""
GROUP = 500
"""Records per statement and per document."""
GROUP_BYTES = 8 * 1024 * 1024
"""Bytes of records that are in memory at once; one mask may be larger."""
_ID_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class NewLabel:
    """A label to be recorded.

    Attributes:
        sample: id of the sample.
        label: what it says.
        source: where the label was made: `person`, `label-studio`, `cvat`, `file`, `vote`, `audit`.
        annotator: who made it; empty if the source does not say.
        at: when it was made, UTC if it has no zone; None if the source does not say, which means now.
        where: file and line, or task, for the report.
    """

    sample: str
    label: Label
    source: str
    annotator: str = ""
    at: datetime | None = None
    where: str = ""


@dataclass(frozen=True)
class Added:
    """What was recorded, or everything that is wrong.

    Attributes:
        recorded: the number of new records; if not `written`, of those that would be recorded.
        unchanged: labels that their annotator gave before.
        new_classes: classes that were added, or would be.
        unknown_samples: ids that are not in the store, each with the first place that names it.
        unknown_classes: classes that the fleet does not have, each with the number of labels that name it.
        misfits: labels of another kind than their sample's earlier ones, or than the first of this call.
        clashes: labels that differ from another one of the same annotator, sample and time.
        invalid: labels that cannot be stored.
        written: whether the new records are in the store now.
    """

    recorded: int = 0
    unchanged: int = 0
    new_classes: tuple[str, ...] = ()
    unknown_samples: dict[str, str] = field(default_factory=dict)
    unknown_classes: dict[str, int] = field(default_factory=dict)
    misfits: tuple[str, ...] = ()
    clashes: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    written: bool = False

    @property
    def ok(self) -> bool:
        """Returns True if nothing is wrong."""
        wrong = (self.unknown_samples, self.unknown_classes, self.misfits, self.clashes, self.invalid)
        return not any(wrong)

    def problems(self) -> list[str]:
        """Returns a sentence for each thing that is wrong, all of them."""
        unknown = self.unknown_samples.items()
        lines = [f"{where or 'label'}: sample {sample[:64]} is not in the store" for sample, where in unknown]
        lines += [
            f"class {name!r} is not one of the fleet's classes ({count} labels name it)"
            for name, count in self.unknown_classes.items()
        ]
        return [*lines, *self.misfits, *self.clashes, *self.invalid]

    def to_dict(self) -> dict[str, Any]:
        """Returns an object for JSON."""
        return asdict(self) | {"ok": self.ok}


@dataclass
class Checker:
    """Decides which labels become rows, and collects the problems of the others."""

    add_classes: bool
    moment: float = 0.0
    """Time of the import, seconds since 1970."""
    known_classes: set[str] = field(default_factory=set)
    recorded: int = 0
    unchanged: int = 0
    new_classes: set[str] = field(default_factory=set)
    unknown_samples: dict[str, str] = field(default_factory=dict)
    unknown_classes: Counter[str] = field(default_factory=Counter)
    misfits: list[str] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    kind: str = ""
    """Kind of the first label: one call has labels of one kind."""

    def check(
        self, line: dict[str, Any], *, known: set[str], said: dict[str, list[dict[str, Any]]]
    ) -> dict[str, Any] | None:
        """Returns the row of a spooled label, or None if it is wrong or not new.

        Args:
            line: from the spool.
            known: ids that are in the store.
            said: the records of each sample, without their contents; the new row is appended.
        """
        sample, where = line["sample"], line["where"] or f"sample {line['sample'][:16]}"
        if sample not in known:
            self.unknown_samples.setdefault(sample, line["where"])
            return None
        unknown = [name for name in line["names"] if name not in self.known_classes]
        if unknown and not self.add_classes:
            self.unknown_classes.update(unknown)
            return None
        earlier = said.setdefault(sample, [])
        at = self.moment if line["at"] is None else min(line["at"], self.moment)
        own = [
            row for row in earlier if (row["source"], row["annotator"]) == (line["source"], line["annotator"])
        ]
        # What its annotator took back is neither a reason to refuse a label nor the same label again.
        counting = [row for row in earlier if not row.get("withdrawn")]
        said_before = [row for row in own if not row.get("withdrawn")]
        if not self._fits(line, counting, where) or not self._is_new(line, said_before, at, where):
            return None
        self.new_classes.update(unknown)
        row = {key: value for key, value in line.items() if key != "where"}
        row |= {
            "at": at,
            "recorded_at": self.moment,
            "version": max((row["version"] for row in own), default=0) + 1,
        }
        earlier.append(row)
        self.recorded += 1
        return row

    def _is_new(self, line: dict[str, Any], own: list[dict[str, Any]], at: float, where: str) -> bool:
        """Returns True if the annotator did not say so before. `own`: the annotator's earlier records."""
        newest = max(own, key=lambda row: (row["at"], row["version"]), default=None)
        same_time = [row for row in own if row["at"] == at]
        # The second case is an old record that is imported again after it was corrected.
        if any(row["content_hash"] == line["content_hash"] for row in (newest, *same_time) if row):
            self.unchanged += 1
            return False
        if any(row["recorded_at"] == self.moment for row in same_time):
            who = line["annotator"] or line["source"]
            self.clashes.append(
                f"{where}: {who} labelled {line['sample'][:16]} twice, with different contents"
            )
            return False
        return True

    def _fits(self, line: dict[str, Any], earlier: list[dict[str, Any]], where: str) -> bool:
        expected = earlier[-1]["kind"] if earlier else self.kind
        for kind, of in (
            (self.kind, "the first label here is"),
            (expected, "the sample's earlier labels are"),
        ):
            if line["kind"] != kind:
                self.misfits.append(f"{where}: a label of kind {line['kind']}, but {of} {kind}")
                return False
        return True

    def result(self, *, written: bool) -> Added:
        """Returns what was found."""
        return Added(
            recorded=self.recorded,
            unchanged=self.unchanged,
            new_classes=tuple(sorted(self.new_classes)),
            unknown_samples=self.unknown_samples,
            unknown_classes=dict(sorted(self.unknown_classes.items())),
            misfits=tuple(self.misfits),
            clashes=tuple(self.clashes),
            invalid=tuple(self.invalid),
            written=written,
        )


def write_spool(spool: IO[bytes], new: Iterable[NewLabel], checker: Checker) -> None:
    """Writes the labels that can be stored to a file, one JSON object per line."""
    for label in new:
        problem = _problem(label)
        if problem:
            checker.invalid.append(f"{label.where or label.sample[:16]}: {problem}")
            continue
        checker.kind = checker.kind or label.label.kind
        content = canonical(label.label)
        line = {
            "sample": label.sample,
            "source": label.source,
            "annotator": label.annotator,
            "kind": label.label.kind,
            "content": content,
            "content_hash": hashlib.sha256(content.encode()).hexdigest(),
            "at": None if label.at is None else _seconds(label.at),
            "names": sorted(names_in(label.label)),
            "where": label.where,
        }
        spool.write(json.dumps(line).encode() + b"\n")


def groups(spool: IO[bytes]) -> Iterator[list[dict[str, Any]]]:
    """Yields the spooled labels in groups that are bounded in number and in bytes."""
    spool.seek(0)
    group: list[dict[str, Any]] = []
    size = 0
    for raw in spool:
        if group and (len(group) == GROUP or size + len(raw) > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(json.loads(raw))
        size += len(raw)
    if group:
        yield group


def storable(text: str) -> bool:
    """Returns True if both databases accept the text: no NUL, and no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _problem(label: NewLabel) -> str:
    """Returns why a label cannot be stored; empty if it can."""
    if len(label.sample) != 64 or not _ID_DIGITS.issuperset(label.sample):
        return f"{label.sample[:64]!r} is no sample id: 64 digits of 0-9 and a-f"
    if not 1 <= len(label.source) <= 64 or not storable(label.source):
        return "a source has 1 to 64 characters of text"
    if len(label.annotator) > MAX_NAME or not storable(label.annotator):
        return f"an annotator has at most {MAX_NAME} characters of text"
    if label.at is not None and not 0 <= _seconds(label.at) <= LAST_DATE:
        return f"its time {label.at} is out of range"
    unreadable = [name for name in names_in(label.label) if not storable(name)]
    return f"the class {unreadable[0]!r} is no text" if unreadable else ""


def _seconds(at: datetime) -> float:
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()
