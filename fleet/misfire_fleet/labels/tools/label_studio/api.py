"""Calls the parts of Label Studio's REST API that pushing and pulling need, and checks every answer.

Label Studio validates almost nothing that it is sent, and makes a second task of the same data if asked
twice. So tasks are found by `data.sample_id`, and nothing here is repeated unless repeating is harmless.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from misfire_fleet.errors import LabelToolError
from misfire_fleet.labels.formats.label_studio.tasks import SAMPLE_ID
from misfire_fleet.labels.tools.http import Endpoint, FilePart

LOOKUP = 40
"""Samples per look-up: their ids fit into the 4 KiB of a URL that every proxy takes."""
_PAGE = 50
_LONG_PAGE = 500
"""Of tasks without annotations and predictions."""
_PAGES = 10_000
MAX_TITLE = 50
"""Characters of a project's title."""
_PARTS = "id,data,annotations,updated_at,created_at,result,completed_by,was_cancelled"
_STATE = "id,data,total_annotations,cancelled_annotations,drafts,predictions,model_version"
T = TypeVar("T")


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Project(_Answer):
    """Describes a project."""

    id: int
    title: str = ""
    label_config: str = ""
    created_at: str = ""
    task_number: int | None = None
    num_tasks_with_annotations: int | None = None
    total_annotations_number: int | None = None
    total_predictions_number: int | None = None
    skipped_annotations_number: int | None = None


class PredictionState(_Answer):
    """Names a stored prediction and the model that made it."""

    id: int
    model_version: str | None = None


class TaskState(_Answer):
    """Says what a task holds, without its annotations' contents."""

    id: int
    data: dict[str, Any]
    total_annotations: int = 0
    cancelled_annotations: int = 0
    drafts: list[Any] = []
    predictions: list[PredictionState] = []

    @property
    def worked_on(self) -> bool:
        """Returns True if a person labelled it, skipped it, or is at it."""
        return bool(self.total_annotations or self.cancelled_annotations or self.drafts)

    @property
    def sample(self) -> str:
        """Returns the sample's id; "" if the task has none."""
        return str(self.data.get(SAMPLE_ID) or "")


class ChangedTask(_Answer):
    """Holds a task with its annotations, and when one of them last changed."""

    id: int
    data: dict[str, Any]
    annotations: list[dict[str, Any]] = []
    updated_at: datetime


class Upload(_Answer):
    """Describes a file that was uploaded; `file` is its path on the server."""

    id: int
    file: str
    size: int | None = None


class _Tasks(_Answer):
    total: int
    tasks: list[Any]


class _Projects(_Answer):
    count: int
    results: list[Project]


class _Imported(_Answer):
    task_count: int | None = None
    file_upload_ids: list[int] = []
    import_id: int | None = Field(default=None, alias="import")


class _User(_Answer):
    id: int
    email: str = ""
    username: str = ""


class _View(_Answer):
    id: int
    data: dict[str, Any] = {}


@dataclass(frozen=True)
class Page:
    """Holds tasks that changed, and how many there were in all."""

    tasks: list[ChangedTask]
    total: int


