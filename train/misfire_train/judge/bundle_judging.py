"""Judges a bundle on labelled frames, by the engine that a vehicle runs: `misfire evaluate --bundle`.

bundle --open_bundle--> Subject (scorer, task)      data set --load_frames--> Frames in the bundle's classes
frames, clean and under each shift --Scorer, one by one--> answers, scores --evaluate--> Report with pictures

Nothing of the run is needed: the task, its failure threshold, the classes and the free scores are in the
manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.bundle import Bundle, Manifest
from misfire_runtime.engines.scoring import Scored, Scorer
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.boxes import with_contract
from misfire_train.data.corruptions import corrupt_all
from misfire_train.data.readers.class_lists import nfc
from misfire_train.errors import JudgeError
from misfire_train.judge.columns import (
    Column,
    LossColumns,
    find_column_parts,
    slices_of,
    some_of,
    stack,
)
from misfire_train.judge.evaluating import evaluate
from misfire_train.judge.evidence import CLEAN, Evidence
from misfire_train.judge.files.kept import KeptColumns
from misfire_train.judge.gate import GateRules
from misfire_train.judge.parts import with_parts
from misfire_train.judge.report import FrameExample, Report
from misfire_train.judge.run_judging import Judging
from misfire_train.judge.score_names import ALL, FREE
from misfire_train.metrics.loss_curve import LossCurve
from misfire_train.tasks import Task
from misfire_train.tasks.detection import Detection
from misfire_train.tasks.loading import load_task

# Their labels are in pixels of the network's input, so the data have to be read for its size.
_SIZED = ("masks:", "coco-keypoints:")
_BATCH = 32
_CLASSES_SHOWN = 8


@dataclass(frozen=True)
class Subject:
    """Holds an open bundle, ready to answer. output: the graph's output that is the task's answer."""

    scorer: Scorer
    task: Task
    output: str

    @property
    def manifest(self) -> Manifest:
        """Returns the bundle's manifest."""
        return self.scorer.bundle.manifest

    def answer(self, image: Any, *, name: str) -> tuple[Scored, Tensor]:
        """Returns scores and the answer [1,...] to a picture.

        Raises JudgeError that names the picture if a score is not finite.
        """
        scored = self.scorer.score(image)
        if scored.refused:
            raise JudgeError(f"{self.scorer.label}: {', '.join(scored.refused)} is not finite for {name!r}")
        return scored, torch.from_numpy(np.asarray(scored.outputs[self.output])).float()

    def close(self) -> None:
        """Frees the engine."""
        self.scorer.close()


