"""Verdicts: recorded whole, never overwritten, taken back one by one, dealt out by the database, compared."""

from __future__ import annotations

import csv
import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select
from tests.fleet.stores import again, at, sample, without_tables
from typer.testing import CliRunner

from misfire_fleet.commands.app import app
from misfire_fleet.errors import SampleGoneError, VerdictConflictError, VerdictRefusedError
from misfire_fleet.labels.content import Box, BoxesLabel, ClassesLabel, ClassLabel, Label, ValuesLabel
from misfire_fleet.labels.items import export_items
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.labels.verdicts.agreement import VERDICTS, compare
from misfire_fleet.labels.verdicts.counting import VerdictCounts, summary
from misfire_fleet.labels.verdicts.ledger import NewVerdict, VerdictLedger
from misfire_fleet.labels.verdicts.queue import Order, Query, count_open, next_page
from misfire_fleet.labels.verdicts.recording import Given
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import FolderBlobs
from misfire_fleet.store.care.check import check, repair
from misfire_fleet.store.care.rebuild import rebuild
from misfire_fleet.store.offers import offer_record, row_of
from misfire_fleet.store.records import NewSample, SampleFilter
from misfire_fleet.store.schema import samples, verdicts
from misfire_fleet.store.where import parse_where, where_of
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Trigger, pack_embedding
from misfire_runtime.testing import make_offer
from proving_ground.services import Postgres

_numbers = count()


def key(number: int) -> str:
    return sample(number).offer.id


def act() -> str:
    return f"act-{next(_numbers):08d}"


def give(
    store: Store, number: int, verdict: str, *, by: str = "ann", others: tuple[int, ...] = (), **more: object
) -> Given:
    ids = (key(number), *map(key, others))
    new = NewVerdict(str(more.pop("act", None) or act()), by, ids, verdict, **more)  # type: ignore[arg-type]
    return VerdictLedger(store).give(new)


def undo(store: Store, given: Given, *, by: str = "ann") -> Given:
    return VerdictLedger(store).undo(act(), annotator=by, undoes=given.act)


def judged(store: Store, **filters: object) -> dict[int, str]:
    """The verdict of each sample, as the filters of all commands see it."""
    numbers = {key(n): n for n in range(12)}
    return {
        numbers[row.id]: verdict
        for verdict in VERDICTS
        for row in store.newest(100, SampleFilter(verdict=verdict, **filters))  # type: ignore[arg-type]
    }


def labelled(store: Store) -> dict[int, Label]:
    numbers = {key(n): n for n in range(12)}
    return {numbers[record.sample]: record.label for record in LabelLedger(store).current()}


@pytest.fixture
def filled(anywhere: Store) -> Store:
    """Samples 0 to 5, to which the vehicle answered red, and 6 to 9, with boxes; two classes are known."""
    anywhere.add_many([sample(n, vehicle=f"car-{n % 2}", captured_at=at(n)) for n in range(6)])
    boxes = {"boxes": [{"class": "car", "score": 0.9, "box": [10, 10, 60, 50]}], "size": [640, 480]}
    anywhere.add_many([sample(n, prediction=boxes, bundle="street@2") for n in range(6, 10)])
    LabelLedger(anywhere).add_classes(["green", "car"], actor="keeper")
    return anywhere


def test_a_right_answer_is_a_label_and_a_corrected_one_is_another(filled: Store) -> None:
    assert give(filled, 0, "right").labelled == 1
    give(filled, 1, "wrong", label=ClassLabel(name="green"))
    assert give(filled, 2, "wrong").labelled == 0
    give(filled, 3, "ignore")
    assert judged(filled) == {0: "right", 1: "wrong", 2: "wrong", 3: "ignore"}
    assert labelled(filled) == {0: ClassLabel(name="red"), 1: ClassLabel(name="green")}
    record = LabelLedger(filled).label_of(key(1))
    assert record is not None and (record.source, record.annotator) == ("person", "ann")


