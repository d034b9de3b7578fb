"""Runs both bundles on the same pictures, by turns, and keeps a few numbers of each answer.

    TestFrame --engine of candidate, engine of incumbent--> answers, scores, times --Columns--> both sides

A failure is the same for both: the loss above which a frame fails, and a detector's rule of matching, are
those of the incumbent.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_fleet.candidates.frames import TestFrame, TestFrames, each_frame
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import names_in
from misfire_fleet.retrain.targets import KINDS, Reading, read_target
from misfire_fleet.store import Store
from misfire_fleet.store.records import StoredSample
from misfire_runtime.bundle import Manifest
from misfire_runtime.errors import ConfigError
from misfire_train.judge.bundle_judging import Subject, open_bundle
from misfire_train.tasks import Task
from misfire_train.tasks.detection import Detection

DEFAULT_BUDGET = 0.05
Floats = NDArray[np.float64]
_BY_PARTS = ("segmentation", "keypoints", "multi-label")
"""Tasks whose accuracy is a share of pixels, joints or labels; of others it is one of frames or boxes."""
_SHOWN = 8
_EVERY = 200
"""Frames between two lines of progress."""


@dataclass
class Columns:
    """Holds the numbers of one bundle, one of each for a frame.

    Attributes:
        right, counted: whose sums' ratio is the task metric.
        failed: whether the frame fails.
        loss: of the task.
        score: the one that the bundle triggers on.
        expected: the loss that the score predicts, None if the bundle predicts none.
        ms: time from picture to answer.
        refused: frames whose score was not finite; they count as flagged.
        answers: hash of all answers, to the last bit.
    """

    right: Floats
    counted: Floats
    failed: NDArray[np.bool_]
    loss: Floats
    score: Floats
    expected: Floats | None
    ms: Floats
    refused: int = 0
    answers: str = ""


@dataclass(frozen=True)
class Kept:
    """Holds what is kept of a frame. `names`: the classes that its label names."""

    sample: StoredSample
    group: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Answered:
    """Holds what both bundles answered to the same frames, [N] each."""

    frames: tuple[Kept, ...]
    candidate: Columns
    incumbent: Columns
    undecodable: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Pair:
    """Holds both open bundles. `metric`: the name of the task metric; `scores`: which each triggers on."""

    candidate: Subject
    incumbent: Subject
    budget: float
    scores: tuple[str, str]

    @property
    def task(self) -> Task:
        """Returns the task by which both are judged."""
        return self.incumbent.task

    @property
    def metric(self) -> str:
        """Returns the name of the task metric."""
        form = self.task.form
        if form in ("classification", "detection") or form in _BY_PARTS:
            return self.task.accuracy_name
        return "frames right"


def open_pair(
    stack: ExitStack,
    candidate: Path,
    incumbent: Path,
    *,
    frames: TestFrames,
    budget: float | None,
    task: str = "",
) -> Pair:
    """Opens both bundles and checks that they, and the labels, are about the same.

    Args:
        stack: closes the engines.
        candidate, incumbent: folders.
        frames: the test side.
        budget: share of frames that is uploaded; None: as declared by the candidate, or the incumbent.
        task: module:task of a custom task.

    Raises:
        ConfigError: the bundles or the labels are of different tasks, or a class is missing.
        BundleError, EngineError, JudgeError: a bundle cannot be opened.
    """
    opened = []
    for path in (candidate, incumbent):
        subject = open_bundle(path, task=task)
        stack.callback(subject.close)
        opened.append(subject)
    new, old = opened
    _require_same(new.manifest, old.manifest, new.task, frames)
    rate = budget or new.manifest.upload_rate or old.manifest.upload_rate or DEFAULT_BUDGET
    judged = _as_incumbent(new, old)
    return Pair(*judged, rate, (new.manifest.score_at(rate), old.manifest.score_at(rate)))


def _require_same(new: Manifest, old: Manifest, task: Task, frames: TestFrames) -> None:
    if new.task != old.task:
        raise ConfigError(f"{new.label} is for {new.task}, {old.label} for {old.task}: they do not compare")
    kind = KINDS.get(task.form)
    if kind != frames.kind:
        needed = f"needs labels of kind {kind}" if kind else "has no labels in a store"
        raise ConfigError(f"snapshot {frames.name} has labels of kind {frames.kind}; {task.name} {needed}")
    for manifest in (new, old):
        missing = [name for name in frames.classes if name not in manifest.classes]
        if missing and manifest.classes:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise ConfigError(
                f"{manifest.label} has no class {', '.join(missing[:_SHOWN])}{more}, which labels of "
                f"snapshot {frames.name} name: classes are compared by name"
            )
    # Values and points have no names in a label: they are known by their place.
    if kind in ("values", "points") and new.classes != old.classes:
        raise ConfigError(
            f"{new.label} predicts {', '.join(new.classes)}, {old.label} {', '.join(old.classes)}: they do "
            "not compare"
        )


def _as_incumbent(new: Subject, old: Subject) -> tuple[Subject, Subject]:
    """Returns both with the incumbent's rule of what a failure is."""
    tasks: list[Task] = [new.task, old.task]
    recorded = old.manifest.extra.get("calibration", {}).get("failure_threshold")
    if recorded is not None:
        tasks = [task.with_threshold(recorded) for task in tasks]
    if isinstance(new.task, Detection) and old.manifest.detection is not None:
        rule = old.manifest.detection
        known = rule.model_copy(
            update={"classes": tuple(c for c in rule.classes if c in new.manifest.classes)}
        )
        tasks[0] = new.task.with_rule(known, new.manifest.classes)
    if not tasks[1].knows_failures:
        raise ConfigError(
            f"{old.manifest.label} does not record the loss above which a frame fails: export it again"
        )
    return replace(new, task=tasks[0]), replace(old, task=tasks[1])