def open_bundle(path: Path, *, task: str = "", scores: Sequence[str] = ()) -> Subject:
    """Returns a bundle with its engine and its task.

    Args:
        path: folder of the bundle.
        task: name or module:task; a bundle of a custom task needs it.
        scores: names and groups that will be judged, to refuse a wrong one before the engine loads.

    Raises:
        JudgeError: the bundle's task is custom and none is given, or the graph has no answer of the task.
        BundleError, EngineError, ConfigError: bundle, engine or task cannot be opened.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if scores:
        chosen_of_manifest(scores, manifest)
    if manifest.task == "custom" and not task:
        raise JudgeError(
            f"{manifest.label} has a custom task, whose loss is in your code: name it with --task module:task"
        )
    kind = load_task(task or manifest.task)
    if isinstance(kind, Detection) and manifest.detection is not None:
        kind = kind.with_rule(manifest.detection, manifest.classes)
    outputs = [o.name for o in manifest.outputs if o.kind == kind.output_kind and o.name != "embedding"]
    named = [o.name for o in manifest.outputs if o.name == kind.output_name]
    if not outputs and not named:
        have = ", ".join(output.name for output in manifest.outputs)
        raise JudgeError(f"{manifest.label} has no answer of the task {kind.name}; its outputs are {have}")
    return Subject(Scorer.load(bundle), kind, (named or outputs)[0])


def load_frames(subject: Subject, name: str, *, data: Path | None = None) -> Dataset:
    """Returns a data set whose targets are in the pixels and in the classes of the bundle.

    Raises JudgeError if its task is another, or it has a class that the bundle does not know.
    """
    contract, task = subject.manifest.input, subject.task
    if name.startswith(_SIZED) and "size=" not in name:
        name = f"{name}{'&' if '?' in name else '?'}size={contract.width}x{contract.height}"
    dataset = load_dataset(name, root=data)
    if subject.manifest.task not in ("custom", dataset.task):
        raise JudgeError(
            f"{subject.scorer.label} is for {subject.manifest.task}, the data set {name} for {dataset.task}"
        )
    if isinstance(task, Detection):
        dataset = with_contract(dataset, contract)
    if not (task.by_class or task.independent or isinstance(task, Detection)):
        return dataset
    index = class_index(dataset.classes, subject.manifest.classes, label=subject.scorer.label)
    test = replace(dataset.test, targets=task.renumber(dataset.test.targets, index))
    return replace(dataset, test=test, classes=subject.manifest.classes or dataset.classes)


def class_index(data: tuple[str, ...], bundle: tuple[str, ...], *, label: str) -> tuple[int, ...]:
    """Returns the bundle's number of each class of the data, by name.

    Raises JudgeError that names the classes of the data that the bundle lacks.

    >>> class_index(("car", "bike"), ("person", "bike", "car"), label="city@1.0.0")
    (2, 1)
    """
    own = [nfc(name) for name in bundle]
    if not own:
        return tuple(range(len(data)))
    missing = [name for name in data if nfc(name) not in own]
    if missing:
        raise JudgeError(
            f"{label} does not know these classes of the data set: {_some(missing)}; it knows "
            f"{_some(bundle)}. Rename them so that both agree; for boxes, ?classes=FILE&others=drop leaves "
            "them out"
        )
    return tuple(own.index(nfc(name)) for name in data)


def judge_bundle(
    subject: Subject,
    dataset: Dataset,
    judging: Judging,
    *,
    progress: Callable[[str], None] = lambda _text: None,
) -> tuple[Report, Evidence]:
    """Judges a bundle's scores on the test half of a data set.

    Args:
        subject: the bundle.
        dataset: as `load_frames` returns it.
        judging: what to judge; `refit` has no effect.
        progress: called with a line before each slow step.

    Raises:
        JudgeError: a score is not in the bundle or not finite, a part is not the test half, or the loss above
            which a frame failed is not known.
    """
    if judging.part != "test":
        raise JudgeError("a bundle is judged on the data set's test half: leave out --part")
    if judging.shifts and not judging.severity:
        raise JudgeError("a bundle has no held-out frames to adapt the severity on: state --severity 1 to 5")
    names = chosen_of_manifest(judging.scores, subject.manifest)
    task, meaning = _failures(subject, judging)
    examples = some_of(dataset.test, limit=judging.limit, seed=judging.seed)
    images = {CLEAN: examples} | {
        name: corrupt_all(examples, name, severity=judging.severity, seed=judging.seed)
        for name in judging.shifts
    }
    kept = KeptColumns(judging.keep, _identity(subject, dataset, task, judging, names))
    columns = {}
    for name, rows in images.items():
        column = kept.get(name)
        if column is None:
            progress(f"scoring {len(rows)} frames, {name}")
            column = _column(replace(subject, task=task), rows, names)
            kept.put(name, column)
        columns[name] = column
    evidence = stack(columns, examples, task)
    free = {score.name for score in subject.manifest.scores if score.free}
    learned = any(name not in free for name in names)
    # Which corruptions a learned score was trained on is not recorded, so none counts as held out.
    rules = GateRules(
        free,
        task.default_free_score,
        known=judging.shifts if learned else (),
        seed=judging.seed,
        # A bundle is judged at the rate that it was made for.
        budget=subject.manifest.upload_rate if judging.budget is None else judging.budget,
    )
    judging.collected(evidence, rules)
    progress("judging")
    report = evaluate(
        evidence,
        rules,
        slices=slices_of(task, examples, dataset.classes, stated=judging.slices or {}, repeats=len(columns)),
        loss_scales=_loss_curves(subject, names),
        loss_scales_from="the bundle's calibration",
        replicates=judging.replicates,
        settings=_settings(subject, dataset, judging, examples, meaning),
    )
    found = find_column_parts(
        columns, examples, task, contract=subject.manifest.input, classes=dataset.classes
    )
    report = with_parts(report, evidence, found, replicates=judging.replicates, seed=judging.seed)
    notes = (*report.gate.notes, *_notes(subject, dataset, judging, learned=learned))
    report = replace(
        report,
        gate=replace(report.gate, notes=notes),
        frames=tuple(_with_picture(f, subject, task, dataset, images) for f in report.frames),
        legend=task.legend(dataset.classes),
    )
    return report, evidence


def chosen_of_manifest(wanted: Sequence[str], manifest: Manifest) -> list[str]:
    """Returns the names of a bundle's scores to judge, once each. Raises JudgeError on a wrong one."""
    known = [score.name for score in manifest.scores]
    free = [score.name for score in manifest.scores if score.free]
    groups = {ALL: known, FREE: free}
    for name in wanted:
        if name not in groups and name not in known:
            raise JudgeError(f"{manifest.label} has no score {name}; there are all, free, {', '.join(known)}")
    chosen = list(dict.fromkeys(each for name in wanted for each in groups.get(name, [name])))
    if not set(chosen) & set(free):
        have = f"add one of {', '.join(free)}" if free else f"{manifest.label} has none"
        raise JudgeError(f"the gate needs a free score to beat: {have}")
    return chosen


