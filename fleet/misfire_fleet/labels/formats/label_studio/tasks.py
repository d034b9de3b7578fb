"""Writes and reads Label Studio's tasks (JSON): pictures with fields, the vehicle's answers, and annotations.

    tasks.json           [{"data": {"image": ..., "sample_id": ..., "percentile": ...},
                           "predictions": [{"model_version": "net@1", "result": [...]}],
                           "annotations": [{"result": [...]}]}]
    label_config.xml     what a person can mark, for Settings > Labeling Interface
    images/

`data.sample_id` is what a task is known by. `misfire labels push` sends the same tasks to a running server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from misfire_fleet.labels.content import (
    Label,
    PointsLabel,
    ValuesLabel,
    names_in,
)
from misfire_fleet.labels.formats.base import (
    ALL_KINDS,
    Answer,
    ClassNumbers,
    ExportItem,
    Format,
    ImportedLabel,
    Kind,
    Known,
    Plan,
    Problem,
    SizeOf,
    Written,
    id_in,
    require_bounded,
)
from misfire_fleet.labels.formats.label_studio.config import PICTURE, LabellingConfig, read_config
from misfire_fleet.labels.formats.label_studio.results import (
    kind_of,
    label_of,
    numbered,
    results_of,
    size_of,
)
from misfire_fleet.labels.formats.parts.fields import fields_of
from misfire_fleet.labels.formats.parts.json_stream import json_text, members, outline
from misfire_fleet.labels.formats.parts.pictures import write_picture
from misfire_fleet.labels.formats.parts.plain_xml import MAX_WHOLE
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

SAMPLE_ID = "sample_id"
CONFIG = "label_config.xml"
_LOCAL_FILES = "/data/local-files/?d="
"""Label Studio's address of files below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


@register
class LabelStudioTasks(Format):
    """Tasks of Label Studio."""

    name = "label-studio"
    help = "tasks.json for Label Studio, with the vehicle's answers as predictions, and label_config.xml"
    kinds = ALL_KINDS
    answers = True
    main = "tasks.json"

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes tasks.json, label_config.xml, and the pictures to images/."""
        written = Written()
        first, items = _first_kind(items)
        names = ClassNumbers({"points": plan.points, "values": ()}.get(first or "", plan.classes))
        export = _Export(first, names, plan.points, written)
        with (folder / self.main).open("w", encoding="utf-8") as stream:
            mark = "[\n"
            for item in items:
                if plan.pictures:
                    write_picture(item, folder / "images")
                picture = _LOCAL_FILES + quote(f"images/{item.file_name}")
                stream.write(mark + json_text(export.task(item, picture)))
                mark = ",\n"
            stream.write("[]\n" if mark == "[\n" else "\n]\n")
        if names.names:
            config = LabellingConfig(first or "class", names.names).xml()
            (folder / CONFIG).write_text(config, encoding="utf-8")
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts a JSON list of tasks, or a folder with a tasks.json."""
        file = path / self.main if path.is_dir() else path
        if file.suffix.lower() != ".json" or not file.is_file():
            return None
        text = outline(file)
        if not text.lstrip().startswith("[") or '"data"' not in text:
            return None
        if not any(f'"{key}"' in text for key in ("annotations", "completions", "predictions", SAMPLE_ID)):
            return None
        return f"tasks of Label Studio ({file.name})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields a label for each submitted annotation; skipped ones and predictions are left out."""
        file = path / self.main if path.is_dir() else path
        config = _config_beside(file)
        kind = config.kind if config else known.kind or _kind_in(file)
        names = known.classes if kind == "mask" else ()
        if config and kind == "points":
            names = config.names
        for number, (_, task) in enumerate(members(file), start=1):
            if not isinstance(task, dict):
                yield Problem(f"{file.name}: entry {number}", "it is no task: expected an object")
                continue
            where = f"{file.name}: task {task.get('id', number)}"
            yield from labels_of(task, kind=kind, names=names, size_of_sample=known.size_of, where=where)


