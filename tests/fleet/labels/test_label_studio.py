"""`misfire labels` against a real Label Studio: no task twice and no label lost, whatever is killed."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fleet.labels import items as given
from tests.fleet.labels import label_tools
from tests.fleet.labels.label_tools import Cli, fill

from misfire_fleet.errors import LabelToolError
from misfire_fleet.labels.content import BoxesLabel, Label, LabelRecord
from misfire_fleet.labels.formats.label_studio.brush_rle import pack, unpack
from misfire_fleet.labels.formats.label_studio.results import numbered, results_of
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.labels.tools.http import Endpoint, Limits
from misfire_fleet.labels.tools.label_studio.api import LabelStudioApi
from misfire_fleet.labels.tools.label_studio.credentials import LegacyToken, PersonalToken
from misfire_fleet.labels.tools.label_studio.images import EmbeddedImages
from misfire_fleet.labels.tools.label_studio.project import find_project, prepare_project
from misfire_fleet.labels.tools.label_studio.tool import LabelStudioProject
from misfire_fleet.labels.tools.pull import pull
from misfire_fleet.labels.tools.selection import most_suspicious
from misfire_fleet.store import Store
from misfire_fleet.store.records import ANY
from proving_ground import label_studio as ground
from proving_ground.label_studio import TOKEN, USER, LabelStudio, label_studio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    with label_studio(tmp_path_factory.mktemp("label-studio")) as running:
        yield running


@pytest.fixture(scope="module")
def second_person(server: LabelStudio) -> int:
    return int(server.call("POST", "/api/users/", {"email": "zoe@example.org", "username": "zoe"})["id"])


@pytest.fixture
def api(server: LabelStudio) -> LabelStudioApi:
    return LabelStudioApi(Endpoint(server.url, name="Label Studio", credentials=LegacyToken(TOKEN)))


@pytest.fixture
def title(request: pytest.FixtureRequest) -> str:
    """A project of its own for each test."""
    return request.node.name[-45:]


def project_of(server: LabelStudio, title: str) -> int:
    listed = server.call("GET", "/api/projects/?page_size=1000")["results"]
    found = [each["id"] for each in listed if each["title"] == title]
    return int(found[0]) if found else 0


def count(server: LabelStudio, title: str) -> int:
    number = project_of(server, title)
    return int(server.call("GET", f"/api/projects/{number}/")["task_number"] or 0) if number else 0


def history(fleet: Path) -> list[LabelRecord]:
    """All label records of a fleet."""
    with Store.open_folder(fleet) as store:
        ledger = LabelLedger(store)
        return [each for sample in most_suspicious(store, ANY) for each in ledger.history(sample.sample)]


def a_box(x: float = 10.0, name: str = "car") -> list[dict[str, Any]]:
    value = {"x": x, "y": 20.0, "width": 30.0, "height": 40.0, "rotation": 0, "rectanglelabels": [name]}
    place = {"from_name": "box", "to_name": "image", "original_width": 64, "original_height": 48}
    return [{"id": "a", "type": "rectanglelabels", "value": value, **place}]


def test_samples_become_tasks_with_answers_the_most_suspicious_first(
    server: LabelStudio, title: str, tmp_path: Path
) -> None:
    order = fill(tmp_path / "fleet", 45)
    cli = Cli(tmp_path / "fleet", server.url, TOKEN, project=title)
    first = cli.run("push")
    assert (first["created"], first["predictions"], first["left_out"]) == (45, 45, {})
    again = cli.run("push")
    assert (again["created"], again["present"], again["predictions"]) == (0, 45, 0)
    project = project_of(server, title)
    tasks = server.tasks(project)
    assert [task["data"]["sample_id"] for task in tasks] == order
    data = tasks[0]["data"]
    assert data["score"] == data["score_msp"] and data["percentile"] == max(
        label_tools.percentile(number) for number in range(45)
    )
    assert (data["reason"], data["context_weather"]) == ("msp is above 0.9", "fog")
    (prediction,) = tasks[0]["predictions"]
    assert prediction["model_version"] == "lights@1.0.0"
    assert prediction["result"][0]["value"]["rectanglelabels"] == ["car"]
    # The picture can be seen by whoever is logged in, and is the one that the vehicle wrote.
    request = urllib.request.Request(server.url + data["image"], headers={"Authorization": f"Token {TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        picture = answer.read()
    with Store.open_folder(tmp_path / "fleet") as store:
        assert picture == store.read_blob(order[0])
    # The tab sorts by number, not by text: 9e-05 comes last.
    (view,) = server.call("GET", f"/api/dm/views/?project={project}")
    page = server.call("GET", f"/api/tasks?view={view['id']}&page_size=100")["tasks"]
    assert [task["data"]["sample_id"] for task in page] == order


def test_a_killed_push_is_taken_up_where_it_ended(server: LabelStudio, title: str, tmp_path: Path) -> None:
    order = fill(tmp_path / "fleet", 120)
    cli = Cli(tmp_path / "fleet", server.url, TOKEN, project=title)
    uploads = server.folder / "media" / "upload"

    def copies() -> int:
        return sum(1 for _ in uploads.glob(f"{project_of(server, title)}/*.png"))

    # In the first upload, after the first import, and in between later ones.
    cli.killed("push", when=lambda: copies() >= 3)
    cli.killed("push", when=lambda: count(server, title) >= 20)
    cli.killed("push", when=lambda: copies() >= 70)
    assert 20 <= count(server, title) < 120
    done = cli.run("push")
    # A request that was under way at the kill may end on the server after it was looked up.
    assert cli.run("push")["created"] == 0
    tasks = server.tasks(project_of(server, title))
    assert Counter(task["data"]["sample_id"] for task in tasks) == Counter(order)
    assert [len(task["predictions"]) for task in tasks] == [1] * 120
    assert done["left_out"] == {}


def test_a_killed_pull_loses_and_repeats_no_label(
    server: LabelStudio, api: LabelStudioApi, title: str, tmp_path: Path
) -> None:
    fleet = tmp_path / "fleet"
    order = fill(fleet, 300)
    project, _ = prepare_project(api, title, kind="boxes", names=["car"], update=False)
    annotated = [
        {
            "data": {"image": "x", "sample_id": sample, "width": 64, "height": 48},
            "annotations": [{"result": a_box(float(place % 50))}],
        }
        for place, sample in enumerate(order)
    ]
    server.call("POST", f"/api/projects/{project.id}/import", annotated)
    cli = Cli(fleet, server.url, TOKEN, project=title)
    with Store.open_folder(fleet) as store:
        ledger = LabelLedger(store)
        for least in (1, 120):
            cli.killed("pull", "--add-classes", when=lambda least=least: ledger.count() >= least)
            assert least <= ledger.count() < 300
    done = cli.run("pull", "--add-classes")
    assert done["problems"] == [] and done["recorded"] > 0
    assert cli.run("pull")["recorded"] == 0
    assert cli.run("pull", "--all")["unchanged"] == 300
    records = history(fleet)
    assert Counter(record.sample for record in records) == Counter(order)
    assert {record.version for record in records} == {1}


def test_labels_of_two_people_are_kept_apart_and_changes_are_versions(
    server: LabelStudio, second_person: int, title: str, tmp_path: Path
) -> None:
    fleet = tmp_path / "fleet"
    order = fill(fleet, 4)
    cli = Cli(fleet, server.url, TOKEN, project=title)
    cli.run("push")
    by_sample = {task["data"]["sample_id"]: task["id"] for task in server.tasks(project_of(server, title))}
    task = by_sample[order[0]]
    mine = server.annotate(task, a_box())
    server.annotate(task, a_box(50.0), completed_by=second_person)
    server.annotate(by_sample[order[1]], [], was_cancelled=True)
    # Nothing to find is a label, and not the same as a task that nobody opened.
    server.annotate(by_sample[order[2]], [])
    done = cli.run("pull", "--add-classes")
    assert (done["recorded"], done["skipped"], done["new_classes"]) == (3, 1, ["car"])
    for x in (11.0, 10.0):
        server.call("PATCH", f"/api/annotations/{mine['id']}/", {"result": a_box(x)})
        assert cli.run("pull")["recorded"] == 1
    assert cli.run("pull")["recorded"] == 0
    with Store.open_folder(fleet) as store:
        ledger = LabelLedger(store)
        records = ledger.history(order[0])
        assert [(r.source, r.annotator, r.version) for r in records] == [
            ("label-studio", USER, 1),
            ("label-studio", "zoe@example.org", 1),
            ("label-studio", USER, 2),
            ("label-studio", USER, 3),
        ]
        # The second change took the first one back: the contents are those of the first version again.
        assert records[0].content_hash == records[3].content_hash != records[2].content_hash
        made = datetime.fromisoformat(mine["created_at"].replace("Z", "+00:00"))
        assert abs((records[0].at - made).total_seconds()) < 5
        assert ledger.history(order[1]) == [] and ledger.history(order[3]) == []
        empty = ledger.label_of(order[2])
        assert empty is not None and empty.label == BoxesLabel(boxes=())


def test_status_tells_what_is_not_pushed_and_not_pulled(
    server: LabelStudio, title: str, tmp_path: Path
) -> None:
    fleet = tmp_path / "fleet"
    fill(fleet, 12)
    cli = Cli(fleet, server.url, TOKEN, project=title)
    assert cli.run("push", "--limit", "5")["created"] == 5
    first, second, *_ = server.tasks(project_of(server, title))
    server.annotate(first["id"], a_box())
    server.annotate(second["id"], [], was_cancelled=True)
    now = cli.run("status")
    assert now["tool"] == {"tasks": 5, "annotated": 1, "annotations": 1, "skipped": 1, "predictions": 5}
    assert (now["not_pushed"], now["pushed"], now["not_pulled"], now["pulled_until"]) == (7, 5, 1, None)
    cli.run("pull", "--add-classes")
    now = cli.run("status")
    # The labelled sample is not asked for again.
    assert (now["not_pushed"], now["pushed"], now["not_pulled"]) == (7, 5, 0)
    assert now["pulled_until"] is not None


def test_a_label_of_an_unknown_class_is_told_until_it_can_be_recorded(
    server: LabelStudio, title: str, tmp_path: Path
) -> None:
    fleet = tmp_path / "fleet"
    order = fill(fleet, 3)
    with Store.open_folder(fleet) as store:
        LabelLedger(store).add_classes(["car"])
    cli = Cli(fleet, server.url, TOKEN, project=title)
    cli.run("push", "--class", "car", "--class", "tram")
    for task, name in zip(server.tasks(project_of(server, title)), ("tram", "car", "car"), strict=True):
        server.annotate(task["id"], a_box(name=name))
    for _ in range(2):
        done = cli.run("pull", code=1)
        assert len(done["problems"]) == 1 and "'tram'" in done["problems"][0]
    assert {record.sample for record in history(fleet)} == set(order[1:])
    assert cli.run("pull", "--add-classes")["recorded"] == 1
    assert {record.sample for record in history(fleet)} == set(order)


def test_two_tasks_of_a_sample_become_one_unless_people_worked_on_both(
    server: LabelStudio, title: str, tmp_path: Path
) -> None:
    order = fill(tmp_path / "fleet", 4)
    cli = Cli(tmp_path / "fleet", server.url, TOKEN, project=title)
    cli.run("push")
    project = project_of(server, title)
    tasks = {task["data"]["sample_id"]: task for task in server.tasks(project)}
    # What two pushes at the same time would leave.
    server.call(
        "POST", f"/api/projects/{project}/import", [{"data": tasks[sample]["data"]} for sample in order]
    )
    server.call(
        "POST",
        "/api/predictions/",
        {"task": tasks[order[0]]["id"], "model_version": "lights@1.0.0", "result": []},
    )
    second = {
        task["data"]["sample_id"]: task["id"]
        for task in server.tasks(project)
        if task["id"] not in {each["id"] for each in tasks.values()}
    }
    server.annotate(second[order[1]], a_box(1.0))
    # Somebody has begun, and not yet submitted.
    server.call("POST", f"/api/tasks/{second[order[3]]}/drafts", {"result": a_box(4.0)})
    server.annotate(tasks[order[2]]["id"], a_box(2.0))
    server.annotate(second[order[2]], a_box(3.0))
    done = cli.run("push")
    assert (done["created"], done["duplicates_removed"], done["duplicates_kept"]) == (0, 4, 1)
    left = [task["id"] for task in server.tasks(project)]
    kept = [tasks[order[0]]["id"], tasks[order[2]]["id"], *(second[each] for each in order[1:])]
    assert left == sorted(kept)
    assert len(server.tasks(project)[0]["predictions"]) == 1
    assert cli.run("pull", "--add-classes")["recorded"] == 3


def test_a_blind_push_tells_nothing_of_what_a_model_thought(
    server: LabelStudio, title: str, tmp_path: Path
) -> None:
    order = fill(tmp_path / "fleet", 5)
    cli = Cli(tmp_path / "fleet", server.url, TOKEN, project=title)
    assert cli.run("push", "--blind")["created"] == 5
    tasks = server.tasks(project_of(server, title))
    assert [task["data"]["sample_id"] for task in tasks] == sorted(order)
    for task in tasks:
        told = {name for name, value in task["data"].items() if value not in ("", None, False)}
        assert task["predictions"] == []
        assert not any(part in name for name in told for part in ("score", "percentile", "reason", "trigger"))


def test_a_second_bundles_answer_joins_the_task_once(server: LabelStudio, title: str, tmp_path: Path) -> None:
    fill(tmp_path / "old", 2)
    fill(tmp_path / "new", 2, bundle="lights@2.0.0")
    for fleet, added in (("old", 2), ("new", 2), ("new", 0)):
        done = Cli(tmp_path / fleet, server.url, TOKEN, project=title).run("push")
        assert done["predictions"] == added
    for task in server.tasks(project_of(server, title)):
        versions = sorted(each["model_version"] for each in task["predictions"])
        assert versions == ["lights@1.0.0", "lights@2.0.0"]


def test_projects_that_are_set_up_otherwise_are_left_alone(
    server: LabelStudio, api: LabelStudioApi, title: str, tmp_path: Path
) -> None:
    fill(tmp_path / "fleet", 1)
    other = '<View><Image name="img" value="$image"/><RectangleLabels name="label" toName="img"/></View>'
    server.call("POST", "/api/projects/", {"title": title, "label_config": other})
    cli = Cli(tmp_path / "fleet", server.url, TOKEN, project=title)
    said = cli.refused("push")
    assert "expected <Image name='image' value='$image'>, found <Image name='img' value='$image'>" in said
    assert "expected <RectangleLabels name='box' toName='image'>, found nothing" in said
    assert count(server, title) == 0
    project = find_project(api, str(project_of(server, title)))
    assert project is not None and project.label_config == other
    # Of the same kind, with fewer classes: told, and added on demand; more classes are no difference.
    title = f"{title[-40:]} two"
    prepare_project(api, title, kind="boxes", names=["tram"], update=False)
    cli = Cli(tmp_path / "fleet", server.url, TOKEN, project=title)
    assert "lacks 'car'; add them with --update-project" in cli.refused("push")
    assert cli.run("push", "--update-project")["created"] == 1
    _, config = prepare_project(api, title, kind="boxes", names=["car"], update=False)
    assert config.names == ("tram", "car")
    with pytest.raises(LabelToolError, match="set up for labels of boxes; these are of class"):
        prepare_project(api, title, kind="class", names=["car"], update=True)


@pytest.mark.parametrize("kind", ["boxes", "class", "classes", "mask", "points", "values"])
def test_every_kind_of_label_comes_back_from_the_server(
    server: LabelStudio, api: LabelStudioApi, title: str, kind: Any, tmp_path: Path
) -> None:
    labels: list[Label] = [label for label, size in given.labels_of(kind) if size == (64, 48)]
    if kind == "boxes":
        labels += [given.TURNED, given.FLAGGED]
    if kind == "values":
        labels = labels[1:]
    names = numbered(kind, 3) if kind in ("points", "values") else given.CLASSES
    project, config = prepare_project(api, title, kind=kind, names=names, update=False)
    tool = LabelStudioProject(api, project, config, images=EmbeddedImages())
    with Store.open_folder(tmp_path) as store:
        store.add_many([label_tools.upload(n, prediction={}) for n in range(len(labels))])
        tool.push(most_suspicious(store, ANY))
        tasks = server.tasks(project.id)
        wanted = {}
        for task, label in zip(tasks, labels, strict=True):
            server.annotate(task["id"], results_of(label, config, size=(64, 48)))
            wanted[task["data"]["sample_id"]] = label
        done = pull(store, tool, add_classes=True)
        assert (done.recorded, done.problems) == (len(labels), [])
        for sample, label in wanted.items():
            record = LabelLedger(store).label_of(sample)
            assert record is not None and given.same(label, record.label, within=1e-3), (label, record.label)
        assert tasks[0]["data"]["image"].startswith("data:image/png;base64,")


def test_an_answer_that_is_accepted_as_it_is_becomes_the_same_label(
    server: LabelStudio, title: str, tmp_path: Path
) -> None:
    order = fill(tmp_path / "fleet", 2)
    cli = Cli(tmp_path / "fleet", server.url, TOKEN, project=title)
    cli.run("push")
    project = project_of(server, title)
    path = f"/api/dm/actions?id=predictions_to_annotations&project={project}"
    server.call("POST", path, {"selectedItems": {"all": True, "excluded": []}})
    assert cli.run("pull", "--add-classes")["recorded"] == 2
    with Store.open_folder(tmp_path / "fleet") as store:
        (item, *_) = most_suspicious(store, ANY)
        record = LabelLedger(store).label_of(order[0])
        assert record is not None and item.answer is not None and record.label == item.answer.label


def test_a_personal_token_is_exchanged_and_renewed(server: LabelStudio, title: str, tmp_path: Path) -> None:
    token = server.personal_token()
    plain = Endpoint(server.url, name="Label Studio")
    credentials = PersonalToken(token, exchange=plain)
    api = LabelStudioApi(Endpoint(server.url, name="Label Studio", credentials=credentials))
    assert api.user() == USER
    # An access token ends after five minutes; this one is worthless now.
    credentials._access = credentials._access[:-4] + "AAAA"
    assert api.user() == USER
    fill(tmp_path / "fleet", 1)
    assert Cli(tmp_path / "fleet", server.url, token, project=title).run("push")["created"] == 1
    wrong = Cli(tmp_path / "fleet", server.url, token[:-4] + "AAAA", project=title).refused("push")
    assert "the token is wrong, has expired, or lacks the rights" in wrong
    assert token[:-4] not in wrong


def test_label_studios_own_library_draws_the_same_masks(server: LabelStudio, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    waves = np.add.outer(np.arange(90), np.arange(80)) % 97 > 40
    masks = [rng.random((7, 5)) > 0.5, np.zeros((3, 70_000), bool), waves]
    given_here = [{"shape": mask.shape, "rle": pack(mask), "pixels": mask.ravel().tolist()} for mask in masks]
    (tmp_path / "masks.json").write_text(json.dumps(given_here))
    program = """