def answer_all(
    store: Store,
    pair: Pair,
    frames: TestFrames,
    *,
    progress: Callable[[str], None] = lambda _text: None,
) -> Answered:
    """Returns the numbers of both bundles on all frames that decode.

    Raises:
        StoreError: no frame decodes, or a sample was altered.
        ConfigError: a label does not fit the task.
        EngineError: an engine failed.
    """
    undecodable: list[str] = []
    sides = [_Side(pair.candidate, pair.scores[0], pair), _Side(pair.incumbent, pair.scores[1], pair)]
    kept: list[Kept] = []
    for number, frame in enumerate(each_frame(store, frames, undecodable=undecodable)):
        # By turns: a machine that gets slower meanwhile slows both.
        for side in sides if number % 2 == 0 else sides[::-1]:
            side.add(frame)
        # A mask names every class that it could have, so it tells nothing of the frame.
        names = () if frame.label.kind == "mask" else tuple(names_in(frame.label))
        kept.append(Kept(frame.sample, frame.group, names))
        if number % _EVERY == _EVERY - 1:
            progress(f"{number + 1} of {len(frames)} frames")
    if not kept:
        raise StoreError(f"snapshot {frames.name}: no picture of its test side can be decoded")
    return Answered(tuple(kept), sides[0].columns(), sides[1].columns(), tuple(undecodable))


class _Side:
    """Collects the numbers of one bundle."""

    def __init__(self, subject: Subject, score: str, pair: Pair) -> None:
        self._subject = subject
        self._score = score
        self._by_parts = pair.task.form in _BY_PARTS
        self._reading = Reading(subject.task, subject.manifest.classes, subject.manifest.input)
        self._rows: list[tuple[float, float, bool, float, float, float, float]] = []
        self._refused = 0
        self._answers = hashlib.sha256()

    def add(self, frame: TestFrame) -> None:
        """Runs the bundle on one frame."""
        started = time.perf_counter()
        scored = self._subject.scorer.score(frame.image)
        took = 1000 * (time.perf_counter() - started)
        task, outputs = self._subject.task, np.asarray(scored.outputs[self._subject.output])
        self._answers.update(outputs.tobytes())
        answer = task.condense(torch.from_numpy(outputs).float())
        size = (frame.sample.width, frame.sample.height)
        target = read_target(frame.label, self._reading, size=size, where=f"sample {frame.sample.id[:16]}")
        targets = task.collate(task.stack([target]))
        if self._by_parts:
            right, counted = float(task.accuracy(answer, targets)), 1.0
        else:
            share = task.shares(answer, targets)
            right, counted = float(share[0]), float(share[1])
        if self._score in scored.scores:
            score, expected = scored.scores[self._score], scored.expected_loss(self._score)
        else:
            # A vehicle cannot trigger on it; here it must not stop the judgement of all other frames.
            self._refused += 1
            score, expected = float("-inf"), None
        self._rows.append(
            (
                right,
                counted,
                bool(task.failed(answer, targets)),
                float(task.sample_loss(answer, targets)),
                score,
                float("nan") if expected is None else expected,
                took,
            )
        )

    def columns(self) -> Columns:
        """Returns the numbers of all frames so far."""
        right, counted, failed, loss, score, expected, ms = (
            np.array(each) for each in zip(*self._rows, strict=True)
        )
        finite = np.isfinite(score)
        lowest = float(score[finite].min()) - 1 if finite.any() else 0.0
        return Columns(
            right.astype(float),
            counted.astype(float),
            failed.astype(bool),
            loss.astype(float),
            np.where(finite, score, lowest).astype(float),
            expected.astype(float) if np.isfinite(expected).all() else None,
            ms.astype(float),
            self._refused,
            self._answers.hexdigest(),
        )