@dataclass
class _Export:
    """Makes tasks of items, and counts what of them could not be told.

    Attributes:
        kind: of the labels; others are left out.
        names: of the configuration, as far as they are known.
        points: names of the points of a skeleton.
        written: the counts.
    """

    kind: Kind | None
    names: ClassNumbers
    points: tuple[str, ...]
    written: Written

    def task(self, item: ExportItem, picture: str) -> dict[str, Any]:
        """Returns the task of an item. `picture`: its address."""
        task: dict[str, Any] = {"data": task_data(item, picture=picture)}
        label, answer = item.label, item.answer
        told = None if label is None else self._results(label, item)
        answered = None if answer is None else self._results(answer.label, item, scores_of(answer))
        if answered is not None and answer is not None:
            task["predictions"] = [prediction(item.bundle, answered, answer)]
        if told is not None and item.record is not None:
            task["annotations"] = [{"result": told}]
            task["meta"] = {"annotator": item.record.annotator, "labelled_at": item.record.at.isoformat()}
        self.written.count(item, labelled=told is not None, answered=answered is not None)
        return task

    def _results(
        self, label: Label, item: ExportItem, scores: Sequence[float | None] = ()
    ) -> list[dict[str, Any]] | None:
        if label.kind != self.kind:
            self.written.left_out[f"a label of {label.kind} among those of {self.kind}"] += 1
            return None
        needed = _needed(label)
        if label.kind == "points":
            needed = [*self.points[: len(needed)], *needed[len(self.points) :]]
        for name in needed:
            self.names.of(name)
        names = tuple(needed) if label.kind in ("points", "values") else self.names.names
        try:
            config = LabellingConfig(label.kind, names or ("1",))
            return results_of(label, config, size=(item.width, item.height), scores=scores)
        except ValueError as error:
            self.written.left_out[str(error)] += 1
            return None


def _first_kind(items: Iterable[ExportItem]) -> tuple[Kind | None, Iterator[ExportItem]]:
    """Returns the kind of the first label or answer, and all items again."""
    seen: list[ExportItem] = []
    rest = iter(items)
    for item in rest:
        seen.append(item)
        label = item.label or (item.answer.label if item.answer else None)
        if label is not None:
            return label.kind, chain(seen, rest)
    return None, iter(seen)


def _needed(label: Label) -> list[str]:
    """Returns the names of a configuration that a label needs, in order; points and values are numbered."""
    if isinstance(label, PointsLabel):
        return list(numbered("points", len(label.points)))
    if isinstance(label, ValuesLabel):
        return list(numbered("values", len(label.values)))
    return names_in(label)


def task_data(item: ExportItem, *, picture: str) -> dict[str, Any]:
    """Returns the fields of a task, by which Label Studio can sort and filter.

    Args:
        item: the picture.
        picture: address of the picture, as Label Studio shall load it.
    """
    name = max(item.percentiles, key=item.percentiles.__getitem__, default=next(iter(item.scores), ""))
    score = {"score_name": name, "score": item.scores[name]} if name in item.scores else {}
    # A dot would be a path in the names of Label Studio's columns.
    fields = {key.replace(".", "_"): value for key, value in fields_of(item).items()}
    return {PICTURE: picture, **fields, **score}


def prediction(version: str, results: list[dict[str, Any]], answer: Answer) -> dict[str, Any]:
    """Returns a prediction: the results, and the lowest confidence as its score."""
    known = [score for score in scores_of(answer) if score is not None]
    document: dict[str, Any] = {"model_version": version, "result": results}
    return document | {"score": min(known)} if known else document


def scores_of(answer: Answer) -> tuple[float | None, ...]:
    """Returns the probability that each part of an answer is right, else its confidence."""
    count = max(len(answer.confidence), len(answer.p_correct))
    padded = [(*values, *(None,) * count)[:count] for values in (answer.p_correct, answer.confidence)]
    return tuple(c if p is None else p for p, c in zip(*padded, strict=True))


