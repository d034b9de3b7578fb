"""Records the labels that changed in a label tool, page by page, and remembers how far it got.

    tool.changes --ImportedLabel--> checked against the store --> label ledger, one transaction per page -->
    cursor

The cursor is written after the labels, so a killed pull reads its last page again and finds it unchanged. It
stops before the first label that could not be recorded, such as one of a class that the fleet does not have:
the next pull meets that label again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from misfire_fleet.labels.exchange.importing import composed, scaled
from misfire_fleet.labels.formats.base import ImportedLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.labels.tools.base import LabelTool, ToolStatus
from misfire_fleet.labels.tools.cursors import Cursors
from misfire_fleet.labels.tools.selection import count_among
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter

_OVERLAP = timedelta(minutes=2)
"""Changes that were begun before the newest one that was read, and committed after it."""
_GROUP = 500


@dataclass
class Pulled:
    """Counts what a pull did.

    Attributes:
        recorded: labels that are new, or that their annotator changed.
        unchanged: labels that were recorded before.
        skipped: tasks that an annotator skipped since the last pull.
        deleted: labels of samples that were deleted from the store since.
        foreign: tasks without a sample of any fleet.
        new_classes: classes that were added.
        problems: sentences about labels that could not be recorded.
    """

    recorded: int = 0
    unchanged: int = 0
    skipped: int = 0
    deleted: int = 0
    foreign: int = 0
    new_classes: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns an object for JSON."""
        return asdict(self) | {"new_classes": sorted(self.new_classes)}


def pull(
    store: Store,
    tool: LabelTool,
    *,
    add_classes: bool = False,
    everything: bool = False,
    dry_run: bool = False,
    actor: str = "",
) -> Pulled:
    """Records the labels that changed since the last pull.

    Args:
        store: of the samples.
        tool: where people label them.
        add_classes: adds classes that the fleet does not have, instead of reporting them.
        everything: reads all labels, also those that were fetched before.
        dry_run: only counts.
        actor: who adds classes, for the audit log.

    Raises:
        LabelToolError: the tool refuses a request.
        LabelToolUnavailableError: the tool does not work now; what was recorded stays.
        StoreUnavailableError: the store does not work now; what was recorded stays.
    """
    cursors, ledger, done = Cursors(store.blobs), LabelLedger(store), Pulled()
    since = None if everything else cursors.load(tool.identity)
    for changes in tool.changes(None if since is None else since - _OVERLAP):
        done.skipped += changes.skipped
        done.foreign += changes.foreign
        done.problems += map(str, changes.problems)
        _record(
            store, ledger, tool, changes.labels, done, add_classes=add_classes, dry_run=dry_run, actor=actor
        )
        if changes.until is not None and not done.problems and not dry_run:
            cursors.save(tool.identity, changes.until)
    return done


def _record(
    store: Store,
    ledger: LabelLedger,
    tool: LabelTool,
    labels: Sequence[ImportedLabel],
    done: Pulled,
    *,
    add_classes: bool,
    dry_run: bool,
    actor: str,
) -> None:
    ids = sorted({label.sample for label in labels})
    gone = store.tombstoned(ids)
    sizes = {sample.id: (sample.width, sample.height) for sample in store.among(ids)}
    new = []
    for label in labels:
        if label.sample in gone:
            done.deleted += 1
            continue
        size, said = sizes.get(label.sample), composed(label.label)
        if size is not None and label.size is not None and label.size != size:
            try:
                said = scaled(said, label.size, size)
            except ValueError as error:
                done.problems.append(f"{label.where}: {error}")
                continue
        new.append(
            NewLabel(
                label.sample,
                said,
                source=tool.source,
                annotator=label.annotator,
                at=label.at,
                where=label.where,
            )
        )
    if not new:
        return
    added = ledger.add(new, add_classes=add_classes, actor=actor, skip_wrong=True, dry_run=dry_run)
    done.recorded += added.recorded
    done.unchanged += added.unchanged
    done.new_classes |= set(added.new_classes)
    done.problems += added.problems()


@dataclass(frozen=True)
class LoopStatus:
    """Tells how far pushing and pulling are.

    Attributes:
        tool: the tool's own counts.
        pushed: samples of the store that have a task.
        not_pushed: samples that match and have none.
        duplicates: tasks beyond the first of their sample.
        foreign: tasks whose sample is not in the store.
        not_pulled: labels that are not recorded yet.
        problems: of labels that could not be recorded now.
        pulled_until: the newest change that was fetched; None if none was.
    """

    tool: ToolStatus
    pushed: int
    not_pushed: int
    duplicates: int
    foreign: int
    not_pulled: int
    problems: tuple[str, ...]
    pulled_until: datetime | None


def status(store: Store, tool: LabelTool, filters: SampleFilter) -> LoopStatus:
    """Returns how far pushing and pulling are; changes nothing.

    Args:
        store: of the samples.
        tool: where people label them.
        filters: samples that are to be labelled.

    Raises:
        LabelToolError: the tool refuses a request.
        LabelToolUnavailableError: the tool does not work now.
    """
    tasks, there = 0, set[bytes]()
    for group in tool.samples():
        tasks += len(group)
        # 32 bytes a sample instead of 113: a project may have a million.
        there |= {bytes.fromhex(sample) for sample in group if len(sample) == 64 and _is_hex(sample)}
    pushed = matching = 0
    ids = sorted(each.hex() for each in there)
    for start in range(0, len(ids), _GROUP):
        some = ids[start : start + _GROUP]
        pushed += len(store.known(some))
        matching += count_among(store, some, filters)
    waiting = pull(store, tool, dry_run=True, add_classes=True)
    return LoopStatus(
        tool=tool.status(),
        pushed=pushed,
        not_pushed=store.count(filters) - matching,
        duplicates=tasks - len(there),
        foreign=len(there) - pushed,
        not_pulled=waiting.recorded,
        problems=tuple(waiting.problems),
        pulled_until=Cursors(store.blobs).load(tool.identity),
    )


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in text)
