"""Does the steps of a round; each can be killed anywhere and done again.

    snapshot   labelled samples with the exam's test set          one row, or none
    retrain    the parent's run and the snapshot --> run          continues from its checkpoint
    export     run --> bundle                                     a whole folder, or none
    gate       bundle against the parent's, on the exam           one verdict for this pair

Every step first looks for what it made before it was killed, and keeps it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from misfire_fleet.datasets.splits import Shares
from misfire_fleet.errors import StoreError
from misfire_fleet.loop.state import Round, Step
from misfire_fleet.store import Store
from misfire_fleet.store.curated import snapshots as snapshot_rows
from misfire_fleet.store.where import parse_where, where_of
from misfire_runtime.bundle import MANIFEST, Bundle
from misfire_runtime.errors import MisfireError

if TYPE_CHECKING:
    from misfire_fleet.candidates.rules import Rules
    from misfire_fleet.datasets.manifest import Manifest
    from misfire_train.data import Dataset
    from misfire_train.progress import Reporter
    from misfire_train.retraining import Schedule
    from misfire_train.runs import Run

ACTOR = "misfire fleet loop"


class LoopStoppedError(MisfireError):
    """Reports that a step was ended because the program is to end. The next start continues it."""


@dataclass(frozen=True)
class Settings:
    """Holds what a loop works with.

    Attributes:
        run, bundle: folders of the run and the bundle that it begins with.
        exam: name of a snapshot with a frozen test set.
        folder: of the loop's own files.
        name: how the names of its snapshots begin.
        where: conditions on samples, as of `misfire fleet snapshot`.
        holdout: share of groups that is held out for the failure score.
        data: folder of the data set; None searches the usual places.
        schedule: of a retraining; None: as `misfire retrain`.
        slice_by: what uploads are sliced by, for the slice balance of the schedule's mixture.
        rules: limits of the gate; None: its own.
    """

    run: Path
    bundle: Path
    exam: str
    folder: Path
    name: str = "loop"
    where: tuple[str, ...] = ()
    holdout: float = 0.2
    data: Path | None = None
    schedule: Schedule | None = None
    slice_by: str = "vehicle"
    rules: Rules | None = None


@dataclass
class Steps:
    """Does the steps of rounds. `stop`: once it is set, a step ends as soon as it can."""

    store: Store
    settings: Settings
    stop: threading.Event = field(default_factory=threading.Event)
    say: Callable[[str], None] = lambda _text: None

    def folder_of(self, number: int) -> Path:
        """Returns the folder of a round's run, bundle and report."""
        return self.settings.folder / "rounds" / f"{number:04d}"

    def run_of(self, number: int) -> Path:
        """Returns the folder of a round's run; 0: of the run that the loop began with."""
        return self.folder_of(number) / "run" if number else self.settings.run

    def bundle_of(self, number: int) -> Path:
        """Returns the folder of a round's bundle; 0: of the bundle that the loop began with."""
        return self.folder_of(number) / "bundle" if number else self.settings.bundle

    def do(self, state: Round) -> Round:
        """Does a round's next step, and returns the round with its result and the step after it.

        Raises:
            LoopStoppedError: the program is to end.
            MisfireError, OSError, RuntimeError: the step failed; it can be done again.
        """
        self._check(f"round {state.number}: {state.step}")
        self.folder_of(state.number).mkdir(parents=True, exist_ok=True)
        done: dict[Step, Callable[[Round], Round]] = {
            "snapshot": self.snapshot,
            "retrain": self.retrain,
            "export": self.export,
            "gate": self.gate,
        }
        return done[state.step](state)

    def snapshot(self, state: Round) -> Round:
        """Makes the round's snapshot, with today's labels and exactly the exam's test set."""
        from misfire_fleet.datasets.snapshots import Plan, Snapshots

        snapshots = Snapshots(self.store)
        name = f"{self.settings.name}-{state.number:04d}"
        exam, _ = snapshots.read(self.settings.exam)
        wanted = parse_where(self.settings.where)
        known = [row for row in snapshots.listed() if row.name == name]
        if known:
            manifest, sha256 = snapshots.read(name)
            if known[0].created_at < state.started_at or manifest.query.where != tuple(where_of(wanted)):
                raise StoreError(f"snapshot {name!r} exists and is not of this loop; choose another --name")
        else:
            plan = Plan(
                group_by=exam.query.group_by,
                seed=exam.query.seed,
                shares=Shares(self.settings.holdout, 0.0),
                test_from=self.settings.exam,
                kind=exam.kind,
            )
            made = snapshots.create(name, wanted, plan=plan, actor=ACTOR)
            manifest, sha256 = made.manifest, made.sha256
        self._drop_unnamed(name, sha256)
        return self._after_snapshot(state, manifest, sha256)

    def _after_snapshot(self, state: Round, manifest: Manifest, sha256: str) -> Round:
        counts = manifest.counts()
        self.say(
            f"round {state.number}: snapshot {manifest.name}, {counts['train']} to train on, "
            f"{counts['holdout']} held out, {counts['test']} to test"
        )
        found = {
            "snapshot": manifest.name,
            "snapshot_sha256": sha256,
            "labels_up_to": manifest.query.labels_up_to,
        }
        return _next(state, "retrain", found)

    def _drop_unnamed(self, name: str, sha256: str) -> None:
        """Removes manifests of this name that a killed process wrote without their rows."""
        own = snapshot_rows.document_of(name, sha256)
        for document in list(self.store.blobs.documents("snapshots")):
            of_name = document.startswith(f"{name}.") and document.count(".") == own.count(".")
            if of_name and document != own:
                self.store.blobs.drop("snapshots", document)

    def retrain(self, state: Round) -> Round:
        """Trains the round's run from its parent's, from the checkpoint if there is one."""
        from misfire_fleet.retrain.command import retrain_from_store
        from misfire_train.retraining import Schedule
        from misfire_train.runs import load_run

        parent = load_run(self.run_of(state.parent))
        outcome = retrain_from_store(
            parent,
            self.store,
            snapshot=state.snapshot,
            dataset=self._dataset(parent),
            out=self.run_of(state.number),
            schedule=self.settings.schedule or Schedule(),
            slice_by=self.settings.slice_by,
            resume=True,
            command=ACTOR,
            reporter=self._reporter(),
        )
        self.say(f"round {state.number}: run {outcome.run.record.run_id}")
        return _next(state, "export", {"run_id": outcome.run.record.run_id})

    def export(self, state: Round) -> Round:
        """Exports the round's run as the next version of its parent's bundle."""
        from misfire_fleet.retrain.origins import record_origins
        from misfire_train.runs import load_run

        run, out = load_run(self.run_of(state.number)), self.bundle_of(state.number)
        # A process that was killed while it wrote left its temporary folder.
        for left in out.parent.glob(f".{out.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        bundle = Bundle.open(out) if (out / MANIFEST).is_file() else self._exported(run, out, state)
        record_origins(self.store, run, snapshot=state.snapshot, bundle=bundle)
        self.say(f"round {state.number}: bundle {bundle.manifest.label}")
        return _next(state, "gate", {"bundle": bundle.manifest.label})

    def _exported(self, run: Run, out: Path, state: Round) -> Bundle:
        from misfire_export.options import Options
        from misfire_export.sources.frames import frames_of_run
        from misfire_export.sources.run import export_run

        name = Bundle.open(self.bundle_of(state.parent)).manifest.name
        options = Options(name, state.version, snapshot_id=state.snapshot_sha256)
        return export_run(run, frames_of_run(run, self._dataset(run)), out=out, options=options)

    def gate(self, state: Round) -> Round:
        """Judges the round's bundle against its parent's on the exam; a recorded verdict stands."""
        from misfire_fleet.candidates.archive import digest
        from misfire_fleet.candidates.gate import judge_candidate
        from misfire_fleet.candidates.rules import DEFAULT
        from misfire_fleet.store.curated.candidates import verdicts

        new, old = self.bundle_of(state.number), self.bundle_of(state.parent)
        pair = digest(Bundle.open(new))[0], digest(Bundle.open(old))[0]
        exam = snapshot_rows.found(self.store.database, self.settings.exam)
        known = [
            row
            for row in verdicts(self.store.database, sha256=pair[0])
            if row.incumbent_sha256 == pair[1] and row.snapshot_sha256 == exam.sha256
        ]
        if known:
            passed, reasons = known[0].passed, tuple(known[0].summary.get("reasons", ()))
        else:
            verdict = judge_candidate(
                new,
                old,
                store=self.store,
                snapshot=self.settings.exam,
                html=self.folder_of(state.number) / "gate.html",
                rules=self.settings.rules or DEFAULT,
                actor=ACTOR,
                progress=self._check,
            )
            passed, reasons = verdict.passed, tuple(verdict.reasons)
        word = "passed the gate: a candidate" if passed else "did not pass the gate: " + "; ".join(reasons)
        self.say(f"round {state.number}: {state.bundle} {word}")
        return _next(state, "done", {"passed": passed, "reasons": reasons})

    def _dataset(self, run: Run) -> Dataset:
        from misfire_fleet.retrain.command import data_of
        from misfire_train.data import load_dataset

        return load_dataset(run.record.dataset.name, root=self.settings.data or data_of(run))

    def _check(self, text: str) -> None:
        if self.stop.is_set():
            raise LoopStoppedError(f"stopped; the next start continues: {text}")

    def _reporter(self) -> Reporter:
        """Returns a reporter that ends the training between two epochs once the program is to end."""
        from misfire_train.progress import Reporter

        check, say = self._check, self.say

        class Ending(Reporter):
            def line(self, text: str) -> None:
                say(text)
                check(text)

        return Ending(quiet=True)


def _next(state: Round, step: Step, found: dict[str, object]) -> Round:
    """Returns the round at its next step: failures are counted by step."""
    return state.model_copy(update={**found, "step": step, "failures": 0, "error": ""})
