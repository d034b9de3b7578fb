"""Calls the few parts of CVAT that pushing and pulling need, by cvat-sdk.

`CvatServer` is what is needed; `SdkServer` does it with a server. cvat-sdk is a client alone: the server
needs containers, so `SdkServer` was never run against one in the project's tests (docs/label-tools.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from misfire_fleet.errors import LabelToolError, LabelToolUnavailableError
from misfire_runtime.errors import MissingExtraError

_XML = "CVAT for images 1.1"
_IMPORT = "CVAT 1.1"
"""The same format has another name for imports."""


@dataclass(frozen=True)
class CvatProject:
    """Describes a project and the names of its labels."""

    number: int
    name: str
    created: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class CvatTask:
    """Describes a task. `size`: its pictures; 0 while they are uploaded."""

    number: int
    name: str
    size: int
    created: datetime
    updated: datetime


@dataclass(frozen=True)
class CvatJob:
    """Describes a job: pictures `first` to `last` of a task. `done`: a person set it to completed."""

    first: int
    last: int
    done: bool
    annotator: str
    updated: datetime


class CvatServer(Protocol):
    """Does single steps. Every method raises LabelToolError and LabelToolUnavailableError."""

    @property
    def url(self) -> str:
        """Returns the server's address."""

    def projects(self, name: str) -> list[CvatProject]:
        """Returns the projects with this name."""

    def create_project(self, name: str, labels: Sequence[dict[str, Any]]) -> CvatProject:
        """Creates a project."""

    def add_labels(self, project: CvatProject, labels: Sequence[dict[str, Any]]) -> None:
        """Adds labels to a project."""

    def tasks(self, project: CvatProject) -> list[CvatTask]:
        """Returns the tasks of a project."""

    def create_task(self, project: CvatProject, name: str) -> CvatTask:
        """Creates a task without pictures."""

    def upload(self, task: CvatTask, pictures: Sequence[Path]) -> None:
        """Gives a task its pictures, once, and waits until the server has cut them up."""

    def import_shapes(self, task: CvatTask, xml: Path) -> None:
        """Replaces the shapes of a task by those of an XML."""

    def rename(self, task: CvatTask, name: str) -> None:
        """Renames a task."""

    def delete(self, task: CvatTask) -> None:
        """Deletes a task, if it is still there."""

    def pictures(self, task: CvatTask) -> list[str]:
        """Returns the names of a task's pictures."""

    def jobs(self, task: CvatTask) -> list[CvatJob]:
        """Returns the jobs of a task."""

    def export(self, task: CvatTask, file: Path) -> None:
        """Writes an archive with the task's annotations.xml."""


class SdkServer:
    """Does it by cvat-sdk.

    Args:
        url: of the server.
        token: personal access token.

    Raises:
        MissingExtraError: cvat-sdk is not installed.
        LabelToolError: the server refuses the token.
        LabelToolUnavailableError: the server does not work now.
    """

    def __init__(self, url: str, *, token: str) -> None:
        try:
            from cvat_sdk import make_client
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "`misfire labels --to cvat` needs cvat-sdk, which is not installed: "
                "pip install 'misfire[cvat]' -c constraints.txt"
            ) from error
        self._url, self._token = url, token
        with self._translated():
            self._client: Any = make_client(url, access_token=token)

    @property
    def url(self) -> str:
        """Returns the server's address."""
        return self._url

    def projects(self, name: str) -> list[CvatProject]:
        """Searches, and keeps the exact matches."""
        with self._translated():
            return [
                self._project(each) for each in self._client.projects.list(search=name) if each.name == name
            ]

    def create_project(self, name: str, labels: Sequence[dict[str, Any]]) -> CvatProject:
        """Creates it with its labels at once."""
        with self._translated():
            return self._project(self._client.projects.create({"name": name, "labels": list(labels)}))

    def add_labels(self, project: CvatProject, labels: Sequence[dict[str, Any]]) -> None:
        """Patches the project: labels without an id are new."""
        with self._translated():
            self._client.projects.retrieve(project.number).update({"labels": list(labels)})

    def tasks(self, project: CvatProject) -> list[CvatTask]:
        """Lists them all."""
        with self._translated():
            return [_task(each) for each in self._client.projects.retrieve(project.number).get_tasks()]

    def create_task(self, project: CvatProject, name: str) -> CvatTask:
        """Creates it in the project."""
        with self._translated():
            return _task(self._client.tasks.create({"name": name, "project_id": project.number}))

    def upload(self, task: CvatTask, pictures: Sequence[Path]) -> None:
        """Keeps the order of the pictures; by default CVAT sorts them by name."""
        with self._translated():
            self._client.tasks.retrieve(task.number).upload_data(
                list(pictures), params={"sorting_method": "predefined", "image_quality": 95}
            )

    def import_shapes(self, task: CvatTask, xml: Path) -> None:
        """Imports "CVAT 1.1"."""
        with self._translated():
            self._client.tasks.retrieve(task.number).import_annotations(_IMPORT, xml)

    def rename(self, task: CvatTask, name: str) -> None:
        """Patches the name."""
        with self._translated():
            self._client.tasks.retrieve(task.number).update({"name": name})

    def delete(self, task: CvatTask) -> None:
        """Deletes by number; one that is gone is no error."""
        with self._translated():
            self._client.tasks.remove_by_ids([task.number])

    def pictures(self, task: CvatTask) -> list[str]:
        """Reads the task's frames."""
        with self._translated():
            return [str(each.name) for each in self._client.tasks.retrieve(task.number).get_frames_info()]

    def jobs(self, task: CvatTask) -> list[CvatJob]:
        """Reads the jobs of annotation; those of consensus and ground truth are others."""
        with self._translated():
            listed = self._client.tasks.retrieve(task.number).get_jobs()
            return [_job(each) for each in listed if str(each.type) == "annotation"]

    def export(self, task: CvatTask, file: Path) -> None:
        """Exports "CVAT for images 1.1" without the pictures."""
        with self._translated():
            self._client.tasks.retrieve(task.number).export_dataset(_XML, file, include_images=False)

    def _project(self, model: Any) -> CvatProject:
        labels = tuple(str(label.name) for label in model.get_labels())
        return CvatProject(int(model.id), str(model.name), str(model.created_date), labels)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from cvat_sdk.exceptions import ApiException, CvatSdkException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            kind = LabelToolUnavailableError if (error.status or 0) >= 500 else LabelToolError
            raise kind(self._said(f"answered {error.status} {error.reason or ''}".rstrip())) from None
        except CvatSdkException as error:
            raise LabelToolError(self._said(str(error))) from None
        except (HTTPError, OSError) as error:
            raise LabelToolUnavailableError(self._said(f"could not be reached ({error})")) from None

    def _said(self, sentence: str) -> str:
        line = " ".join(sentence.split())[:300]
        return f"CVAT at {self._url}: {line}".replace(self._token, "[token]")


def _task(model: Any) -> CvatTask:
    return CvatTask(
        int(model.id), str(model.name), int(model.size or 0), model.created_date, model.updated_date
    )


def _job(model: Any) -> CvatJob:
    who = getattr(model.assignee, "username", "") if model.assignee else ""
    done = str(model.state) == "completed"
    return CvatJob(int(model.start_frame), int(model.stop_frame), done, str(who), model.updated_date)
