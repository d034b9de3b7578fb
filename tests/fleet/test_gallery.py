"""The gallery's answers: filters, orders, cursors, folding, similarity, what people collect, addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from tests.fleet.consoles import OPEN
from tests.fleet.stores import at, sample

from misfire_fleet.console.app import create_app
from misfire_fleet.gallery.index import GalleryIndex
from misfire_fleet.gallery.losses import Expected, Losses
from misfire_fleet.gallery.query import Condition, Gallery, Question
from misfire_fleet.gallery.why import why
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.labels.verdicts.ledger import NewVerdict, VerdictLedger
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample, SampleFilter
from misfire_runtime.messages import Trigger, pack_embedding

SCENES = np.eye(8, dtype=np.float32)
COUNT = 40


def made(number: int) -> NewSample:
    """Five near-duplicates of each of eight scenes, with scores, weather and speed."""
    embedding = SCENES[number // 5] + 0.01 * (number % 5)
    box = {"class": "car", "score": 0.9, "p": round(number / COUNT, 3), "box": [10, 10, 200, 100]}
    return sample(
        number,
        vehicle=f"car-{number % 4}",
        bundle="street@1.0.0",
        captured_at=at(number),
        scores={"expected_errors": float((7 * number) % COUNT) / 10, "entropy": number / 10},
        percentiles={"expected_errors": float((7 * number) % COUNT) / COUNT},
        context={"weather": "rain" if number % 2 else "fog", "speed": float(number)},
        embedding=pack_embedding(embedding),
        trigger=Trigger(name="random", random=True) if number % 10 == 0 else Trigger(name="unsure"),
        prediction={"boxes": [box] * (number % 3), "size": [640, 480]},
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, list[str]]]:
    """A store that the tests below only read."""
    with Store.open_folder(tmp_path_factory.mktemp("gallery") / "fleet") as store:
        new = [made(number) for number in range(COUNT)]
        store.add_many(new)
        yield store, [each.offer.id for each in new]


@pytest.fixture(scope="module")
def gallery(filled: tuple[Store, list[str]]) -> Iterator[Gallery]:
    store, _ = filled
    index = GalleryIndex(store)
    yield Gallery(store, index, Losses(store))
    index.close()


@pytest.fixture
def client(store: Store) -> Iterator[httpx.Client]:
    with TestClient(create_app(store, access=OPEN), base_url="http://127.0.0.1") as opened:
        yield opened


def every(gallery: Gallery, question: Question, *, limit: int = 7) -> list[str]:
    """All ids, page by page."""
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = gallery.page(question, limit=limit, cursor=cursor)
        found += [each.sample.id for each in page.shown]
        cursor = page.cursor
    return found


FILTERS = [
    SampleFilter(vehicle="car-1"),
    SampleFilter(trigger="unsure", random=False),
    SampleFilter(bundle="street@1.0.0", min_percentile=0.5),
    SampleFilter(captured_from=1_700_000_010.0, captured_to=1_700_000_020.0),
    SampleFilter(vehicle="nobody"),
    SampleFilter(random=True, vehicle="car-0"),
    SampleFilter(labelled=False, verdict="none"),
]


@pytest.mark.parametrize("filters", FILTERS)
def test_the_gallery_shows_what_the_database_would(
    gallery: Gallery, filled: tuple[Store, list[str]], filters: SampleFilter
) -> None:
    store, _ = filled
    wanted = [row.id for row in store.newest(COUNT, filters)]
    assert every(gallery, Question(filters)) == wanted
    assert every(gallery, Question(filters, order="oldest")) == wanted[::-1]
    assert gallery.page(Question(filters), limit=1).matching == store.count(filters)


def test_orders_are_total_and_pages_neither_repeat_nor_miss(
    gallery: Gallery, filled: tuple[Store, list[str]]
) -> None:
    store, _ = filled
    rows = store.newest(COUNT)
    for order, key in (
        ("percentile", lambda row: row.percentile),
        ("loss", lambda row: row.scores["expected_errors"]),
        ("score:entropy", lambda row: row.scores["entropy"]),
        ("score:unknown", lambda row: 0),
    ):
        wanted = sorted(rows, key=lambda row, key=key: (-key(row), -row.seq))  # type: ignore[misc]
        assert every(gallery, Question(order=order)) == [row.id for row in wanted], order


def test_the_context_is_compared_as_text_or_as_a_number(
    gallery: Gallery, filled: tuple[Store, list[str]]
) -> None:
    _, ids = filled
    rain = tuple(map(Condition.parse, ("weather=rain", "speed>=20", "speed < 26")))
    assert every(gallery, Question(context=rain)) == [ids[25], ids[23], ids[21]]
    assert every(gallery, Question(context=(Condition.parse("weather=snow"),))) == []
    assert every(gallery, Question(context=(Condition.parse("nothing=1"),))) == []


def test_near_duplicates_fold_to_the_first_of_the_order(
    gallery: Gallery, filled: tuple[Store, list[str]]
) -> None:
    _, ids = filled
    page = gallery.page(Question(fold=True), limit=48)
    assert [each.sample.id for each in page.shown] == [ids[n] for n in range(39, 0, -5)]
    assert {each.folded for each in page.shown} == {4} and page.groups == 8 and page.matching == COUNT
    assert every(gallery, Question(fold=True), limit=3) == [each.sample.id for each in page.shown]
    assert sorted(every(gallery, Question(group=ids[12]))) == sorted(ids[10:15])


def test_what_is_similar_comes_by_similarity_and_says_what_was_compared(
    gallery: Gallery, filled: tuple[Store, list[str]]
) -> None:
    _, ids = filled
    page = gallery.page(Question(similar=ids[0], order="similar"), limit=6)
    assert page.shown[0].sample.id == ids[0] and page.shown[0].similarity == pytest.approx(1, abs=2e-3)
    assert {each.sample.id for each in page.shown[:5]} == set(ids[:5])
    assert page.similar is not None and (page.similar.comparable, page.similar.of) == (COUNT, COUNT)
    assert len(every(gallery, Question(similar=ids[0], order="similar"))) == COUNT


def test_boxes_come_the_most_doubtful_first(gallery: Gallery, filled: tuple[Store, list[str]]) -> None:
    _, ids = filled
    page = gallery.boxes(Question(), limit=5)
    assert page.matching == sum(number % 3 for number in range(COUNT))
    assert [each.sample for each in page.shown] == [ids[1], ids[2], ids[2], ids[4], ids[5]]
    doubts = [each.doubt for each in page.shown]
    assert doubts == sorted(doubts, key=lambda each: -(each or 0))
    assert gallery.boxes(Question(box_class="truck"), limit=5).matching == 0
    after = gallery.boxes(Question(), limit=5, cursor=page.cursor or "")
    assert not {(e.sample, e.number) for e in after.shown} & {(e.sample, e.number) for e in page.shown}


def test_new_samples_verdicts_labels_and_deletions_show_at_once(store: Store) -> None:
    LabelLedger(store).add_classes(["red"], actor="test")
    index = GalleryIndex(store)
    gallery = Gallery(store, index, Losses(store))
    assert gallery.page(Question(), limit=5).matching == 0
    ids = []
    for number in range(4):
        new = sample(number)
        store.add_many([new])
        ids.append(new.offer.id)
        assert gallery.page(Question(), limit=5).shown[0].sample.id == new.offer.id
    ledger = VerdictLedger(store)
    ledger.give(NewVerdict("act-000001", "ann", (ids[1],), "right"))
    ledger.give(NewVerdict("act-000002", "ann", (ids[2],), "wrong"))
    assert every(gallery, Question(SampleFilter(verdict="wrong"))) == [ids[2]]
    assert every(gallery, Question(SampleFilter(verdict="any"))) == [ids[2], ids[1]]
    assert every(gallery, Question(SampleFilter(labelled=True))) == [ids[1]]
    assert every(gallery, Question(SampleFilter(label_class="red"))) == [ids[1]]
    ledger.undo("act-000003", annotator="ann", undoes="act-000001")
    assert every(gallery, Question(SampleFilter(verdict="none"))) == [ids[3], ids[1], ids[0]]
    assert every(gallery, Question(SampleFilter(labelled=True))) == []
    store.deletion.delete(sample=ids[3], reason="test")
    assert every(gallery, Question()) == [ids[2], ids[1], ids[0]]
    index.close()


def test_a_large_store_is_read_in_the_background_the_newest_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("misfire_fleet.gallery.index._AT_ONCE", 10)
    new = [made(number) for number in range(35)]
    store.add_many(new)
    index = GalleryIndex(store)
    first = index.view()
    assert len(first) == 10 and not first.complete
    assert index._builder is not None
    index._builder.join(20)
    whole = index.view()
    assert whole.complete and whole.seq.tolist() == sorted(row.seq for row in store.newest(50))
    index.close()


def test_vectors_are_kept_on_the_disk_and_overwritten_when_their_sample_is_deleted(
    store: Store, tmp_path: Path
) -> None:
    new = [made(number) for number in range(6)]
    store.add_many(new)
    for _ in range(2):  # the second time, they are read from the files
        index = GalleryIndex(store, folder=tmp_path / "vectors")
        view = index.view()
        assert sorted(view.columns["slot"].tolist()) == list(range(6))
        index.close()
    index = GalleryIndex(store, folder=tmp_path / "vectors")
    index.view()
    second = GalleryIndex(store, folder=tmp_path / "vectors")  # another process: in memory, the same answer
    assert len(second.view()) == 6
    store.deletion.delete(sample=new[2].offer.id, reason="test")
    assert len(index.view()) == 5
    index.close()
    second.close()
    rows = np.fromfile(tmp_path / "vectors" / "8.f16", "<f2").reshape(-1, 8)
    assert not rows[2].any() and rows[:6].any(1).sum() == 5


def test_damaged_rows_and_hostile_names_leave_the_gallery_up(store: Store) -> None:
    from sqlalchemy import update

    from misfire_fleet.store.schema import samples

    context: dict[str, Any] = {f"key-{n}": "x" * 200 for n in range(60)}
    store.add_many([sample(1, context=context), sample(2, context={"<script>": "\u202e"}), sample(3)])
    with store.database.write() as connection:
        connection.execute(update(samples).where(samples.c.seq == 3).values(offer='{"scores": [1], "conte'))
    index = GalleryIndex(store)
    page = Gallery(store, index, Losses(store)).page(Question(order="score:entropy"), limit=9)
    assert len(page.shown) == 3 and [bool(e.sample.unreadable) for e in page.shown] == [False, False, True]
    index.close()


@pytest.mark.parametrize(
    ("context", "trigger", "expected", "sentence"),
    [
        (
            {"temporal": "a truck seen for 9 frames vanished"},
            Trigger(name="temporal", reason="temporal 1 in the top 0.02 of recent frames"),
            [Expected("expected_errors", 1.4, "errors")],
            "1.4 errors expected: a truck seen for 9 frames vanished",
        ),
        (
            {},
            Trigger(name="rate", reason="learning_loss_pp 2.13 in the top 0.02 of recent frames"),
            [Expected("learning_loss_pp", 0.42, "loss")],
            "a loss of 0.42 expected: learning loss pp of 2.13 is among the highest 2 % of recent frames",
        ),
        ({}, Trigger(name="rain", reason="weather = rain"), [], "weather = rain"),
        ({}, Trigger(name="unsure"), [], "entropy is higher than in 97 % of the calibration's frames"),
        (
            {},
            Trigger(name="random", random=True, rate=0.01),
            [Expected("expected_errors", 1.4, "errors")],
            "drawn at random (1 % of all frames), as an unbiased sample of what the vehicle sees",
        ),
    ],
)
def test_one_sentence_says_why_a_sample_was_sent(
    store: Store, context: dict[str, Any], trigger: Trigger, expected: list[Expected], sentence: str
) -> None:
    new = sample(1, context=context, trigger=trigger)
    store.add_many([new])
    assert why(store.get(new.offer.id), expected) == sentence


def test_pins_selections_and_views_are_kept_and_go_with_their_samples(
    client: httpx.Client, store: Store
) -> None:
    new = [sample(number) for number in range(5)]
    store.add_many(new)
    ids = [each.offer.id for each in new]
    assert client.post("/api/pins", json={"samples": ids[:2], "pinned": True}).json() == {
        "changed": sorted(ids[:2])
    }
    assert client.post("/api/pins", json={"samples": ids[:1], "pinned": False}).json() == {"changed": ids[:1]}
    path = "/api/selections/night cars"
    assert client.post(path, json={"add": ids[:3]}).json()["count"] == 3
    assert client.post(path, json={"add": ids[2:4], "remove": ids[:1]}).json()["count"] == 3
    shown = client.get("/api/samples?selection=night cars&pinned=yes").json()
    assert [each["id"] for each in shown["samples"]] == [ids[1]]
    assert store.count(SampleFilter(selection="night cars")) == 3
    done = client.post("/api/samples/delete", json={"samples": ids[1:2], "reason": "people"}).json()
    assert (done["deleted"], done["samples"]) == (1, ids[1:2])
    assert client.get("/api/samples").json()["matching"] == 4
    assert store.count(SampleFilter(selection="night cars")) == 2
    assert store.deletion.audit()[0][2:] == ("delete", {"reason": "people", "deleted": 1, "bytes": 18})
    refused = client.post(f"{path}/snapshot", json={"name": "night"})
    assert refused.status_code == 422 and "no labelled sample" in refused.json()["detail"]
    label = {"kind": "class", "name": "green"}
    for each in ids[2:4]:
        body = {"act": f"act-{each[:8]}", "annotator": "ann", "samples": [each], "verdict": "wrong"}
        body |= {"label": label, "add_classes": True, "blind": False}
        assert client.post("/api/verdicts", json=body).status_code == 201
    made = client.post(f"{path}/snapshot", json={"name": "night", "holdout": 0, "test": 0}).json()
    assert (made["samples"], made["left_out"]) == (2, 0)
    assert "night" in client.get("/datasets").text and "green" in client.get("/datasets?name=night").text
    manifest = client.get("/api/snapshots/night/manifest")
    assert {each["id"] for each in manifest.json()["members"]} == set(ids[2:4])
    assert client.get("/api/snapshots/night").json()["counts"]["train"] == 2
    assert client.get("/api/snapshots/night/fiftyone").content[:2] == b"PK"
    assert client.get("/api/snapshots/none/manifest").status_code == 404
    saved = client.put("/api/views/mine", json={"query": "order=loss&vehicle=car-1", "shared": True})
    assert saved.status_code == 204
    assert client.get("/api/views").json()[0]["query"] == "order=loss&vehicle=car-1"
    assert 'href="/uploads?order=loss&amp;vehicle=car-1"' in client.get("/uploads").text
    assert client.request("DELETE", "/api/views/mine", json={}).status_code == 204
    assert client.request("DELETE", path, json={}).status_code == 204
    assert client.request("DELETE", path, json={}).status_code == 404


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("order=best", "order"),
        ("order=" + "9" * 100, "order"),
        ("context=rain", "KEY=VALUE"),
        ("context=speed>fast", "number"),
        ("similar=zz", "similar"),
        ("similar=" + "0" * 64, "not in the store"),
        ("group=" + "f" * 64, "not in the store"),
        ("cursor=zz", "cursor"),
        ("cursor=1_2_3", "cursor"),
        ("pinned=maybe", "pinned"),
        ("show=list", "show"),
        ("ids=../../etc/passwd", "ids"),
        ("percentile=" + "9" * 401, "percentile"),
        ("selection=%00", "selection"),
    ],
)
def test_an_address_that_cannot_be_read_is_named(client: httpx.Client, address: str, word: str) -> None:
    for path in ("/uploads", "/api/samples", "/api/map"):
        answer = client.get(f"{path}?{address}")
        assert answer.status_code == 422 or (path == "/api/map" and word in ("cursor", "show")), path
        assert word in answer.text or path == "/api/map"


def test_text_of_vehicles_and_people_is_text_everywhere(client: httpx.Client, store: Store) -> None:
    evil = '"><script>alert(1)</script>'
    new = sample(1, vehicle="car-1", context={evil[:60]: evil, "temporal": evil}, trigger=Trigger(name=evil))
    store.add_many([new])
    paths = ["/uploads", "/uploads?show=map", f"/samples/{new.offer.id}", "/datasets"]
    paths += [f"/uploads?{key}={evil}" for key in ("vehicle", "selection", "box", "snapshot")]
    paths += [f"/uploads?context=a={evil}", f"/samples/{new.offer.id}/neighbours"]
    for path in paths:
        assert "<script>alert" not in client.get(path).text, path
    assert client.put(f"/api/views/{evil}", json={"query": "", "shared": False}).status_code in (404, 422)
    view = client.put("/api/views/evil", json={"query": 'a="><script>alert(1)</script>'})
    assert view.status_code == 204 and "<script>alert" not in client.get("/uploads").text


def test_the_map_has_a_point_for_each_embedding(client: httpx.Client, store: Store) -> None:
    store.add_many([made(number) for number in range(20)])
    data = client.get("/api/map?vehicle=car-1").content
    size = int.from_bytes(data[:4], "little")
    head = json.loads(data[4 : 4 + size])
    assert (head["count"], head["matching"], head["compared"]) == (5, 5, 5)
    assert head["bundle"] == "street@1.0.0" and 0 < head["explained"] <= 1
    assert len(data) == 4 + size + 5 * (8 + 2 + 2 + 4) and (4 + size) % 8 == 0
    seqs = np.frombuffer(data, "<f8", 5, 4 + size).tolist()
    made_of = client.post("/api/selections/lasso", json={"seqs": [int(seq) for seq in seqs[:3]]}).json()
    assert made_of["count"] == 3