def test_verdicts_are_taken_back_one_by_one_and_nothing_is_overwritten(filled: Store) -> None:
    first = give(filled, 0, "wrong", label=ClassLabel(name="green"))
    second = give(filled, 0, "right", after=first.act)
    assert (judged(filled)[0], labelled(filled)[0]) == ("right", ClassLabel(name="red"))
    undo(filled, second)
    assert (judged(filled)[0], labelled(filled)[0]) == ("wrong", ClassLabel(name="green"))
    undo(filled, first)
    assert (judged(filled), labelled(filled)) == ({}, {})
    with pytest.raises(VerdictConflictError, match="already"):
        undo(filled, first)
    give(filled, 0, "right", after="")
    assert labelled(filled)[0] == ClassLabel(name="red")
    assert [line.verdict for line in VerdictLedger(filled).history(key(0))] == [
        *("wrong", "right", "wrong", "none", "right")
    ]
    with pytest.raises(VerdictRefusedError, match="no verdict"):
        VerdictLedger(filled).undo(act(), annotator="bob", undoes=second.act)


def test_any_of_the_last_verdicts_can_be_taken_back(filled: Store) -> None:
    acts = [give(filled, number, "wrong") for number in range(4)]
    undo(filled, acts[1])
    assert sorted(judged(filled)) == [0, 2, 3]
    listed = VerdictLedger(filled).last_acts("ann")
    assert [each.act for each in listed] == [acts[3].act, acts[2].act, acts[0].act]
    assert VerdictLedger(filled).last_acts("bob") == []


def test_a_new_verdict_replaces_the_label_of_the_old_one(filled: Store) -> None:
    give(filled, 0, "right")
    give(filled, 0, "wrong")
    assert labelled(filled) == {}
    give(filled, 0, "right")
    give(filled, 0, "right")
    assert labelled(filled)[0] == ClassLabel(name="red")


def test_taking_a_correction_back_leaves_the_labels_of_others(filled: Store) -> None:
    by_file = NewLabel(key(0), ClassLabel(name="green"), source="file", annotator="eve")
    assert LabelLedger(filled).add([by_file]).ok
    mine = give(filled, 0, "right")
    assert labelled(filled)[0] == ClassLabel(name="red")
    undo(filled, mine)
    assert labelled(filled)[0] == ClassLabel(name="green")


def test_the_same_act_twice_is_one_verdict(filled: Store) -> None:
    name = act()
    give(filled, 0, "wrong", act=name)
    assert give(filled, 0, "wrong", act=name).repeated
    with pytest.raises(VerdictConflictError, match="another verdict"):
        give(filled, 1, "wrong", act=name)
    assert len(VerdictLedger(filled).history(key(0))) == 1


def test_two_windows_do_not_overwrite_each_other(filled: Store) -> None:
    give(filled, 0, "wrong", after="")
    with pytest.raises(VerdictConflictError, match="'wrong' meanwhile"):
        give(filled, 0, "right", after="")
    give(filled, 0, "right", by="bob", after="")
    assert judged(filled)[0] == "right"


def test_near_duplicates_share_a_verdict_if_the_vehicle_answered_the_same(filled: Store) -> None:
    give(filled, 2, "right")
    filled.deletion.delete(sample=key(3), reason="asked for")
    given = give(filled, 0, "wrong", others=(1, 2, 3, 6), label=ClassLabel(name="green"))
    assert set(given.samples) == {key(0), key(1)}
    assert "by itself" in given.left_out[key(2)] and "deleted" in given.left_out[key(3)]
    assert "something else" in given.left_out[key(6)]
    assert labelled(filled) == {n: ClassLabel(name="green") for n in (0, 1)} | {2: ClassLabel(name="red")}
    undo(filled, given)
    assert judged(filled) == {2: "right"}


def test_boxes_are_labels_of_the_picture_that_was_shown(filled: Store) -> None:
    drawn = BoxesLabel(boxes=(Box(name="car", x0=0, y0=0, x1=640, y1=480),))
    give(filled, 6, "missed", label=drawn, others=(7,))
    assert labelled(filled) == {6: drawn}
    assert judged(filled) == {6: "missed", 7: "missed"}
    assert give(filled, 8, "right").labelled == 0