import json, sys
import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
found = []
for each in json.load(open(sys.argv[1])):
    mask = np.array(each["pixels"], bool).reshape(each["shape"])
    drawn = decode_rle(each["rle"]).reshape(*each["shape"], 4)[:, :, 3] > 0
    assert (drawn == mask).all()
    found.append(mask2rle((mask * 255).astype(np.uint8)))
print(json.dumps([[int(byte) for byte in each] for each in found]))
"""
    command = [str(ground.home() / "bin" / "python"), "-c", program, str(tmp_path / "masks.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    for mask, stream in zip(masks, json.loads(done.stdout), strict=True):
        assert (unpack(stream, width=mask.shape[1], height=mask.shape[0]) == mask).all()


class _Proxy(ThreadingHTTPServer):
    """Passes requests on, and loses the answers to the first few of those that match."""

    daemon_threads = True

    def __init__(self, target: str, *, path: str, losses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target, self.path, self.losses = target, path, losses
        self.lost = 0


class _Passing(BaseHTTPRequestHandler):
    server: _Proxy
    protocol_version = "HTTP/1.0"

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        headers = {k: v for k, v in self.headers.items() if k in ("Authorization", "Content-Type")}
        request = urllib.request.Request(
            self.server.target + self.path, data=body, method=self.command, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, data = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, data = error.code, error.read()
        if self.command == "POST" and self.server.path in self.path and self.server.lost < self.server.losses:
            self.server.lost += 1
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _pass  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("path", ["/import", "/api/predictions/"])
def test_an_answer_that_is_lost_makes_nothing_twice(
    server: LabelStudio, path: str, title: str, tmp_path: Path
) -> None:
    fill(tmp_path, 3)
    fill(tmp_path / "second", 3, bundle="lights@2.0.0")
    Cli(tmp_path / "second", server.url, TOKEN, project=title).run("push", "--limit", "2")
    proxy = _Proxy(server.url, path=path, losses=1)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{proxy.server_address[1]}"
        endpoint = Endpoint(
            url, name="Label Studio", credentials=LegacyToken(TOKEN), limits=Limits(pause_s=0.05)
        )
        api = LabelStudioApi(endpoint)
        with Store.open_folder(tmp_path) as store:
            project, config = prepare_project(api, title, kind="boxes", names=["car"], update=False)
            tool = LabelStudioProject(api, project, config, images=EmbeddedImages())
            tool.push(most_suspicious(store, ANY))
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
    assert proxy.lost == 1
    tasks = server.tasks(project_of(server, title))
    assert len(tasks) == len({task["data"]["sample_id"] for task in tasks}) == 3
    versions = [sorted(each["model_version"] for each in task["predictions"]) for task in tasks]
    assert sorted(versions) == [["lights@1.0.0"], *[["lights@1.0.0", "lights@2.0.0"]] * 2]


def test_labels_of_deleted_samples_and_foreign_tasks_do_not_stop_a_pull(
    server: LabelStudio, title: str, tmp_path: Path
) -> None:
    fleet = tmp_path / "fleet"
    order = fill(fleet, 2)
    cli = Cli(fleet, server.url, TOKEN, project=title)
    cli.run("push")
    project = project_of(server, title)
    server.call("POST", f"/api/projects/{project}/import", [{"data": {"image": "https://example.org/1.jpg"}}])
    for task in server.tasks(project):
        server.annotate(task["id"], a_box())
    with Store.open_folder(fleet) as store:
        store.deletion.delete(sample=order[0], reason="asked for", actor="test")
    done = cli.run("pull", "--add-classes")
    assert (done["recorded"], done["deleted"], done["foreign"], done["problems"]) == (1, 1, 1, [])
