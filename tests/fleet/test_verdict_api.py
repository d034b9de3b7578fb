"""The console's API of verdicts: what it records, what it refuses, and who may write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count

import httpx
import pytest
from tests.fleet.consoles import add, serving

from misfire_fleet.console.entry.guard import MAX_BODY
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.truth.report import FieldTruth
from misfire_fleet.truth.report import Query as TruthQuery
from misfire_runtime.messages import Trigger

Numbered = Callable[[int], bytes]
_numbers = count()
BOXES = {"boxes": [{"class": "car", "score": 0.9, "box": [10, 10, 60, 50]}], "size": [1280, 720]}


@pytest.fixture
def console(store: Store) -> Iterator[str]:
    LabelLedger(store).add_classes(["car", "green", "red"], actor="test")
    with serving(store, allowed_hosts=["console.example"]) as address:
        yield address


def verdict(sample: str, **fields: object) -> dict[str, object]:
    return {
        "act": f"act-{next(_numbers):08d}",
        "annotator": "Ann",
        "samples": [sample],
        "verdict": "wrong",
        **fields,
    }


def post(console: str, body: object, path: str = "", **options: object) -> httpx.Response:
    return httpx.post(f"{console}/api/verdicts{path}", json=body, **options)  # type: ignore[arg-type]


def test_all_that_the_screen_does_is_json(console: str, store: Store, jpeg: Numbered) -> None:
    ids = sorted(add(store, jpeg(n), trigger=Trigger(name="random", random=True)) for n in range(3))
    page = httpx.get(f"{console}/api/verdicts/queue", params={"by": "Ann", "limit": 2}).json()
    assert [item["sample"] for item in page["items"]] == ids[:2]
    assert (page["left"], page["items"][0]["answer"]) == (3, {"name": "red"})
    rest = httpx.get(f"{console}/api/verdicts/queue", params={"by": "Ann", "cursor": page["cursor"]}).json()
    assert ([item["sample"] for item in rest["items"]], rest["cursor"]) == ([ids[2]], None)
    body = verdict(ids[0], label={"kind": "class", "name": "green"}, took_s=1.2, after="", reveal=True)
    given = post(console, body)
    assert given.status_code == 201
    assert given.json()["samples"] == [ids[0]] and given.json()["labelled"] == 1
    assert given.json()["reveal"]["scores"] == {"entropy": 0.7}
    assert post(console, body).json()["repeated"]
    (act,) = httpx.get(f"{console}/api/verdicts/acts", params={"by": "Ann"}).json()
    assert (act["act"], act["label"]) == (body["act"], {"kind": "class", "name": "green"})
    undone = post(console, {"act": "undo-0001", "annotator": "Ann", "undoes": body["act"]}, "/undo")
    assert undone.status_code == 201
    records = httpx.get(f"{console}/api/verdicts", params={"sample": ids[0]}).json()
    assert [(each["verdict"], each["undoes"]) for each in records] == [("wrong", ""), ("none", body["act"])]
    assert httpx.get(f"{console}/api/verdicts/summary").json()["samples"] == 0
    found = httpx.get(f"{console}/api/verdicts/classes").json()
    assert found == {"fleet": ["car", "green", "red"], "answered": []}
    assert httpx.get(f"{console}/api/verdicts/items/{ids[1]}").json()["kind"] == "class"
    paths = httpx.get(f"{console}/openapi.json").json()["paths"]
    assert {"/api/verdicts", "/api/verdicts/queue", "/api/verdicts/undo"} <= set(paths)


def test_bad_verdicts_are_refused_by_name_and_change_nothing(
    console: str, store: Store, jpeg: Numbered
) -> None:
    one = add(store, jpeg(1))
    boxed = add(store, jpeg(2), prediction=BOXES)

    def box(**sides: object) -> dict[str, object]:
        corners = {"x0": 1, "y0": 1, "x1": 9, "y1": 9, **sides}
        return verdict(boxed, label={"kind": "boxes", "boxes": [{"name": "car", **corners}]})

    refused: list[tuple[dict[str, object], int, str]] = [
        (verdict("0" * 64), 404, "deleted, or never stored"),
        (verdict("xyz"), 422, "pattern"),
        (verdict(one, verdict="good"), 422, "right"),
        (verdict(one, annotator=""), 422, "at least 1"),
        (verdict(one, annotator="a\0b"), 422, "a name has"),
        (verdict(one, act="short"), 422, "pattern"),
        (verdict(one, act="../../etc/passwd"), 422, "pattern"),
        (verdict(one, label={"kind": "class", "name": "zebra"}), 422, "'zebra' is not one of"),
        (verdict(one, label={"kind": "class", "name": "red"}), 422, "the vehicle's answer"),
        (verdict(one, label={"kind": "mask", "png": "", "names": {}}), 422, "kind"),
        (verdict(one, samples=[]), 422, "at least 1"),
        (verdict(one, samples=[one] * 201), 422, "at most 200"),
        (verdict(one, took_s=-1), 422, "greater than or equal"),
        (verdict(one, age_s=10**400), 422, "valid number"),
        (verdict(one, unknown=1), 422, "Extra"),
        (box(x1=1281), 422, "leaves the picture of 1280 x 720"),
        (box(x1=1.5), 422, "below 1 pixel"),
        (box(x1=-5), 422, "below 1 pixel"),
        (box(x1=10**401), 422, "valid number"),
    ]
    for body, status, words in refused:
        answer = post(console, body)
        assert (answer.status_code, words in answer.text) == (status, True), (body, answer.text)
    for text in ('{"act": NaN}', json.dumps(box()).replace(": 9", ": NaN"), "[" * 100_000, "{", "1" * 5000):
        answer = httpx.post(
            f"{console}/api/verdicts", content=text, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 422), (text[:40], answer.text)
        assert answer.json()["detail"]
    assert store.count(SampleFilter(verdict="none")) == 2
    assert list(store.blobs.documents("verdicts")) == []


def test_conflicts_have_a_status_of_their_own(console: str, store: Store, jpeg: Numbered) -> None:
    one, other = add(store, jpeg(1)), add(store, jpeg(2))
    body = verdict(one)
    assert post(console, body).status_code == 201
    assert post(console, verdict(one, after="")).status_code == 409
    assert post(console, verdict(other, act=body["act"])).status_code == 409
    undo = {"act": "undo-0002", "annotator": "Bob", "undoes": body["act"]}
    assert post(console, undo, "/undo").status_code == 422


def test_queues_are_asked_for_by_conditions_but_never_by_files(
    console: str, store: Store, jpeg: Numbered
) -> None:
    one = add(store, jpeg(1), vehicle="car-1")
    add(store, jpeg(2), vehicle="car-2")
    address = f"{console}/api/verdicts/queue"
    found = httpx.get(address, params={"by": "Ann", "where": ["vehicle=car-1", f"ids={one}"]}).json()
    assert [item["sample"] for item in found["items"]] == [one]
    for condition in (
        "ids=@/etc/passwd",
        " ids=@x",
        "ids= @/etc/passwd",
        "nothing",
        "verdict=x",
        "random=maybe",
    ):
        answer = httpx.get(address, params={"where": condition})
        assert answer.status_code == 422, condition
        assert "root" not in answer.text
    for wrong in (
        {"order": "x"},
        {"fold": "x"},
        {"second": "nan"},
        {"second": "2"},
        {"cursor": "[9]"},
        {"limit": "0"},
    ):
        assert httpx.get(address, params=wrong).status_code == 422, wrong
    assert httpx.get(f"{console}/verdicts", params={"order": "<script>"}).status_code == 422
    page = httpx.get(f"{console}/verdicts", params={"where": 'vehicle="><script>alert(1)</script>'})
    assert "<script>alert" not in page.text


def test_dealt_frames_are_a_queue_and_nothing_else_is_in_it(
    console: str, store: Store, jpeg: Numbered
) -> None:
    drawn = Trigger(name="random", random=True, rate=0.1)
    ids = sorted(add(store, jpeg(n), trigger=drawn, scores={"entropy": n / 10}) for n in range(8))
    bundle = store.newest(1)[0].bundle
    query = {"by": "Ann", "order": "dealt", "where": f"bundle={bundle}"}
    address = f"{console}/api/verdicts/queue"
    refused = httpx.get(address, params=query)
    assert refused.status_code == 422 and "nothing was dealt" in refused.text
    assert "where=bundle" in httpx.get(address, params={"order": "dealt"}).text
    dealt = FieldTruth(store, TruthQuery(bundle)).deal(3, actor="ann")
    found = httpx.get(address, params=query).json()
    assert [item["sample"] for item in found["items"]] == sorted(dealt) and found["left"] == 3
    assert "scores" not in json.dumps(found) and set(dealt) < set(ids)
    assert post(console, verdict(sorted(dealt)[0])).status_code == 201
    left = httpx.get(address, params=query).json()["items"]
    assert [item["sample"] for item in left] == sorted(dealt)[1:]
    other = {**query, "where": [f"bundle={bundle}", f"ids={next(i for i in ids if i not in dealt)}"]}
    assert httpx.get(address, params=other).json()["items"] == []


def test_only_the_consoles_own_pages_and_programs_write(console: str, store: Store, jpeg: Numbered) -> None:
    one = add(store, jpeg(1))
    own = console.removeprefix("http://")
    refused: list[dict[str, str]] = [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://{own}.evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": console},
    ]
    for headers in refused:
        answer = post(console, verdict(one), headers=headers)
        assert (answer.status_code, "another site" in answer.text) == (403, True), headers
    form = httpx.post(f"{console}/api/verdicts", content="a=b", headers={"Content-Type": "text/plain"})
    assert form.status_code == 415
    large = httpx.post(f"{console}/api/verdicts", content=b" " * (MAX_BODY + 1))
    assert large.status_code == 413
    chunked = httpx.post(f"{console}/api/verdicts", content=iter([b"{}"]))
    assert chunked.status_code == 411
    assert httpx.get(f"{console}/api/verdicts/undo").status_code in (404, 405)
    assert store.count(SampleFilter(verdict="none")) == 1
    for headers in (
        {"Origin": console, "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://console.example"},
        {},
    ):
        assert post(console, verdict(one), headers=headers).status_code == 201, headers


def test_a_verdict_that_came_late_is_dated_by_the_key(console: str, store: Store, jpeg: Numbered) -> None:
    one = add(store, jpeg(1))
    post(console, verdict(one, age_s=3600, label={"kind": "class", "name": "green"}))
    (record,) = httpx.get(f"{console}/api/verdicts", params={"sample": one}).json()
    assert record["recorded_at"] - record["at"] == pytest.approx(3600)
    label = LabelLedger(store).label_of(one)
    assert label is not None and label.label == ClassLabel(name="green")
