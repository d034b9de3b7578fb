"""Judges a candidate bundle against the incumbent on the frozen test side of a snapshot.

    snapshot --open_frames--> TestFrames --answer_all--> Answered --checks--> Verdict --> store, report

A candidate passes if no check failed and the task metric could be judged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from misfire_fleet.actor import current_actor
from misfire_fleet.candidates.answers import Answered, Columns, Pair, answer_all, open_pair
from misfire_fleet.candidates.archive import digest
from misfire_fleet.candidates.calibrating import compare_calibration
from misfire_fleet.candidates.comparing import Resampling, compare_score, compare_task
from misfire_fleet.candidates.costs import compare_latency, compare_size
from misfire_fleet.candidates.frames import TestFrames, open_frames
from misfire_fleet.candidates.independence import compare_independence
from misfire_fleet.candidates.rules import DEFAULT, Rules
from misfire_fleet.candidates.slicing import compare_slices, slice_reports
from misfire_fleet.candidates.verdict import Check, Contender, Verdict
from misfire_fleet.store import Store
from misfire_fleet.store.curated.candidates import VerdictRow, record_verdict
from misfire_train.judge.bundle_judging import Subject


def judge_candidate(
    candidate: Path,
    incumbent: Path,
    *,
    store: Store,
    snapshot: str,
    html: Path | None = None,
    rules: Rules = DEFAULT,
    task: str = "",
    actor: str | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Verdict:
    """Judges a candidate against the incumbent, and records the verdict in the store.

    Args:
        candidate: folder of the bundle that is to be published.
        incumbent: folder of the bundle that vehicles run.
        store: the fleet's store.
        snapshot: name of a snapshot, whose test side is frozen.
        html: file for the report; None writes none.
        rules: the limits.
        task: module:task of a custom task.
        actor: who judges, for the audit log; None: the user of this process.
        progress: called with a line now and then.

    Raises:
        StoreError: the snapshot has no frozen test side, or something in it was altered.
        ConfigError: the bundles, or their classes and the labels', do not fit each other.
        BundleError, EngineError: a bundle cannot be opened or run.
    """
    frames = open_frames(store, snapshot)
    with ExitStack() as stack:
        pair = open_pair(stack, candidate, incumbent, frames=frames, budget=rules.budget, task=task)
        answered = answer_all(store, pair, frames, progress=progress)
        progress("judging")
        verdict = _judge(store, pair, answered, frames, rules)
        if html is not None:
            from misfire_fleet.candidates.pictures import changed_frames
            from misfire_fleet.candidates.report import write_page

            write_page(verdict, changed_frames(store, pair, answered, frames), html)
    record_verdict(store.deletion, _row(verdict, actor or current_actor()))
    return verdict


def _judge(store: Store, pair: Pair, answered: Answered, frames: TestFrames, rules: Rules) -> Verdict:
    resampling = Resampling.of([frame.group for frame in answered.frames], rules)
    candidate, incumbent = (
        _contender(subject, score)
        for subject, score in zip((pair.candidate, pair.incumbent), pair.scores, strict=True)
    )
    slices = slice_reports(answered, resampling, rules, budget=pair.budget)
    calibration, bins = compare_calibration(answered, pair, resampling)
    independence, notes = compare_independence(store, pair, frames)
    checks = [
        compare_task(answered, resampling, rules, metric=pair.metric),
        compare_slices(slices, rules, metric=pair.metric),
        compare_score(answered, resampling, rules, budget=pair.budget),
        calibration,
        *([compare_latency(answered, rules)] if rules.latency else []),
        compare_size(candidate, incumbent, rules),
        independence,
    ]
    if answered.candidate.refused:
        checks.insert(0, _refused(answered.candidate, pair.scores[0]))
    notes += [resampling.note] if resampling.note else []
    notes += [f"{each}." for each in frames.left_out]
    if answered.undecodable:
        notes.append(f"{len(answered.undecodable)} pictures cannot be decoded and were left out.")
    return Verdict(
        candidate=candidate,
        incumbent=incumbent,
        snapshot=frames.name,
        snapshot_sha256=frames.sha256,
        frames=len(answered),
        groups=resampling.groups,
        failures=(int(answered.candidate.failed.sum()), int(answered.incumbent.failed.sum())),
        checks=tuple(checks),
        notes=tuple(notes),
        detail=_detail(pair, slices, bins, rules),
    )


def _refused(side: Columns, score: str) -> Check:
    sentence = (
        f"{score} is not finite for {side.refused} of {len(side.score)} frames: a vehicle cannot use it"
    )
    return Check("finite scores", "failed", sentence)


def _detail(pair: Pair, slices: Any, bins: dict[str, object], rules: Rules) -> dict[str, Any]:
    engines = [subject.scorer.engine.provider for subject in (pair.candidate, pair.incumbent)]
    return {
        "metric": pair.metric,
        "budget": pair.budget,
        "failure": pair.task.failure_text
        if pair.task.failure_threshold is None
        else f"loss above {pair.task.failure_threshold:.4g}",
        "engine": engines[0] if engines[0] == engines[1] else ", ".join(engines),
        "rules": asdict(rules),
        "slices": [asdict(each) for each in slices],
        "reliability": bins,
    }


def _contender(subject: Subject, score: str) -> Contender:
    bundle = subject.scorer.bundle
    sha256, size = digest(bundle)
    return Contender(
        label=bundle.manifest.label,
        sha256=sha256,
        task=bundle.manifest.task,
        score=score,
        graph_bytes=bundle.model_path.stat().st_size,
        archive_bytes=size,
    )


def _row(verdict: Verdict, actor: str) -> VerdictRow:
    return VerdictRow(
        candidate=verdict.candidate.label,
        candidate_sha256=verdict.candidate.sha256,
        incumbent=verdict.incumbent.label,
        incumbent_sha256=verdict.incumbent.sha256,
        snapshot=verdict.snapshot,
        snapshot_sha256=verdict.snapshot_sha256,
        passed=verdict.passed,
        actor=actor,
        summary=verdict.summary(),
    )