def test_a_wrong_correction_is_refused_and_nothing_is_recorded(filled: Store) -> None:
    wrong: list[tuple[int, str, Label, str]] = [
        (0, "wrong", ClassLabel(name="zebra"), "'zebra' is not one"),
        (0, "wrong", ClassLabel(name="red"), "is the vehicle's answer"),
        (0, "right", ClassLabel(name="green"), "no correction"),
        (0, "wrong", ClassesLabel(names=("green",)), "of kind classes, but"),
        (0, "wrong", ValuesLabel(values=(1.0,)), "use a label tool"),
        (6, "wrong", BoxesLabel(boxes=(Box(name="car", x0=1, y0=1, x1=641, y1=9),)), "leaves the picture"),
        (6, "wrong", BoxesLabel(boxes=(Box(name="car", x0=1, y0=1, x1=1.5, y1=9),)), "below 1 pixel"),
        (6, "wrong", BoxesLabel(boxes=(Box(name="car", x0=9, y0=9, x1=2, y1=2),)), "below 1 pixel"),
        (6, "wrong", BoxesLabel(boxes=(Box(name="car", x0=1, y0=1, x1=9, y1=9, degrees=3),)), "turned"),
    ]
    for number, verdict, label, words in wrong:
        with pytest.raises(VerdictRefusedError, match=words):
            give(filled, number, verdict, label=label)
    assert judged(filled) == {}
    assert list(filled.blobs.documents("verdicts")) == []
    assert list(filled.blobs.documents("labels")) == []


def test_a_class_is_added_only_if_that_is_asked_for(filled: Store) -> None:
    give(filled, 0, "wrong", label=ClassLabel(name="blue"), add_classes=True)
    assert "blue" in {each.name for each in LabelLedger(filled).classes()}


def test_a_sample_that_is_gone_and_a_name_that_is_none_are_refused(filled: Store) -> None:
    filled.deletion.delete(sample=key(0), reason="asked for")
    with pytest.raises(SampleGoneError):
        give(filled, 0, "right")
    with pytest.raises(SampleGoneError):
        give(filled, 11, "right")
    for name in ("", " ann", "a" * 65, "a\0b", "a\nb", "\ud800"):
        with pytest.raises(VerdictRefusedError, match="a name"):
            give(filled, 1, "right", by=name)


def test_verdicts_go_with_their_sample_and_come_back_after_a_rebuild(
    filled: Store, request: pytest.FixtureRequest
) -> None:
    first = give(filled, 0, "wrong", label=ClassLabel(name="green"), others=(1,))
    undo(filled, give(filled, 2, "right"))
    give(filled, 3, "right")
    filled.deletion.delete(sample=key(0), reason="asked for")
    document = filled.blobs.document("verdicts", f"{first.act}.jsonl")
    assert key(0) not in document.decode() and key(1) in document.decode()
    expected, labels_before = judged(filled), labelled(filled)
    assert check(filled, deep=True).sound
    filled.close()
    if isinstance(filled.blobs, FolderBlobs):
        folder = filled.blobs.root.parent
        rebuilt = rebuild(folder / "fleet.sqlite", folder / "blobs", force=True)
    else:
        postgres: Postgres = request.getfixturevalue("database")
        without_tables(postgres)
        url = filled.database.engine.url.render_as_string(hide_password=False)
        rebuilt = rebuild(url, filled.blobs.url, blob_options=filled.blobs.options)  # type: ignore[attr-defined]
    assert rebuilt.person_verdicts == 4
    with again(filled) as store:
        assert (judged(store), labelled(store)) == (expected, labels_before)


