"""`misfire labels --to cvat` against a stand-in for the server: no picture twice, whatever is killed.

CVAT's server needs containers, so nothing here proves that the SDK's calls are right against a real one.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.fleet.labels.label_tools import Cli, fill

from misfire_fleet.errors import LabelToolError
from misfire_fleet.labels.content import BoxesLabel
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.labels.tools.cvat import server as cvat_server
from misfire_fleet.labels.tools.cvat.server import CvatJob, CvatProject, CvatTask
from misfire_fleet.store import Store
from proving_ground.services import missing

TOKEN = "the-token-of-cvat"


def installed_sdk() -> Any:
    if importlib.util.find_spec("cvat_sdk") is None:
        missing("cvat-sdk", "pip install 'misfire[cvat]'")
    return importlib.import_module("cvat_sdk")


class KilledError(BaseException):
    """Ends a push as SIGKILL would: nothing catches it."""


class StandIn:
    """Keeps what a server would, and ends the process at the step that a test names."""

    def __init__(self) -> None:
        self.url = "https://cvat.example.org"
        self.now = datetime(2026, 7, 1, tzinfo=timezone.utc)
        self.made: list[CvatProject] = []
        self.kept: dict[int, CvatTask] = {}
        self.files: dict[int, list[Path]] = {}
        self.xml: dict[int, ElementTree.Element] = {}
        self.done: dict[int, str] = {}
        self.kill_after = ""

    def _step(self, name: str) -> None:
        self.now += timedelta(seconds=1)
        if name == self.kill_after:
            self.kill_after = ""
            raise KilledError

    def projects(self, name: str) -> list[CvatProject]:
        return [each for each in self.made if each.name == name]

    def create_project(self, name: str, labels: Sequence[dict[str, Any]]) -> CvatProject:
        self.made.append(
            CvatProject(len(self.made) + 1, name, "2026", tuple(each["name"] for each in labels))
        )
        return self.made[-1]

    def add_labels(self, project: CvatProject, labels: Sequence[dict[str, Any]]) -> None:
        names = (*project.labels, *(each["name"] for each in labels))
        self.made[project.number - 1] = replace(project, labels=names)

    def tasks(self, project: CvatProject) -> list[CvatTask]:
        return list(self.kept.values())

    def create_task(self, project: CvatProject, name: str) -> CvatTask:
        number = max(self.kept, default=0) + 1
        self.kept[number] = CvatTask(number, name, 0, self.now, self.now)
        self._step("create")
        return self.kept[number]

    def upload(self, task: CvatTask, pictures: Sequence[Path]) -> None:
        assert not self.kept[task.number].size, "a task of CVAT gets its pictures once"
        assert all(path.read_bytes() for path in pictures)
        self._change(task, size=len(pictures))
        self.files[task.number] = list(pictures)
        self._step("upload")

    def import_shapes(self, task: CvatTask, xml: Path) -> None:
        self.xml[task.number] = ElementTree.parse(xml).getroot()
        self._change(task)
        self._step("import")

    def rename(self, task: CvatTask, name: str) -> None:
        self._change(task, name=name)
        self._step("rename")

    def delete(self, task: CvatTask) -> None:
        self.kept.pop(task.number, None)

    def pictures(self, task: CvatTask) -> list[str]:
        return [path.name for path in self.files[task.number]]

    def jobs(self, task: CvatTask) -> list[CvatJob]:
        updated = self.kept[task.number].updated
        annotator = self.done.get(task.number, "")
        return [CvatJob(0, len(self.files[task.number]) - 1, bool(annotator), annotator, updated)]

    def export(self, task: CvatTask, file: Path) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("annotations.xml", ElementTree.tostring(self.xml[task.number]))

    def _change(self, task: CvatTask, **values: Any) -> None:
        self.kept[task.number] = replace(self.kept[task.number], updated=self.now, **values)

    def draw(self, task: int, picture: int) -> None:
        """Moves the automatic box of a picture, as a person does."""
        self._step("draw")
        (box,) = self.xml[task].findall("image")[picture].findall("box")
        box.set("source", "semi-auto")
        box.set("xtl", str(float(box.get("xtl", "0")) + 1))
        self._change(self.kept[task])

    def complete(self, task: int, annotator: str) -> None:
        self._step("complete")
        self.done[task] = annotator
        self._change(self.kept[task])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(cvat_server, "SdkServer", lambda _url, token: stand_in)
    return stand_in


@pytest.fixture
def cli(server: StandIn, tmp_path: Path) -> Cli:
    return Cli(tmp_path / "fleet", server.url, TOKEN)


def test_pictures_become_tasks_with_automatic_boxes_the_most_suspicious_first(
    server: StandIn, cli: Cli, tmp_path: Path
) -> None:
    order = fill(tmp_path / "fleet", 130)
    done = cli.run("push", "--to", "cvat")
    assert (done["created"], done["predictions"]) == (130, 130)
    assert [task.size for task in server.kept.values()] == [100, 30]
    assert [path.stem for number in server.kept for path in server.files[number]] == order
    (box,) = server.xml[1].findall("image")[0]
    assert (box.tag, box.get("label"), box.get("source")) == ("box", "car", "auto")
    assert server.made[0].labels == ("car", "misfire-checked")
    again = cli.run("push", "--to", "cvat")
    assert (again["created"], again["present"]) == (0, 130)


@pytest.mark.parametrize("step", ["create", "upload", "import", "rename"])
def test_a_killed_push_leaves_no_picture_twice(step: str, server: StandIn, cli: Cli, tmp_path: Path) -> None:
    order = fill(tmp_path / "fleet", 5)
    server.kill_after = step
    with pytest.raises(KilledError):
        cli.run("push", "--to", "cvat")
    assert len(server.kept) == 1
    cli.run("push", "--to", "cvat")
    (task,) = server.kept.values()
    assert task.name.startswith("misfire ") and "uploading" not in task.name
    assert [path.stem for path in server.files[task.number]] == order


def test_what_another_push_left_is_deleted_after_an_hour(server: StandIn, cli: Cli, tmp_path: Path) -> None:
    fill(tmp_path / "fleet", 2)
    old = CvatTask(7, "misfire uploading aaaa", 3, server.now - timedelta(days=900), server.now)
    young = replace(old, number=8, created=datetime.now(timezone.utc))
    server.kept = {7: old, 8: young}
    server.files = {7: [], 8: []}
    cli.run("push", "--to", "cvat")
    assert sorted(server.kept) == [8, 9]


def test_what_people_touched_and_completed_jobs_become_labels(
    server: StandIn, cli: Cli, tmp_path: Path
) -> None:
    fleet = tmp_path / "fleet"
    order = fill(fleet, 3)
    cli.run("push", "--to", "cvat")
    assert cli.run("pull", "--to", "cvat")["recorded"] == 0
    server.draw(1, 0)
    assert cli.run("status", "--to", "cvat")["not_pulled"] == 1
    done = cli.run("pull", "--to", "cvat", "--add-classes")
    assert (done["recorded"], done["problems"]) == (1, [])
    server.complete(1, "zoe")
    done = cli.run("pull", "--to", "cvat")
    assert done["recorded"] == 3
    server.draw(1, 1)
    assert cli.run("pull", "--to", "cvat")["recorded"] == 1
    assert cli.run("pull", "--to", "cvat", "--all")["recorded"] == 0
    with Store.open_folder(fleet) as store:
        ledger = LabelLedger(store)
        records = [(r.annotator, r.version) for sample in order for r in ledger.history(sample)]
        assert Counter(records) == Counter([("", 1), ("zoe", 1), ("zoe", 1), ("zoe", 2), ("zoe", 1)])
        moved = ledger.label_of(order[0])
        assert moved is not None and isinstance(moved.label, BoxesLabel)
        assert moved.source == "cvat" and moved.label.boxes[0].x0 == 2


def test_a_project_that_lacks_labels_gets_them_on_demand(server: StandIn, cli: Cli, tmp_path: Path) -> None:
    fill(tmp_path / "fleet", 1)
    server.create_project("misfire", [{"name": "tram"}])
    said = cli.refused("push", "--to", "cvat")
    assert "lacks the labels 'car', 'misfire-checked'; add them with --update-project" in said
    assert cli.run("push", "--to", "cvat", "--update-project")["created"] == 1
    assert server.made[0].labels == ("tram", "car", "misfire-checked")
    server.create_project("misfire", [])
    assert "has 2 projects named 'misfire'" in cli.refused("status", "--to", "cvat")
    assert "has no place for numbers" in cli.refused("push", "--to", "cvat", "--kind", "values")


def test_a_damaged_export_is_told_and_moves_no_cursor(
    server: StandIn, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "fleet", 1)
    cli.run("push", "--to", "cvat")
    server.draw(1, 0)
    with monkeypatch.context() as context:
        context.setattr(server, "export", lambda _task, file: file.write_bytes(b"PK\x03\x04 cut off"))
        said = cli.refused("pull", "--to", "cvat")
        assert said.startswith("CVAT at https://cvat.example.org: its export of task 1: ")
        assert str(tmp_path) not in said
    assert cli.run("pull", "--to", "cvat", "--add-classes")["recorded"] == 1


def test_the_command_names_the_extra_if_the_sdk_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "fleet", 1)
    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    said = Cli(tmp_path / "fleet", "https://cvat.example.org", TOKEN).refused("push", "--to", "cvat")
    assert "pip install 'misfire[cvat]'" in said


def test_the_sdk_has_what_is_called() -> None:
    """Only names and parameters: whether a server likes the calls, this cannot tell."""
    sdk = installed_sdk()
    from cvat_sdk.core.proxies.jobs import Job
    from cvat_sdk.core.proxies.projects import Project, ProjectsRepo
    from cvat_sdk.core.proxies.tasks import Task, TasksRepo

    assert importlib.metadata.version("cvat-sdk") >= "2"
    assert "access_token" in inspect.signature(sdk.make_client).parameters
    for owner, names in (
        (ProjectsRepo, ("list", "create", "retrieve")),
        (TasksRepo, ("create", "retrieve", "remove_by_ids")),
        (Project, ("get_tasks", "get_labels", "update")),
        (
            Task,
            ("upload_data", "import_annotations", "export_dataset", "get_frames_info", "get_jobs", "update"),
        ),
        (Job, ("get_meta",)),
    ):
        for name in names:
            assert callable(getattr(owner, name)), (owner, name)
    assert "params" in inspect.signature(Task.upload_data).parameters
    assert "include_images" in inspect.signature(Task.export_dataset).parameters


def test_the_sdks_errors_become_one_sentence_without_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = installed_sdk()
    from cvat_sdk.exceptions import ApiException

    def refuse(*_: object, **__: object) -> None:
        raise ApiException(status=401, reason=f"Invalid {TOKEN}\nand more")

    monkeypatch.setattr(sdk, "make_client", refuse)
    with pytest.raises(LabelToolError) as told:
        cvat_server.SdkServer("https://cvat.example.org", token=TOKEN)
    assert str(told.value) == "CVAT at https://cvat.example.org: answered 401 Invalid [token] and more"