class LabelStudioApi:
    """Calls one server. Every method raises LabelToolError and LabelToolUnavailableError."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    @property
    def url(self) -> str:
        """Returns the server's address."""
        return self._endpoint.url

    def user(self) -> str:
        """Returns the e-mail address of the token's owner; proves that address and token are right."""
        return self._checked(_User, self._endpoint.get("/api/current-user/whoami"), "whoami").email

    def users(self) -> dict[int, str]:
        """Returns the users' e-mail addresses by number; nothing if the token may not list them."""
        try:
            answer = self._endpoint.get("/api/users/")
        except LabelToolError as error:
            if error.status in (403, 404):
                return {}
            raise
        found = self._checked(list[_User], answer, "users")
        return {user.id: user.email or user.username for user in found if user.email or user.username}

    def projects(self, title: str) -> list[Project]:
        """Returns the projects with this title."""
        found = []
        for page in range(1, _PAGES):
            answer = self._endpoint.get("/api/projects/", page=page, page_size=100, include="id,title")
            listed = self._checked(_Projects, answer, "projects")
            found += [each for each in listed.results if each.title == title]
            if page * 100 >= listed.count:
                break
        return [self.project(each.id) for each in found]

    def project(self, number: int) -> Project:
        """Returns a project by its number."""
        return self._checked(Project, self._endpoint.get(f"/api/projects/{number}/"), "project")

    def create_project(self, title: str, config: str) -> Project:
        """Creates a project that shows the tasks in the order in which they were sent."""
        body = {
            "title": title,
            "label_config": config,
            "sampling": "Sequential sampling",
            "show_collab_predictions": True,
        }
        return self._checked(Project, self._endpoint.send("POST", "/api/projects/", body), "project")

    def set_config(self, project: Project, config: str) -> None:
        """Replaces a project's labelling configuration."""
        self._endpoint.send(
            "PATCH", f"/api/projects/{project.id}/", {"label_config": config}, repeatable=True
        )

    def tasks_of(self, project: Project, samples: Sequence[str]) -> dict[str, list[TaskState]]:
        """Returns the tasks of at most LOOKUP samples, each sample's oldest first."""
        found: dict[str, list[TaskState]] = {}
        condition = _condition(f"data.{SAMPLE_ID}", "in_list", "String", list(samples))
        count = 0
        for page in range(1, _PAGES):
            listed = self._listed(project, [condition], include=_STATE, page=page, ordering="tasks:id")
            for task in self._checked(list[TaskState], listed.tasks, "tasks"):
                found.setdefault(task.sample, []).append(task)
            count += len(listed.tasks)
            # By the total: a server may give fewer tasks than a page has.
            if not listed.tasks or count >= listed.total:
                break
        return found

    def samples(self, project: Project) -> Iterator[list[str]]:
        """Yields the samples of all tasks in groups; a task without one is left out."""
        after = 0
        while True:
            condition = _condition("id", "greater", "Number", after)
            listed = self._listed(
                project, [condition], include="id,data", ordering="tasks:id", size=_LONG_PAGE
            )
            tasks = self._checked(list[TaskState], listed.tasks, "tasks")
            yield [task.sample for task in tasks if task.sample]
            if not tasks or len(tasks) >= listed.total:
                return
            after = tasks[-1].id

    def changed(self, project: Project, since: datetime | None) -> Iterator[Page]:
        """Yields the annotated tasks that changed at or after a time, oldest change first.

        Pages begin at the time where the last one ended, not at a number: a task that changes meanwhile moves
        to the end, and all tasks behind it would move over a numbered page's edge.
        """
        page, seen = 1, dict[int, datetime]()
        while True:
            conditions = [_condition("total_annotations", "greater", "Number", 0)]
            if since is not None:
                conditions.append(_condition("updated_at", "greater_or_equal", "Datetime", _moment(since)))
            listed = self._listed(project, conditions, include=_PARTS, page=page, ordering="tasks:updated_at")
            tasks = self._checked(list[ChangedTask], listed.tasks, "tasks")
            yield Page([task for task in tasks if seen.get(task.id) != task.updated_at], listed.total)
            if not tasks or (page - 1) * _PAGE + len(tasks) >= listed.total:
                return
            if tasks[-1].updated_at == since:
                # A whole page of one moment, such as an import's: only the page's number leads on.
                page += 1
                continue
            since, page = tasks[-1].updated_at, 1
            seen = {task.id: task.updated_at for task in tasks if task.updated_at == since}

    def skipped(self, project: Project, since: datetime | None) -> int:
        """Returns the number of changed tasks that somebody skipped."""
        conditions = [_condition("cancelled_annotations", "greater", "Number", 0)]
        if since is not None:
            conditions.append(_condition("updated_at", "greater_or_equal", "Datetime", _moment(since)))
        return self._listed(project, conditions, include="id", ordering="tasks:id").total

    def import_tasks(self, project: Project, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Creates tasks. After LabelToolUnavailableError they may be there, or come a moment later."""
        answer = self._endpoint.send("POST", f"/api/projects/{project.id}/import", list(tasks))
        self._checked(_Imported, answer, "import")

    def upload(self, project: Project, files: Sequence[FilePart]) -> list[Upload]:
        """Uploads files without making tasks of them; returns them in order."""
        path = f"/api/projects/{project.id}/import"
        answer = self._endpoint.upload(path, files, commit_to_project="false")
        numbers = self._checked(_Imported, answer, "import").file_upload_ids
        if len(numbers) != len(files):
            raise LabelToolError(self._said(f"took {len(numbers)} of {len(files)} files"))
        query = {"ids": json.dumps(numbers)}
        listed = self._checked(
            list[Upload], self._endpoint.get(f"/api/projects/{project.id}/file-uploads", **query), "uploads"
        )
        by_number = {each.id: each for each in listed}
        missing = [number for number in numbers if number not in by_number]
        if missing:
            raise LabelToolError(self._said(f"does not know the file {missing[0]} that it just took"))
        return [by_number[number] for number in numbers]

    def uploads(self, project: Project) -> list[Upload]:
        """Returns all files that this user uploaded to a project."""
        answer = self._endpoint.get(f"/api/projects/{project.id}/file-uploads", all="true")
        return self._checked(list[Upload], answer, "uploads")

    def add_prediction(self, task: int, prediction: Mapping[str, Any]) -> None:
        """Adds a prediction to a task. After LabelToolUnavailableError it may be there."""
        self._endpoint.send("POST", "/api/predictions/", {"task": task, **prediction})

    def replace_data(self, task: TaskState, data: Mapping[str, Any]) -> None:
        """Replaces the fields of a task."""
        self._endpoint.send("PATCH", f"/api/tasks/{task.id}/", {"data": dict(data)}, repeatable=True)

    def delete(self, what: str, number: int) -> None:
        """Deletes a task or a prediction (`tasks`, `predictions`), if it is still there."""
        try:
            self._endpoint.request("DELETE", f"/api/{what}/{number}/", repeatable=True)
        except LabelToolError as error:
            if error.status != 404:
                raise

    def ensure_view(self, project: Project, title: str, data: Mapping[str, Any]) -> None:
        """Creates a tab of the Data Manager, if there is none of that title."""
        views = self._checked(list[_View], self._endpoint.get("/api/dm/views/", project=project.id), "views")
        if all(view.data.get("title") != title for view in views):
            body = {
                "project": project.id,
                "data": {"title": title, "type": "list", "target": "tasks", **data},
            }
            self._endpoint.send("POST", "/api/dm/views/", body)

    def _listed(
        self,
        project: Project,
        conditions: Sequence[Mapping[str, Any]],
        *,
        include: str,
        ordering: str,
        page: int = 1,
        size: int = _PAGE,
    ) -> _Tasks:
        query = {"filters": {"conjunction": "and", "items": list(conditions)}, "ordering": [ordering]}
        try:
            answer = self._endpoint.get(
                "/api/tasks",
                project=project.id,
                page=page,
                page_size=size,
                fields="all",
                include=include,
                query=json.dumps(query, separators=(",", ":")),
            )
        except LabelToolError as error:
            # Behind the last page it answers 404, as tasks went while others were read.
            if error.status == 404 and page > 1:
                return _Tasks(total=0, tasks=[])
            raise
        return self._checked(_Tasks, answer, "tasks")

    def _checked(self, kind: type[T], answer: Any, what: str) -> T:
        try:
            return TypeAdapter(kind).validate_python(answer)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))[:80] or "answer"
            raise LabelToolError(
                self._said(f"its answer for {what} is not Label Studio's ({field}: {first['msg']})")
            ) from error

    def _said(self, sentence: str) -> str:
        return f"{self._endpoint.name} at {self.url}: {sentence}"


def _condition(column: str, operator: str, kind: str, value: object) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _moment(at: datetime) -> str:
    """Returns a time as the filters take it: UTC with six digits of a second, and no other."""
    return at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