def test_a_lost_document_and_a_lost_row_are_found_and_mended(filled: Store) -> None:
    one, other = give(filled, 0, "wrong"), give(filled, 1, "wrong")
    filled.blobs.drop("verdicts", f"{one.act}.jsonl")
    with filled.database.write() as connection:
        connection.execute(verdicts.delete().where(verdicts.c.act == other.act))
    found = check(filled)
    assert found.problems["verdicts_without_document"] == [f"{one.act}.jsonl"]
    assert found.problems["verdicts_without_row"] == [f"{other.act}.jsonl"]
    repair(filled, found)
    assert check(filled, deep=True).sound
    assert judged(filled) == {0: "wrong", 1: "wrong"}


def test_samples_are_chosen_by_verdict_and_at_an_earlier_time(filled: Store) -> None:
    filters = parse_where(["verdict=wrong"])
    assert where_of(filters) == ["verdict=wrong"]
    with pytest.raises(ConfigError, match="expected one of right, wrong"):
        parse_where(["verdict=bad"])
    give(filled, 0, "wrong", label=ClassLabel(name="green"))
    earlier = LabelLedger(filled).last_recorded()
    give(filled, 1, "wrong", label=ClassLabel(name="green"))
    found = LabelLedger(filled).current(filters, up_to=earlier)
    assert [record.sample for record in found] == [key(0)]
    assert filled.count(parse_where(["verdict=any"])) == 2
    assert filled.count(parse_where(["verdict=none"])) == 8
    assert {item.verdict for item in export_items(filled, filters, pictures=False)} == {"wrong"}


# --- queues


def near(number: int, group: int, **fields: object) -> NewSample:
    """A sample whose embedding is nearly that of its group."""
    rng = np.random.default_rng(group)
    embedding = rng.normal(size=32) + np.random.default_rng([number, 7]).normal(size=32) * 0.01
    return sample(number, embedding=pack_embedding(embedding), **fields)


@pytest.fixture
def queued(anywhere: Store) -> Store:
    """Samples 0 to 3 of the random stream, 4 to 6 alike, 7 to 8 alike, 9 alone; 6 was answered otherwise."""
    drawn = Trigger(name="random", random=True, rate=0.1)
    anywhere.add_many(
        [near(n, n, trigger=drawn, percentiles={"entropy": 0.1 * n}) for n in range(4)]
        + [near(n, 40, percentiles={"entropy": 0.9}) for n in (4, 5)]
        + [near(6, 40, percentiles={"entropy": 0.95}, prediction={"class": "green"})]
        + [near(n, 70, percentiles={"entropy": 0.8}) for n in (7, 8)]
        + [near(9, 90, percentiles={})]
    )
    return anywhere


def dealt(store: Store, order: Order, *, by: str = "ann", limit: int = 3, **more: object) -> list[set[int]]:
    """The groups of a whole queue, page by page, without what an earlier group has, as a page does it."""
    numbers = {key(n): n for n in range(12)}
    query, cursor, found = Query(by, order, **more), "", list[set[int]]()  # type: ignore[arg-type]
    for _page in range(20):
        page = next_page(store, query, cursor=cursor, limit=limit)
        for each in page.candidates:
            group = {numbers[key] for key in (each.sample.id, *each.others)} - set().union(*found)
            found += [group] if numbers[each.sample.id] in group else []
        if not page.cursor:
            return found
        cursor = page.cursor
    raise AssertionError("the queue does not end")


def test_the_random_stream_comes_first_in_an_order_that_scores_do_not_decide(queued: Store) -> None:
    found = [one for group in dealt(queued, "random") for one in group]
    assert found[:4] == sorted(range(4), key=key)
    assert found[4:] == [9, 8, 7, 6, 5, 4]


def test_near_duplicates_are_folded_and_keep_their_place_by_score(queued: Store) -> None:
    assert dealt(queued, "score") == [{6}, {4, 5}, {7, 8}, {3}, {2}, {1}, {0}, {9}]
    assert dealt(queued, "score", fold=False, limit=4)[:3] == [
        {6},
        {max((4, 5), key=key)},
        {min((4, 5), key=key)},
    ]
    assert {frozenset(group) for group in dealt(queued, "cluster", limit=12)[:2]} == {
        frozenset({4, 5}),
        frozenset({7, 8}),
    }


