"""Ties a project of Label Studio together as a label tool: push, changes, samples and status."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from misfire_fleet.labels.formats.base import ExportItem, ImportedLabel, Problem
from misfire_fleet.labels.formats.label_studio.config import LabellingConfig
from misfire_fleet.labels.formats.label_studio.tasks import labels_of
from misfire_fleet.labels.tools.base import Changes, Pushed, ToolStatus
from misfire_fleet.labels.tools.label_studio.api import ChangedTask, LabelStudioApi, Project
from misfire_fleet.labels.tools.label_studio.images import Images, UploadedImages
from misfire_fleet.labels.tools.label_studio.push import Pusher


class LabelStudioProject:
    """Talks to one project; see `LabelTool`.

    Args:
        api: of the server.
        project: with the configuration `config`.
        config: what people can mark there.
        images: gives the pictures' addresses; uploads them by default.
    """

    source = "label-studio"

    def __init__(
        self, api: LabelStudioApi, project: Project, config: LabellingConfig, *, images: Images | None = None
    ) -> None:
        self._api, self._project, self._config = api, project, config
        self._images = images or UploadedImages(api, project)

    @property
    def place(self) -> str:
        """Returns the project's address."""
        return f"{self._api.url}/projects/{self._project.id}"

    @property
    def identity(self) -> str:
        """Returns the project's address and the time of its creation."""
        return f"{self.place} {self._project.created_at}"

    def push(self, items: Iterable[ExportItem]) -> Pushed:
        """Creates the tasks that are missing."""
        return Pusher(self._api, self._project, self._config, images=self._images).push(items)

    def changes(self, since: datetime | None) -> Iterator[Changes]:
        """Yields pages of changed labels; the first one has the number of skipped tasks."""
        users = self._api.users()
        skipped = self._api.skipped(self._project, since)
        for page in self._api.changed(self._project, since):
            labels: list[ImportedLabel] = []
            problems: list[Problem] = []
            foreign = 0
            for task in page.tasks:
                if not isinstance(task.data.get("sample_id"), str):
                    foreign += 1
                    continue
                for told in self._told(task, users):
                    (problems if isinstance(told, Problem) else labels).append(told)  # type: ignore[arg-type]
            until = page.tasks[-1].updated_at if page.tasks else None
            yield Changes(tuple(labels), tuple(problems), until, skipped, foreign)
            skipped = 0

    def _told(self, task: ChangedTask, users: dict[int, str]) -> Iterator[ImportedLabel | Problem]:
        annotations = [
            annotation | {"completed_by": users.get(by, by) if isinstance(by, int) else by}
            for annotation in task.annotations
            for by in [annotation.get("completed_by")]
        ]
        yield from labels_of(
            {"data": task.data, "annotations": annotations},
            kind=self._config.kind,
            names=self._config.names,
            size_of_sample=lambda _sample: _stated(task),
            where=f"{self.place}/data?task={task.id}",
        )

    def samples(self) -> Iterator[list[str]]:
        """Yields the samples of all tasks."""
        return self._api.samples(self._project)

    def status(self) -> ToolStatus:
        """Returns Label Studio's own counts."""
        now = self._api.project(self._project.id)
        return ToolStatus(
            tasks=now.task_number or 0,
            annotated=now.num_tasks_with_annotations or 0,
            annotations=now.total_annotations_number or 0,
            skipped=now.skipped_annotations_number or 0,
            predictions=now.total_predictions_number or 0,
        )


def _stated(task: ChangedTask) -> tuple[int, int] | None:
    """Returns width and height of the picture as the push wrote them."""
    width, height = task.data.get("width"), task.data.get("height")
    return (width, height) if type(width) is int and type(height) is int and width > 0 < height else None
