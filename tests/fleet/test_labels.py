"""Label records: added and never replaced, checked in full, read by the database, and rebuilt."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import func, select
from tests.fleet.stores import again, at, sample, without_tables

from misfire_fleet.labels.content import Box, BoxesLabel, ClassesLabel, ClassLabel, MaskLabel, ValuesLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import Document, FolderBlobs
from misfire_fleet.store.care.check import check, repair
from misfire_fleet.store.care.rebuild import rebuild
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.store.schema import label_names, labels, stale_labels
from misfire_fleet.store.where import parse_where, where_of
from misfire_runtime.errors import ConfigError
from proving_ground.services import Postgres

MORNING = datetime(2026, 11, 1, 8, tzinfo=timezone.utc)


def key(number: int) -> str:
    return sample(number).offer.id


def says(
    number: int, name: str, *, by: str = "ann", source: str = "file", after_h: float | None = None
) -> NewLabel:
    when = None if after_h is None else MORNING + timedelta(hours=after_h)
    return NewLabel(
        key(number), ClassLabel(name=name), source=source, annotator=by, at=when, where=f"x.csv:{number}"
    )


@pytest.fixture
def filled(anywhere: Store) -> Store:
    """A store with samples 0 to 9 of two vehicles, and the classes car and tram."""
    anywhere.add_many([sample(n, vehicle=f"car-{n % 2}", captured_at=at(n)) for n in range(10)])
    LabelLedger(anywhere).add_classes(["car", "tram"], actor="keeper")
    return anywhere


def names(store: Store, filters: SampleFilter | None = None) -> dict[int, str]:
    found = LabelLedger(store).current(filters or SampleFilter())
    numbers = {key(n): n for n in range(10)}
    return {numbers[record.sample]: record.label.name for record in found}  # type: ignore[union-attr]


def rows(store: Store) -> list[tuple[object, ...]]:
    columns = [c for c in labels.c if c.name not in ("seq", "document")]
    with store.database.read() as connection:
        return [tuple(row) for row in connection.execute(select(*columns).order_by(*columns[:4]))]


def test_the_same_again_is_no_new_record_and_a_change_is_the_next_version(filled: Store) -> None:
    ledger = LabelLedger(filled)
    assert ledger.add([says(1, "car"), says(2, "car")]).recorded == 2
    done = ledger.add([says(1, "car"), says(2, "tram"), says(1, "car", by="bob")])
    assert (done.recorded, done.unchanged, done.written) == (2, 1, True)
    assert [(r.version, r.label.name) for r in ledger.history(key(2))] == [(1, "car"), (2, "tram")]  # type: ignore[union-attr]
    assert [(r.annotator, r.version) for r in ledger.history(key(1))] == [("ann", 1), ("bob", 1)]
    assert names(filled) == {1: "car", 2: "tram"}


def test_an_old_file_imported_again_after_a_correction_changes_nothing(filled: Store) -> None:
    ledger = LabelLedger(filled)
    ledger.add([says(1, "car", after_h=1)])
    ledger.add([says(1, "tram", after_h=2)])
    assert ledger.add([says(1, "car", after_h=1)]).unchanged == 1
    assert names(filled) == {1: "tram"}


def test_everything_wrong_is_reported_in_full_and_nothing_is_written(filled: Store) -> None:
    ledger = LabelLedger(filled)
    ledger.add([says(3, "car")])
    before = rows(filled)
    wrong = [says(100 + n, "car") for n in range(700)]
    wrong += [says(1, "bus"), says(2, "bus"), says(4, "Straßenbahn")]
    wrong += [NewLabel(key(3), ValuesLabel(values=(1.0,)), source="file", where="v.csv:9")]
    wrong += [
        says(5, "car"),
        says(5, "tram"),
        NewLabel("../../etc/passwd", ClassLabel(name="car"), source="file"),
    ]
    wrong += [says(6, "a\0b"), says(7, "car")]
    done = ledger.add(wrong)
    assert not done.ok and not done.written
    # What was checked although an invalid label already decided: all of it.
    assert len(done.unknown_samples) == 700
    assert done.unknown_classes == {"Straßenbahn": 1, "bus": 2}
    assert len(done.misfits) == len(done.clashes) == 1 and len(done.invalid) == 2
    assert len(done.problems()) == 700 + 2 + 1 + 1 + 2
    assert all("\n" not in line and len(line) < 300 for line in done.problems())
    assert rows(filled) == before and not unowned(filled)
    json.dumps(done.to_dict())


def test_a_clash_is_found_across_the_groups_of_a_large_file(filled: Store) -> None:
    filled.add_many([sample(n) for n in range(1000, 1600)])
    many = [says(n, "car") for n in range(1000, 1600)] + [says(1000, "tram")]
    done = LabelLedger(filled).add(many)
    assert len(done.clashes) == 1 and not done.written and not rows(filled)


def test_what_is_right_is_recorded_where_that_was_asked_for(filled: Store) -> None:
    done = LabelLedger(filled).add([says(1, "car"), says(99, "car"), says(2, "bus")], skip_wrong=True)
    assert done.written and done.recorded == 1 and not done.ok
    assert names(filled) == {1: "car"} and check(filled).sound


def test_a_dry_run_only_checks(filled: Store) -> None:
    done = LabelLedger(filled).add([says(1, "bus")], add_classes=True, dry_run=True)
    assert (done.recorded, done.new_classes, done.written, done.ok) == (1, ("bus",), False, True)
    assert not rows(filled) and not list(filled.blobs.documents("labels"))
    assert [each.name for each in LabelLedger(filled).classes()] == ["car", "tram"]


def test_new_classes_are_added_with_who_and_when(filled: Store) -> None:
    LabelLedger(filled).add([says(1, "bus"), says(2, "bus")], add_classes=True, actor="mina")
    (bus,) = [each for each in LabelLedger(filled).classes() if each.name == "bus"]
    assert bus.added_by == "mina" and bus.added_at > 1.7e9
    assert filled.deletion.audit(limit=1)[0][1:] == ("mina", "classes", {"names": ["bus"]})


def test_people_come_before_machines_and_the_newest_of_them_counts(filled: Store) -> None:
    ledger = LabelLedger(filled)
    ledger.add([says(1, "car", source="vote", by="", after_h=9), says(2, "car", source="vote", by="")])
    ledger.add([says(1, "tram", source="person", after_h=1)])
    ledger.add([says(3, "car", after_h=5), says(3, "tram", by="bob", after_h=3)])
    assert names(filled) == {1: "tram", 2: "car", 3: "car"}
    assert ledger.label_of(key(1)).source == "person"  # type: ignore[union-attr]
    assert ledger.label_of(key(9)) is None and ledger.label_of("no\0id") is None


def test_a_time_in_the_future_does_not_win_for_ever(filled: Store) -> None:
    ledger = LabelLedger(filled)
    ledger.add([NewLabel(key(1), ClassLabel(name="car"), source="file", at=MORNING.replace(year=2999))])
    ledger.add([says(1, "tram", by="bob")])
    assert names(filled) == {1: "tram"}


def test_conflicts_are_the_newest_contents_that_differ(filled: Store) -> None:
    ledger = LabelLedger(filled)
    ledger.add([says(n, "car", by=by, after_h=1) for n in (1, 2, 3) for by in ("ann", "bob")])
    ledger.add([says(1, "tram", by="bob", after_h=2), says(2, "tram", by="bob", after_h=2)])
    ledger.add([says(2, "tram", by="ann", after_h=3)])
    (only,) = ledger.conflicts(page=1)
    assert only.sample == key(1) and [r.annotator for r in only.records] == ["bob", "ann"]
    assert not list(ledger.conflicts(SampleFilter(vehicle="car-0")))


def test_current_labels_are_filtered_and_paged_by_the_database(filled: Store) -> None:
    ledger = LabelLedger(filled)
    ledger.add([says(n, "car" if n < 6 else "tram") for n in range(9)])
    ledger.add([says(0, "tram")])
    assert names(filled, SampleFilter(vehicle="car-1", label_class="car")) == {1: "car", 3: "car", 5: "car"}
    found = [record.sample for record in ledger.current(page=2)]
    assert found == sorted(found) and len(found) == 9
    assert filled.count(SampleFilter(labelled=False)) == 1 and filled.count(SampleFilter(labelled=True)) == 9
    assert (
        filled.count(SampleFilter(label_class="tram")) == 4 == ledger.count(SampleFilter(label_class="tram"))
    )
    assert filled.count(SampleFilter(label_class="t\0m")) == 0


def test_labels_up_to_a_time_stay_what_they_were(filled: Store) -> None:
    ledger = LabelLedger(filled)
    ledger.add([says(1, "car"), says(2, "car")])
    then = ledger.last_recorded()
    before = [r.model_dump() for r in ledger.current(up_to=then)]
    ledger.add([says(1, "tram"), says(3, "car")])
    assert [r.model_dump() for r in ledger.current(up_to=then)] == before
    assert filled.count() == 10 and ledger.last_recorded() > then


def test_every_kind_of_content_comes_back_as_it_was(filled: Store) -> None:
    contents = [
        ClassesLabel(names=()),
        ClassesLabel(names=("car", "tram")),
        BoxesLabel(boxes=()),
        BoxesLabel(boxes=(Box(name="car", x0=1.5, y0=2, x1=3, y1=4, degrees=30, crowd=True),)),
        ValuesLabel(values=(0.1, -2e-9)),
        MaskLabel(png="iVBOR", names={0: "car", 7: "tram"}),
    ]
    ledger = LabelLedger(filled)
    for number, content in enumerate(contents):
        assert ledger.add([NewLabel(key(number), content, source="cvat")]).ok
    assert [ledger.label_of(key(n)).label for n in range(len(contents))] == contents  # type: ignore[union-attr]


def documents_hold(store: Store, number: int) -> bool:
    held = (store.blobs.document("labels", name) for name in store.blobs.documents("labels"))
    return any(key(number).encode() in data for data in held)


def unowned(store: Store) -> list[str]:
    return store.deletion.labels.unowned()


def test_deleting_a_sample_deletes_its_labels_everywhere(filled: Store) -> None:
    LabelLedger(filled).add([says(1, "car"), says(2, "car"), says(1, "tram", by="bob")])
    filled.deletion.delete(sample=key(1), reason="asked for")
    assert {row[0] for row in rows(filled)} == {key(2)}
    assert not documents_hold(filled, 1) and documents_hold(filled, 2)
    with filled.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(label_names)) == 1
    assert LabelLedger(filled).add([says(1, "car")]).unknown_samples == {key(1): "x.csv:1"}
    assert check(filled, deep=True).sound
    filled.deletion.delete(sample=key(2), reason="asked for")
    assert not list(filled.blobs.documents("labels"))


def test_labels_and_classes_survive_a_rebuild(filled: Store, request: pytest.FixtureRequest) -> None:
    ledger = LabelLedger(filled)
    ledger.add([says(n, "car") for n in range(6)])
    ledger.add([says(n, "tram", by="bob") for n in range(3)])
    filled.deletion.delete(sample=key(5), reason="asked for")
    before, classes, current = rows(filled), ledger.classes(), names(filled)
    if isinstance(filled.blobs, FolderBlobs):
        folder = filled.blobs.root.parent
        filled.close()
        done = rebuild(folder / "fleet.sqlite", folder / "blobs", force=True)
    else:
        database: Postgres = request.getfixturevalue("database")
        without_tables(database)
        done = rebuild(database.url, filled.blobs.url, blob_options=filled.blobs.options)  # type: ignore[attr-defined]
    with again(filled) as store:
        assert (done.labels, done.classes) == (8, 2)
        assert rows(store) == before and names(store) == current
        assert LabelLedger(store).classes() == classes
        assert LabelLedger(store).add([says(1, "tram", by="bob")]).unchanged == 1


def test_check_finds_lost_and_unowned_documents_and_repairs_them(filled: Store) -> None:
    LabelLedger(filled).add([says(1, "car")])
    LabelLedger(filled).add([says(2, "tram")])
    before = rows(filled)
    first, second = sorted(filled.blobs.documents("labels"))
    filled.blobs.drop("labels", first)
    with filled.database.write() as connection:
        of_second = select(labels.c.seq).where(labels.c.document == second)
        connection.execute(label_names.delete().where(label_names.c.label.in_(of_second)))
        connection.execute(labels.delete().where(labels.c.document == second))
    found = check(filled)
    assert found.problems["labels_without_document"] == [first]
    assert found.problems["labels_without_row"] == [second]
    repair(filled, found)
    assert check(filled).sound and rows(filled) == before


def test_an_import_that_was_killed_before_its_commit_leaves_nothing(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = filled.deletion.labels

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # Neither the commit nor the clean-up happens: as after kill -9.
        patched.setattr(labelled, "commit", killed)
        patched.setattr(labelled, "abandon", lambda prefix: None)
        with pytest.raises(KeyboardInterrupt):
            LabelLedger(filled).add([says(1, "car")])
    assert not rows(filled) and len(list(filled.blobs.documents("labels"))) == 1
    assert check(filled).sound, "a running import looks the same"
    monkeypatch.setattr("misfire_fleet.store.labels._ABANDONED_S", -1.0)
    assert LabelLedger(filled).add([says(2, "car")]).written
    assert len(list(filled.blobs.documents("labels"))) == 1
    with filled.database.read() as connection:
        assert not connection.scalar(select(func.count()).select_from(stale_labels))


def test_damaged_documents_do_not_stop_a_repair(filled: Store) -> None:
    name = f"{5:018d}-{'0' * 8}-000000.jsonl"
    lines = b'not json\n{"sample": 5}\n' + b"\xff\xfe\n"
    filled.blobs.keep(Document("labels", name, lines))
    repair(filled, check(filled))
    assert check(filled).problems["labels_without_row"] == [name] and not rows(filled)


def test_a_document_with_a_damaged_line_is_written_again_from_its_rows(filled: Store) -> None:
    LabelLedger(filled).add([says(1, "car"), says(2, "tram")])
    (name,) = filled.blobs.documents("labels")
    whole = filled.blobs.document("labels", name)
    filled.blobs.keep(Document("labels", name, whole[:-20]))
    assert check(filled).sound
    found = check(filled, deep=True)
    assert found.problems["labels_without_document"] == [name]
    repair(filled, found)
    assert filled.blobs.document("labels", name) == whole and check(filled, deep=True).sound


@pytest.mark.parametrize(
    "text",
    [
        "vehicle",
        "colour=red",
        "random=maybe",
        "percentile=2",
        "percentile=nan",
        "from=yesterday",
        "class=",
        "class=a\0",
    ],
)
def test_a_wrong_condition_names_itself(text: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        parse_where([text])


def test_conditions_can_be_written_again() -> None:
    texts = [
        "vehicle=car=7",
        "random=no",
        "from=2026-01-31T12:00:00.25Z",
        "percentile=0.9",
        "class=Fußgänger",
    ]
    filters = parse_where(texts)
    assert filters.vehicle == "car=7" and filters.random is False
    assert parse_where(where_of(filters)) == filters
    with pytest.raises(ConfigError, match="twice"):
        parse_where(["class=a", "class=b"])


def test_imports_and_deletions_at_the_same_time_lose_nothing(filled: Store) -> None:
    """Four annotators import in four threads while samples are deleted."""

    def work(number: int) -> None:
        ledger = LabelLedger(filled)
        for name in ("car", "tram", "car"):
            ledger.add([says(n, name, by=f"ann-{number}") for n in range(10)], skip_wrong=True)

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(work, number) for number in range(4)]
        filled.deletion.delete(vehicle="car-1", reason="asked for")
        for each in done:
            each.result()
    left = {key(n) for n in range(0, 10, 2)}
    found = rows(filled)
    assert {row[0] for row in found} == left
    assert sorted((row[2], row[3]) for row in found if row[0] == key(0)) == [
        (f"ann-{number}", version) for number in range(4) for version in (1, 2, 3)
    ]
    times = [row[-1] for row in found]
    assert len(set(times)) == 12, "each import has a time of its own"
    assert check(filled, deep=True).sound
    assert not any(documents_hold(filled, n) for n in range(1, 10, 2))