def test_what_was_judged_is_not_dealt_again_and_comes_back_if_it_is_taken_back(queued: Store) -> None:
    given = give(queued, 4, "wrong", others=(5,))
    assert {4, 5} not in dealt(queued, "score")
    assert count_open(queued, Query("ann")) == 8
    undo(queued, given)
    assert {4, 5} in dealt(queued, "score")
    assert dealt(queued, "score", filters=parse_where(["random=yes"])) == [{3}, {2}, {1}, {0}]


def test_another_person_sees_a_share_of_it_and_the_same_share_always(queued: Store) -> None:
    for number in range(10):
        give(queued, number, "wrong")
    assert dealt(queued, "newest", by="bob", second=0.0) == []
    assert len(dealt(queued, "newest", by="bob", second=1.0, fold=False)) == 10
    half = dealt(queued, "newest", by="bob", second=0.5, fold=False)
    assert half == dealt(queued, "newest", by="eve", second=0.5, fold=False)
    chosen = {n for n in range(10) if key(n)[58:] < "800000"}
    for share, number in ((0.0, 0), (0.5, len(chosen)), (1.0, 10)):
        assert count_open(queued, Query("bob", second=share)) == number
    assert {n for group in half for n in group} == chosen


def test_a_cursor_of_another_queue_is_refused(queued: Store) -> None:
    for text in (
        "x",
        "[]",
        "[9]",
        '["a"]',
        "[0,[]]",
        "[true,1]",
        "[0,1,2,3]",
        '[0,"\\u0000"]',
        f"[1,{2**70}]",
        "[" * 299,
    ):
        with pytest.raises(ConfigError, match="cursor"):
            next_page(queued, Query("ann"), cursor=text)


def test_a_queue_of_a_hundred_thousand_is_dealt_by_the_database(anywhere: Store) -> None:
    """Few rows are read: a page of a large store takes about as long as one of a small store."""
    offer = make_offer(b"one of many", embedding=None)
    row = row_of(offer_record(NewSample(offer, b"one of many", 64, 48, "c")), offers="test")
    rng = np.random.default_rng(0)
    rows = [
        row | {"id": rng.bytes(32).hex(), "percentile": float(rng.random()), "random": bool(n % 10 == 0)}
        for n in range(3000)
    ]
    with anywhere.database.write() as connection:
        connection.execute(samples.insert(), [{k: v for k, v in each.items() if k != "seq"} for each in rows])
    for order in ("random", "score", "newest"):
        page = next_page(anywhere, Query("ann", order), limit=10)
        assert len(page.candidates) == 10 or order == "score"
        assert page.cursor
    with anywhere.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(samples)) == 3000


# --- commands


def test_commands_count_verdicts_and_take_them_as_truth(tmp_path: Path) -> None:
    folder, out = tmp_path / "fleet", tmp_path / "scores.csv"
    with Store.open_folder(folder) as store:
        store.add_many([sample(n) for n in range(4)])
    place = ["--fleet-dir", str(folder)]
    assert "no verdicts yet" in CliRunner().invoke(app, ["verdicts", *place]).output
    with Store.open_folder(folder) as store:
        for number, verdict in enumerate(("right", "wrong", "ignore")):
            give(store, number, verdict, took_s=1.5)
        give(store, 0, "right", by="bob")
    text = CliRunner().invoke(app, ["verdicts", *place]).output
    assert "lights@1.0.0: 3 samples, 1 right, 1 wrong, 0 missed, 1 ignore" in text
    assert "ann: 3 judged, 0 shared with near-duplicates, 1.5 s each (median)" in text
    assert "ann and bob: 1 of 1 alike" in text
    done = CliRunner().invoke(app, ["verdicts", "--json", "--bundle", "lights@1.0.0", *place])
    assert json.loads(done.output)["people"][1]["name"] == "bob"
    done = CliRunner().invoke(app, ["scores", *place, "--out", str(out), "--verdicts"])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {row["id"]: float(row["failed"]) for row in rows} == {key(0): 0.0, key(1): 1.0}
    done = CliRunner().invoke(app, ["scores", *place, "--out", str(out), "--where", "verdict=wrong"])
    assert [row["id"] for row in csv.DictReader(out.read_text().splitlines())] == [key(1)]


