"""Creates the tasks that a project lacks, each with the vehicle's answer, and never a second one.

    batch of items -> look up by data.sample_id -> upload pictures -> import the missing -> look up again

Label Studio creates a task each time it is told to. So a batch is looked up before and after its import:
before, to leave out what is there; after, because a push that was killed, or whose answer was lost, may have
been carried out in between. Of two tasks of one sample the older stays, unless a person has worked on the
younger.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from misfire_fleet.errors import LabelToolError, LabelToolUnavailableError
from misfire_fleet.labels.formats.base import ExportItem
from misfire_fleet.labels.formats.label_studio.config import PICTURE, LabellingConfig
from misfire_fleet.labels.formats.label_studio.results import results_of
from misfire_fleet.labels.formats.label_studio.tasks import prediction, scores_of, task_data
from misfire_fleet.labels.tools.base import Pushed
from misfire_fleet.labels.tools.label_studio.api import (
    LOOKUP,
    LabelStudioApi,
    PredictionState,
    Project,
    TaskState,
)
from misfire_fleet.labels.tools.label_studio.images import Images

_BATCH = 20
"""Tasks per import: what a killed push may have to look up and upload again."""
_ATTEMPTS = 4
_PAUSE_S = 1.0
_QUEUED_S = 60.0
"""How long a server may take over an import that it only queued."""
VIEW = "Expected failures first"
_VIEW = {
    "ordering": ["-tasks:data.percentile"],
    # Otherwise numbers are sorted as text, and 9e-05 comes first.
    "columnsDisplayType": {"tasks:data.percentile": "Number", "tasks:data.score": "Number"},
}


class Pusher:
    """Sends items to one project.

    Args:
        api: of the server.
        project: with the configuration `config`.
        config: what people can mark there.
        images: gives the pictures' addresses.
        stop: ends pauses.
    """

    def __init__(
        self,
        api: LabelStudioApi,
        project: Project,
        config: LabellingConfig,
        *,
        images: Images,
        stop: threading.Event | None = None,
    ) -> None:
        self._api, self._project, self._config = api, project, config
        self._images, self._stop = images, stop or threading.Event()
        self._done = Pushed()
        self._doubtful: list[str] = []

    def push(self, items: Iterable[ExportItem]) -> Pushed:
        """Creates what is missing, in the order of the items; see `LabelTool.push`."""
        self._api.ensure_view(self._project, VIEW, _VIEW)
        for batch in _batches(items, _BATCH):
            found = self._kept([item.sample for item in batch])
            new = [item for item in batch if item.sample not in found]
            self._done.present += len(found)
            self._mend([item for item in batch if item.sample in found], found)
            if new:
                # What a killed push was creating is in the first batch that lacks something.
                self._doubtful = self._doubtful or [item.sample for item in new]
                self._create(new)
        self._look_again()
        return self._done

    def _create(self, items: Sequence[ExportItem]) -> None:
        addresses = self._images.addresses(items)
        for sample_problem in addresses.missing.values():
            self._done.left_out[sample_problem] += 1
        tasks = {
            item.sample: self._task(item, addresses.found[item.sample])
            for item in items
            if item.sample in addresses.found
        }
        waiting = dict(tasks)
        for attempt in range(1, _ATTEMPTS + 1):
            if not waiting:
                break
            failure = self._import(list(waiting.values()))
            found = self._await(list(waiting), queued=failure is None)
            waiting = {sample: task for sample, task in waiting.items() if sample not in found}
            if failure is not None:
                # What it was sent may still be carried out, after this look-up.
                self._doubtful += list(tasks)
            if waiting and (attempt == _ATTEMPTS or self._stop.is_set()):
                raise failure or LabelToolError(
                    f"Label Studio at {self._api.url} took {len(waiting)} tasks and does not list them"
                )
        self._done.created += len(tasks)
        self._done.predictions += sum("predictions" in task for task in tasks.values())
        # Another push, or one that was killed, may have created the same tasks at the same time.
        self._kept(list(tasks))

    def _import(self, tasks: Sequence[dict[str, Any]]) -> LabelToolUnavailableError | None:
        try:
            self._api.import_tasks(self._project, tasks)
        except LabelToolUnavailableError as error:
            self._stop.wait(_PAUSE_S)
            return error
        return None

    def _await(self, samples: Sequence[str], *, queued: bool) -> dict[str, TaskState]:
        """Looks samples up, for a while if the server said yes: it may only have queued them."""
        waited = 0.0
        while True:
            found = self._kept(samples)
            if len(found) == len(samples) or not queued or waited >= _QUEUED_S or self._stop.is_set():
                return found
            self._stop.wait(_PAUSE_S)
            waited += _PAUSE_S

    def _look_again(self) -> None:
        """Removes second tasks that were made after a look-up, by a killed push or a lost answer's import."""
        for samples in _batches(self._doubtful, LOOKUP):
            self._kept(samples)

    def _kept(self, samples: Sequence[str]) -> dict[str, TaskState]:
        """Returns the task of each sample that has one, after removing second ones."""
        found = {}
        for sample, tasks in self._api.tasks_of(self._project, samples).items():
            worked = [task for task in tasks if task.worked_on]
            keep = worked or tasks[:1]
            for task in tasks:
                if task not in keep:
                    self._api.delete("tasks", task.id)
                    self._done.duplicates_removed += 1
            self._done.duplicates_kept += len(keep) - 1
            found[sample] = keep[0]
        return found

    def _mend(self, items: Sequence[ExportItem], found: dict[str, TaskState]) -> None:
        """Adds answers of further bundles to tasks that are there, and new addresses if they expire."""
        if self._images.expires:
            addresses = self._images.addresses(items).found
            for item in items:
                task = found[item.sample]
                self._api.replace_data(task, task.data | {PICTURE: addresses[item.sample]})
                self._done.refreshed += 1
        for item in items:
            document = self._prediction(item)
            if document is not None and self._has_none_of(found[item.sample], item.bundle):
                self._predict(found[item.sample], document, item)

    def _predict(self, task: TaskState, document: dict[str, Any], item: ExportItem) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._api.add_prediction(task.id, document)
            except LabelToolUnavailableError:
                self._stop.wait(_PAUSE_S)
                again = self._kept([item.sample]).get(item.sample)
                if again is None or not self._has_none_of(again, item.bundle):
                    break
                if attempt == _ATTEMPTS:
                    raise
            else:
                break
        self._done.predictions += 1

    def _has_none_of(self, task: TaskState, version: str) -> bool:
        """Returns True if a task has no prediction of a bundle, after removing second ones."""
        same: list[PredictionState] = [each for each in task.predictions if each.model_version == version]
        for second in sorted(same, key=lambda each: each.id)[1:]:
            self._api.delete("predictions", second.id)
            self._done.duplicates_removed += 1
        return not same

    def _task(self, item: ExportItem, address: str) -> dict[str, Any]:
        task: dict[str, Any] = {"data": task_data(item, picture=address)}
        answer = self._prediction(item)
        return task if answer is None else task | {"predictions": [answer]}

    def _prediction(self, item: ExportItem) -> dict[str, Any] | None:
        if item.answer is None:
            return None
        try:
            results = results_of(
                item.answer.label,
                self._config,
                size=(item.width, item.height),
                scores=scores_of(item.answer),
            )
        except ValueError as error:
            self._done.left_out[f"the vehicle's answer: {error}"] += 1
            return None
        return prediction(item.bundle, results, item.answer)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
