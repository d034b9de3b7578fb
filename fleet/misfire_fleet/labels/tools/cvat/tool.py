"""Pushes batches of pictures to CVAT as tasks, and pulls the shapes of the tasks that changed.

    items --BATCH at a time--> task "misfire uploading HASH": pictures, XML with the answers --renamed-->
    ready tasks that changed --XML--> pictures that a person touched, or that a completed job has --> labels

A task of CVAT gets its pictures once, so a sample's task cannot be looked up before it has them. A task
counts only under its final name, which it gets last: what a killed push leaves has the other name and is
deleted.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path

from misfire_fleet.errors import LabelToolError, SampleGoneError
from misfire_fleet.labels.exchange.archives import Limits, unpacked
from misfire_fleet.labels.formats.base import (
    ClassNumbers,
    ExportItem,
    ImportedLabel,
    Kind,
    Known,
    Plan,
    Problem,
    Written,
    id_in,
)
from misfire_fleet.labels.formats.cvat import image_xml, label_specs, read_images
from misfire_fleet.labels.formats.parts.pictures import write_picture
from misfire_fleet.labels.tools.base import Changes, Pushed, ToolStatus
from misfire_fleet.labels.tools.cvat.server import CvatJob, CvatProject, CvatServer, CvatTask
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import ConfigError

BATCH = 100
"""Pictures of a task, which one person labels in an hour or so."""
_READY, _UPLOADING = "misfire ", "misfire uploading "
_ABANDONED = timedelta(hours=1)


def prepare_project(
    server: CvatServer, name: str, *, kind: Kind, names: Sequence[str], update: bool
) -> CvatProject:
    """Returns the project for a push, created if it does not exist.

    Args:
        server: of the project.
        name: of the project.
        kind: of the labels.
        names: classes, or points, that it must have.
        update: adds labels that an existing project lacks.

    Raises:
        LabelToolError: two projects have the name; or it lacks labels, and `update` is False.
    """
    named = {"points": names} if kind == "points" else {"points": ()}
    specs = label_specs(() if kind == "points" else names, {kind}, **named)
    project = find_project(server, name)
    if project is None:
        return server.create_project(name, specs)
    missing = [spec for spec in specs if spec["name"] not in project.labels]
    if missing and not update:
        listed = ", ".join(repr(spec["name"]) for spec in missing)
        raise LabelToolError(
            f"project {name!r} of CVAT at {server.url}: lacks the labels {listed}; "
            "add them with --update-project"
        )
    if missing:
        server.add_labels(project, missing)
    return project


def find_project(server: CvatServer, name: str) -> CvatProject | None:
    """Returns the project of a name, or None. Raises LabelToolError if there are two."""
    found = server.projects(name)
    if len(found) > 1:
        raise LabelToolError(f"CVAT at {server.url} has {len(found)} projects named {name!r}; rename one")
    return found[0] if found else None


class CvatTool:
    """Talks to one project; see `LabelTool`.

    Args:
        server: of the project.
        project: is set up for the labels.
        kind: of the labels; None takes it from their shapes.
        points: names of the points of a skeleton.
    """

    source = "cvat"

    def __init__(
        self,
        server: CvatServer,
        project: CvatProject,
        *,
        kind: Kind | None = None,
        points: Sequence[str] = (),
    ) -> None:
        self._server, self._project = server, project
        self._kind, self._points = kind, tuple(points)

    @property
    def place(self) -> str:
        """Returns the project's address."""
        return f"{self._server.url}/projects/{self._project.number}"

    @property
    def identity(self) -> str:
        """Returns the project's address and the time of its creation."""
        return f"{self.place} {self._project.created}"

    def push(self, items: Iterable[ExportItem]) -> Pushed:
        """Creates tasks for the pictures that are in none."""
        done = Pushed()
        there = {sample for group in self.samples() for sample in group}
        for batch in self._batches(items, there, done):
            self._create(batch, done)
        return done

    def _batches(
        self, items: Iterable[ExportItem], there: set[str], done: Pushed
    ) -> Iterator[list[ExportItem]]:
        fresh = (item for item in items if not self._counted(item, there, done))
        while batch := list(islice(fresh, BATCH)):
            yield batch

    def _counted(self, item: ExportItem, there: set[str], done: Pushed) -> bool:
        done.present += item.sample in there
        return item.sample in there

    def _create(self, batch: Sequence[ExportItem], done: Pushed) -> None:
        digest = hashlib.sha256("".join(item.sample for item in batch).encode()).hexdigest()[:12]
        self._remove_remains(digest)
        with tempfile.TemporaryDirectory() as folder:
            pictures = []
            written = Written()
            xml = Path(folder) / "annotations.xml"
            with xml.open("w", encoding="utf-8") as stream:
                stream.write(
                    '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
                )
                for item in batch:
                    try:
                        pictures.append(write_picture(item, Path(folder) / "images"))
                    except SampleGoneError:
                        done.left_out["its picture is no longer stored"] += 1
                        continue
                    stream.write(self._image(item, len(pictures) - 1, written))
                stream.write("</annotations>\n")
            if not pictures:
                return
            task = self._server.create_task(self._project, f"{_UPLOADING}{digest}")
            self._server.upload(task, pictures)
            self._server.import_shapes(task, xml)
            # Last: from here on, its pictures are known to be there.
            self._server.rename(task, f"{_READY}{digest}")
        done.created += len(pictures)
        done.predictions += written.answered
        done.left_out += written.left_out

    def _image(self, item: ExportItem, number: int, written: Written) -> str:
        plan = Plan(points=self._points)
        # The label of a sample that is sent again is for people to correct, as an answer is.
        return image_xml(item, number, names=ClassNumbers(()), kinds=set(), plan=plan, written=written)

    def _remove_remains(self, digest: str) -> None:
        """Deletes what a killed push left of this batch, and what others left an hour ago."""
        now = datetime.fromtimestamp(wall_time(), timezone.utc)
        for task in self._server.tasks(self._project):
            same = task.name == f"{_UPLOADING}{digest}"
            if same or (task.name.startswith(_UPLOADING) and now - task.created > _ABANDONED):
                self._server.delete(task)

    def _ready(self) -> list[CvatTask]:
        tasks = self._server.tasks(self._project)
        return [task for task in tasks if not task.name.startswith(_UPLOADING) and task.size > 0]

    def samples(self) -> Iterator[list[str]]:
        """Yields the samples of each task."""
        for task in self._ready():
            yield [id_in(name) for name in self._server.pictures(task)]

    def changes(self, since: datetime | None) -> Iterator[Changes]:
        """Yields the labels of each task that changed."""
        changed = [task for task in self._ready() if since is None or task.updated >= since]
        for task in sorted(changed, key=lambda task: task.updated):
            jobs = self._server.jobs(task)
            labels: list[ImportedLabel] = []
            problems: list[Problem] = []
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(folder) / "export.zip"
                self._server.export(task, archive)
                try:
                    with unpacked(archive, Limits()) as content:
                        self._read(content / "annotations.xml", task, jobs, labels, problems)
                except ConfigError as error:
                    said = str(error).replace(folder, "").lstrip("/")
                    raise LabelToolError(
                        f"CVAT at {self._server.url}: its export of task {task.number}: {said}"
                    ) from error
            yield Changes(tuple(labels), tuple(problems), task.updated)

    def _read(
        self,
        xml: Path,
        task: CvatTask,
        jobs: Sequence[CvatJob],
        labels: list[ImportedLabel],
        problems: list[Problem],
    ) -> None:
        for told in read_images(xml, Known(kind=self._kind)):
            job = next((each for each in jobs if each.first <= told.number <= each.last), None)
            where = f"{self._server.url}/tasks/{task.number}, picture {told.number}"
            if told.problem:
                problems.append(Problem(where, told.problem))
            elif told.label is not None and (told.by_person or (job is not None and job.done)):
                labels.append(
                    ImportedLabel(
                        told.sample,
                        told.label,
                        where,
                        size=told.size,
                        annotator=job.annotator if job else told.annotator,
                        at=job.updated if job else task.updated,
                    )
                )

    def status(self) -> ToolStatus:
        """Counts pictures, and those of completed jobs; CVAT does not count shapes apart from answers."""
        ready = self._ready()
        jobs = [job for task in ready for job in self._server.jobs(task)]
        done = sum(job.last - job.first + 1 for job in jobs if job.done)
        return ToolStatus(
            tasks=sum(task.size for task in ready), annotated=done, annotations=done, skipped=0, predictions=0
        )