# --- agreement


def test_two_people_are_compared_on_what_both_looked_at(filled: Store) -> None:
    for number in range(6):
        give(filled, number, "wrong" if number < 3 else "right")
        give(filled, number, "wrong" if number < 2 else "right", by="bob")
    give(filled, 6, "wrong", others=(7,))
    give(filled, 7, "right", by="bob")
    found = summary(filled)
    assert found.bundles["lights@1.0.0"] == {"right": 4, "wrong": 2, "missed": 0, "ignore": 0}
    assert [(each.name, each.verdicts, each.shown) for each in found.people] == [("ann", 8, 7), ("bob", 7, 7)]
    (one,) = found.agreement
    assert (one.bundle, one.people, one.samples, one.agreed) == ("lights@1.0.0", ("ann", "bob"), 6, 5)
    assert one.kappa == pytest.approx((5 / 6 - 1 / 2) / (1 / 2))
    assert one.table["wrong"] == {"right": 1, "wrong": 2, "missed": 0, "ignore": 0}
    assert json.dumps(found.to_dict())
    assert summary(filled, bundle="street@2").agreement == ()


def test_counts_follow_the_store_also_where_rows_went_with_their_samples(filled: Store) -> None:
    counts = VerdictCounts(filled)
    assert counts.summary().samples == 0
    first = give(filled, 0, "wrong")
    give(filled, 1, "right")
    assert counts.summary().to_dict() == summary(filled).to_dict()
    undo(filled, first)
    give(filled, 1, "wrong", by="bob")
    assert counts.summary().bundles == {"lights@1.0.0": {"right": 0, "wrong": 1, "missed": 0, "ignore": 0}}
    assert counts.summary().to_dict() == summary(filled).to_dict()
    filled.deletion.delete(sample=key(1), reason="asked for")
    give(filled, 2, "ignore")
    found = counts.summary()
    assert [(each.name, each.verdicts) for each in found.people] == [("ann", 1)]
    assert found.to_dict() == summary(filled).to_dict()


def test_kappa_is_that_of_the_books_and_says_nothing_where_chance_always_agrees() -> None:
    # The textbook table of Cohen (1960), 45, 15, 25, 15.
    pairs = [("right", "right")] * 45 + [("right", "wrong")] * 15
    pairs += [("wrong", "right")] * 25 + [("wrong", "wrong")] * 15
    found = compare(pairs)
    assert found.kappa == pytest.approx(0.1304, abs=1e-4)
    assert found.kappa_low is not None and found.kappa_low < 0 < found.kappa < (found.kappa_high or 0)
    same = compare([("right", "right")] * 20)
    assert (same.share, same.kappa) == (1.0, None)
    both = compare([("right", "right")] * 10 + [("wrong", "wrong")] * 10)
    assert both.kappa == 1.0 and both.kappa_low is not None and 0.5 < both.kappa_low < 0.8
    assert compare([]).kappa is None


def test_the_interval_of_kappa_holds() -> None:
    rng = np.random.default_rng(1)
    p = np.array([[0.5, 0.06], [0.09, 0.35]])
    rows, columns = p.sum(1), p.sum(0)
    true = (np.trace(p) - rows @ columns) / (1 - rows @ columns)
    names, held = ("right", "wrong"), 0
    for _repetition in range(300):
        cells = rng.multinomial(60, p.ravel())
        pairs = [(names[n // 2], names[n % 2]) for n, times in enumerate(cells) for _ in range(times)]
        found = compare(pairs)
        held += found.kappa_low is not None and found.kappa_low <= true <= (found.kappa_high or 0)
    assert held >= 0.93 * 300
