"""Makes examples of a snapshot: its train side to train on, its holdout side for the score, never its test.

    manifest, whose hash is checked --> members --label records, hashes checked--> targets
    samples' bytes, hashes checked  --> images                                --> Examples of both sides

Nothing of a frozen test set goes in, whatever the manifest says: ids, groups and bytes are checked again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from sqlalchemy import select

from misfire_fleet.datasets.freezing import frozen_among
from misfire_fleet.datasets.manifest import Member
from misfire_fleet.datasets.snapshots import Snapshots
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import Label, content_hash
from misfire_fleet.labels.ledger import record_of
from misfire_fleet.retrain.targets import Learner, target_of
from misfire_fleet.retrain.uploads import Uploads, uploads_of
from misfire_fleet.store import Store
from misfire_fleet.store.database import one_of
from misfire_fleet.store.records import StoredSample
from misfire_fleet.store.schema import labels
from misfire_train.data.examples import join
from misfire_train.runs import Run, read_splits

_PAGE = 100
"""Labels in memory at once: a mask has 16 MiB at most."""


@dataclass(frozen=True)
class SnapshotUploads:
    """Holds the usable samples of a snapshot: those to train on, and those held out for the score.

    `name`, `sha256`: of the snapshot; None if the labels are of a CSV. `deleted`: its samples that were
    deleted since it was made.
    """

    name: str | None
    sha256: str | None
    train: Uploads
    holdout: Uploads | None
    deleted: int

    def all(self) -> Uploads:
        """Returns the uploads of both sides."""
        if self.holdout is None:
            return self.train
        sides = (self.train, self.holdout)
        skipped = {name: sum(side.skipped[name] for side in sides) for name in self.train.skipped}
        return Uploads(
            join([side.examples for side in sides]),
            self.train.stored,
            self.train.unlabelled - (self.holdout.stored - self.holdout.unlabelled),
            skipped,
            (*self.train.problems, *self.holdout.problems)[:10],
        )


def snapshot_uploads(store: Store, name: str, *, run: Learner) -> SnapshotUploads:
    """Returns the examples of a snapshot.

    Args:
        store: the store that has the snapshot.
        name: of the snapshot.
        run: its task and contract say how labels and pixels are read.

    Raises:
        StoreError: the manifest, a label or a sample was altered; a sample is in a frozen test set; or no
            sample of the train side is usable.
        ConfigError: a label does not fit the run's task.
    """
    verified = Snapshots(store).verify(name)
    if not verified.intact:
        lost = len(verified.lost_labels)
        raise StoreError(verified.altered or f"snapshot {name}: {lost} of its labels were lost or changed")
    manifest, sha256 = Snapshots(store).read(name)
    used = [member for member in manifest.members if member.side != "test"]
    refuse_frozen(store, [member.id for member in used], what=f"snapshot {name}")
    sides = {side: [m for m in used if m.side == side] for side in ("train", "holdout")}
    train = member_uploads(store, sides["train"], run=run, what=f"the train side of snapshot {name}")
    holdout = None
    if sides["holdout"]:
        holdout = member_uploads(store, sides["holdout"], run=run, what=f"the holdout of snapshot {name}")
    return SnapshotUploads(name, sha256, train, holdout, len(verified.deleted))


def refuse_frozen(store: Store, ids: Sequence[str], *, what: str) -> None:
    """Raises StoreError if one of the samples, or its group, is in a frozen test set."""
    frozen = frozen_among(store, ids)
    if frozen:
        sample, test = min(frozen.items())
        raise StoreError(
            f"{what}: {len(frozen)} samples belong to a frozen test set, such as {sample[:16]} to that of "
            f"snapshot {test}; nothing trains on them: make a new snapshot, or leave them out"
        )


def refuse_run(store: Store, run: Run) -> None:
    """Raises StoreError if the run, or an ancestor, trained on what is a frozen test set now."""
    ids = {each for part in read_splits(run.path).values() for each in part if len(each) == 64}
    refuse_frozen(store, sorted(ids), what=f"run {run.record.run_id}")


def member_uploads(store: Store, members: Sequence[Member], *, run: Learner, what: str) -> Uploads:
    """Returns the usable samples among members of a snapshot, whatever their side, as examples.

    Args:
        store: that has them.
        members: of a snapshot whose manifest was checked.
        run: its task and contract say how labels and pixels are read.
        what: where the labels are, for errors.

    Raises:
        StoreError: a label or a sample was altered, or none is usable.
        ConfigError: a label does not fit the run's task.
    """
    contents = LabelContents(store, members)
    groups = {member.id: member.group for member in members}

    def target(sample: StoredSample) -> NDArray[Any]:
        size = (sample.width, sample.height)
        return target_of(contents.of(sample.id), run=run, size=size, where=f"sample {sample.id[:16]}")

    return uploads_of(store, list(groups), target=target, group=lambda s: groups[s.id], run=run, what=what)


class LabelContents:
    """Reads the labels of members in pages, of which one is in memory: masks may be large."""

    def __init__(self, store: Store, members: Sequence[Member]) -> None:
        self._store = store
        self._members = sorted(members, key=lambda member: member.id)
        self._ids = [member.id for member in self._members]
        self._page: dict[str, Label] = {}

    def of(self, sample: str) -> Label:
        """Returns the label of a sample. Raises StoreError if it was altered, or deleted just now.

        Samples are asked for in the order of their ids, so that each page is read once.
        """
        if sample not in self._page:
            start = bisect_left(self._ids, sample)
            self._page = dict(self._read(self._members[start : start + _PAGE]))
        if sample not in self._page:
            raise StoreError(f"label of sample {sample[:16]}: it was deleted meanwhile; start again")
        return self._page[sample]

    def _read(self, members: Sequence[Member]) -> Iterator[tuple[str, Label]]:
        wanted = {(m.id, m.source, m.annotator, m.version): m for m in members}
        key = (labels.c.sample, labels.c.source, labels.c.annotator, labels.c.version)
        with self._store.database.read() as connection:
            of_members = one_of(labels.c.sample, [m.id for m in members], on=connection)
            known = connection.execute(select(labels.c.seq, *key).where(of_members))
            seqs = [row.seq for row in known if tuple(row)[1:] in wanted]
            query = select(labels).where(one_of(labels.c.seq, seqs, on=connection))
            rows = connection.execute(query).mappings().all()
        for row in rows:
            member = wanted[row["sample"], row["source"], row["annotator"], row["version"]]
            label = record_of(row).label
            # The content itself is hashed: a row's own hash may have been left as it was.
            if content_hash(label) != member.label:
                raise StoreError(f"label of sample {member.id[:16]}: its content was altered")
            yield member.id, label