def _config_beside(file: Path) -> LabellingConfig | None:
    """Returns the configuration beside tasks; None if there is none that misfire could have written."""
    beside = file.with_name(CONFIG)
    if not beside.is_file():
        return None
    require_bounded(beside, MAX_WHOLE)
    try:
        return read_config(beside.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{beside}: cannot be read ({error})") from error


def _kind_in(file: Path) -> Kind | None:
    """Returns the kind of the first annotation that tells it: an empty one can be of any."""
    for _, task in members(file):
        for annotation in _annotations(task) if isinstance(task, dict) else ():
            kind = kind_of(annotation["result"]) if isinstance(annotation.get("result"), list) else None
            if kind is not None:
                return kind
    return None


def labels_of(
    task: Mapping[str, Any],
    *,
    kind: Kind | None,
    names: Sequence[str],
    size_of_sample: SizeOf,
    where: str,
) -> Iterator[ImportedLabel | Problem]:
    """Yields the labels of a task, one per annotation that was submitted.

    Args:
        task: as a file or the API has it.
        kind: of the labels; None if no annotation of the file tells it.
        names: of the configuration; empty if there is none.
        size_of_sample: for annotations that do not state the picture's size.
        where: file and task, for messages.
    """
    sample = sample_of(task)
    for annotation in _annotations(task):
        place = f"{where}, annotation {annotation.get('id', '')}".rstrip(" ")
        if annotation.get("was_cancelled"):
            continue
        results = annotation.get("result")
        if sample is None:
            yield Problem(place, f"data has no {SAMPLE_ID}, and no name of a picture")
            continue
        if kind is None:
            yield Problem(place, "it is empty, and no other annotation tells what kind of label is missing")
            continue
        size = size_of(results) if isinstance(results, list) else None
        try:
            label = label_of(results, kind=kind, names=names, size=size or size_of_sample(sample))
            at = moment_of(annotation, task)
        except ValueError as error:
            yield Problem(place, str(error))
            continue
        yield ImportedLabel(sample, label, place, size=size, annotator=annotator_of(annotation, task), at=at)


def _annotations(task: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    # "completions" was their name before 2021.
    listed = task.get("annotations", task.get("completions"))
    if isinstance(listed, list):
        yield from (each for each in listed if isinstance(each, dict))


def sample_of(task: Mapping[str, Any]) -> str | None:
    """Returns the sample of a task: its field, or the name of its picture; None if it has neither."""
    data = task.get("data")
    if not isinstance(data, dict):
        return None
    for value in (data.get(SAMPLE_ID), data.get(PICTURE), task.get("file_upload")):
        if isinstance(value, str) and value and not value.startswith("data:"):
            return id_in(value.partition("#")[0])
    return None


def annotator_of(annotation: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """Returns who made an annotation: an e-mail address, `user-NUMBER`, or "" if it does not say."""
    by = annotation.get("completed_by")
    if isinstance(by, dict):
        by = by.get("email") or by.get("id")
    if isinstance(by, str):
        return by[:200]
    if isinstance(by, int):
        return f"user-{by}"
    meta = task.get("meta")
    written = meta.get("annotator") if isinstance(meta, dict) else None
    return written[:200] if isinstance(written, str) else ""


def moment_of(annotation: Mapping[str, Any], task: Mapping[str, Any]) -> datetime | None:
    """Returns when an annotation was last changed; None if it does not say. Raises ValueError."""
    meta = task.get("meta")
    written = meta.get("labelled_at") if isinstance(meta, dict) else None
    text = annotation.get("updated_at") or annotation.get("created_at") or written
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"its time is {text[:40]!r}; expected ISO 8601") from None
    if moment.tzinfo is None:
        raise ValueError(f"its time {text[:40]!r} has no zone")
    return moment