def _identity(
    subject: Subject, dataset: Dataset, task: Task, judging: Judging, names: Sequence[str]
) -> dict[str, Any]:
    """Returns everything that decides a frame's scores and losses."""
    return {
        "bundle": subject.manifest.files["model.onnx"].sha256,
        "engine": subject.scorer.engine.provider,
        "dataset": dataset.sha256,
        "limit": judging.limit,
        "severity": judging.severity,
        "seed": judging.seed,
        "scores": list(names),
        "failure": task.failure_threshold,
    }


def _failures(subject: Subject, judging: Judging) -> tuple[Task, str]:
    """Returns the task with its failures defined, and their meaning in words."""
    stated = judging.failure_threshold
    if stated is not None:
        return subject.task.with_threshold(stated), f"loss above {stated:g}, stated with this evaluation"
    recorded = subject.manifest.extra.get("calibration", {}).get("failure_threshold")
    if recorded is not None:
        return subject.task.with_threshold(recorded), f"loss above {recorded:.4g}, of the bundle"
    if not subject.task.knows_failures:
        raise JudgeError(
            f"{subject.scorer.label} records no loss above which a frame fails: state --failure-threshold"
        )
    threshold = subject.task.failure_threshold
    meaning = subject.task.failure_text if threshold is None else f"loss above {threshold:.4g}, of the task"
    return subject.task, meaning


def _column(subject: Subject, examples: Examples, names: list[str]) -> Column:
    scores = {name: np.empty(len(examples)) for name in names}
    losses = LossColumns(subject.task)
    for start in range(0, len(examples), _BATCH):
        rows = range(start, min(start + _BATCH, len(examples)))
        answers = []
        for row in rows:
            scored, answer = subject.answer(examples.images[row], name=examples.ids[row])
            answers.append(answer)
            for name in names:
                scores[name][row] = scored.scores[name]
        losses.add(torch.cat(answers), subject.task.collate(examples.targets[rows.start : rows.stop]))
    return losses.column(scores)


def _loss_curves(subject: Subject, names: list[str]) -> dict[str, LossCurve | float]:
    """Returns how learned scores and the default predict the loss: by the bundle's curves or scales."""
    found: dict[str, LossCurve | float] = {}
    for name in names:
        score = subject.manifest.score(name)
        if score.free and name != subject.manifest.default_score:
            continue
        curve = score.calibration.expected_loss
        if curve is not None:
            found[name] = LossCurve(curve.scores, curve.losses)
        elif score.calibration.loss_scale is not None:
            found[name] = score.calibration.loss_scale
    return found


def _settings(
    subject: Subject, dataset: Dataset, judging: Judging, examples: Examples, meaning: str
) -> dict[str, Any]:
    return {
        "bundle": subject.scorer.label,
        "bundle_sha256": subject.manifest.files["model.onnx"].sha256,
        "engine": subject.scorer.engine.provider,
        "dataset": dataset.name,
        "dataset_sha256": dataset.sha256,
        "part": judging.part,
        "frames": len(examples),
        "groups": len(set(examples.groups)),
        "failure": meaning,
        "shifts": ", ".join(judging.shifts) or "none",
        "severity": judging.severity if judging.shifts else None,
        "replicates": judging.replicates,
        "data_notes": "; ".join(note.rstrip(".") for note in dataset.notes) or None,
    }


def _notes(subject: Subject, dataset: Dataset, judging: Judging, *, learned: bool) -> list[str]:
    notes = []
    lineage = subject.manifest.lineage
    # A run keeps away from the test half; a model from elsewhere is calibrated on parts of it.
    if lineage.dataset_sha256 == dataset.sha256 and lineage.run_id.startswith(("torch-", "onnx-", "module")):
        notes.append(
            "The bundle was calibrated on the test half of this data set, and its learned scores were fitted "
            "there: judge on other frames to know what they are worth."
        )
    if judging.shifts and learned:
        notes.append(
            f"A bundle does not record the corruptions of its head, so {', '.join(judging.shifts)} "
            "are shown and not held out in the gate."
        )
    if subject.scorer.calibration_differs:
        notes.append(f"{subject.scorer.calibration_differs}.")
    return notes


def _with_picture(
    frame: FrameExample,
    subject: Subject,
    task: Task,
    dataset: Dataset,
    images: Mapping[str, Examples],
) -> FrameExample:
    """Returns the frame as the network saw it, with truth and answer; the engine runs on it once more."""
    shown = images[frame.shift]
    row = int(shown.positions([frame.frame])[0])
    image: NDArray[np.uint8] = shown.images[row]
    _, answer = subject.answer(image, name=frame.frame)
    drawing = task.draw(
        image,
        answer,
        shown.targets[row],
        classes=dataset.classes,
        contract=subject.manifest.input,
    )
    return replace(frame, picture=drawing.picture, truth=drawing.truth, predicted=drawing.predicted)


def _some(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _CLASSES_SHOWN} more" if len(names) > _CLASSES_SHOWN else ""
    return ", ".join(names[:_CLASSES_SHOWN]) + more
