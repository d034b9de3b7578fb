"""What leaves the store: every page once, the label that counts, and the vehicles' answers as labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.labels import items as given
from tests.fleet.stores import NOON

from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.labels.answers import answer_of
from misfire_fleet.labels.content import ClassesLabel, ClassLabel, PointsLabel, ValuesLabel
from misfire_fleet.labels.exchange.exporting import export
from misfire_fleet.labels.exchange.importing import Wish, import_labels
from misfire_fleet.labels.formats.base import Answer
from misfire_fleet.labels.formats.registry import format_of
from misfire_fleet.labels.items import PAGE, export_items
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample, SampleFilter
from misfire_runtime.messages import Clock
from misfire_runtime.testing import make_offer


def uploads(store: Store, count: int, **offer: Any) -> list[str]:
    made = []
    for number in range(count):
        data = b"picture %d" % number
        values = {
            "vehicle": f"car-{number % 5}",
            "captured_at": Clock(
                wall=NOON + 86_400 * (number // 5), monotonic=0, boot_id=f"boot-{number // 5}"
            ),
        }
        made.append(NewSample(make_offer(data, **(values | offer)), data, 640, 480, "collector-1"))
    store.add_many(made)
    return [each.offer.id for each in made]


def label(store: Store, labels: dict[str, str], *, annotator: str = "ann") -> None:
    new = [NewLabel(key, ClassLabel(name=name), "file", annotator) for key, name in labels.items()]
    assert LabelLedger(store).add(new, add_classes=True).written


def test_every_page_leaves_once_with_its_label(anywhere: Store) -> None:
    ids = uploads(anywhere, 2 * PAGE + 7)
    label(anywhere, {key: f"c{n % 3}" for n, key in enumerate(ids[: PAGE + 20])})
    items = list(export_items(anywhere))
    assert [item.sample for item in items] == sorted(ids)
    found = {item.sample: item.label for item in items if item.label is not None}
    assert found == {key: ClassLabel(name=f"c{n % 3}") for n, key in enumerate(ids[: PAGE + 20])}
    assert items[0].read() == anywhere.read_blob(items[0].sample)
    some = list(export_items(anywhere, SampleFilter(vehicle="car-3", labelled=True), pictures=False))
    assert {item.vehicle for item in some} == {"car-3"} and len(some) == (PAGE + 20) // 5


def test_a_label_that_is_recorded_meanwhile_waits_for_the_next_export(anywhere: Store) -> None:
    ids = uploads(anywhere, 2)
    label(anywhere, {ids[0]: "old"})
    up_to = LabelLedger(anywhere).last_recorded()
    label(anywhere, {ids[0]: "new", ids[1]: "new"})
    found = {item.sample: item.label for item in export_items(anywhere, up_to=up_to)}
    assert found == {ids[0]: ClassLabel(name="old"), ids[1]: None}
    assert {item.label for item in export_items(anywhere)} == {ClassLabel(name="new")}


def test_a_snapshot_leaves_with_its_sides_and_the_labels_it_had(anywhere: Store) -> None:
    ids = uploads(anywhere, 60)
    label(anywhere, dict.fromkeys(ids, "then"))
    plan = Plan(shares=Shares(holdout=0.2, test=0.2))
    made = Snapshots(anywhere).create("street-1", SampleFilter(labelled=True), plan=plan, actor="ann")
    label(anywhere, dict.fromkeys(ids, "later"))
    items = list(export_items(anywhere, SampleFilter(snapshot="street-1")))
    assert {item.label for item in items} == {ClassLabel(name="then")}
    sides = made.manifest.counts()
    assert Counter(item.split for item in items) == {
        "train": sides["train"],
        "val": sides["holdout"],
        "test": sides["test"],
    }


def test_labels_are_recorded_in_either_database(anywhere: Store, tmp_path: Path) -> None:
    ids = uploads(anywhere, 5)
    file = tmp_path / "labels.csv"
    file.write_text("id;label\n" + "".join(f"{key}.jpg;Fußgänger\n" for key in ids), encoding="utf-8-sig")
    found = import_labels(anywhere, file, wish=Wish(add_classes=True), actor="ann")
    assert (found.added.recorded, found.ok) == (5, True)
    assert {item.label for item in export_items(anywhere)} == {ClassLabel(name="Fußgänger")}


def answered(store: Store, prediction: dict[str, Any]) -> Answer | None:
    data = repr(prediction).encode()
    new = NewSample(make_offer(data, prediction=prediction), data, 640, 480, "collector-1")
    store.add_many([new])
    return answer_of(store.get(new.offer.id))


def test_answers_of_every_task_become_labels(store: Store) -> None:
    assert answered(store, {"class": "green", "confidence": 0.9}) == Answer(ClassLabel(name="green"), (0.9,))
    assert answered(store, {"labels": {"fog": 0.9, "rain": 0.6}}) == Answer(
        ClassesLabel(names=("fog", "rain")), (0.9, 0.6)
    )
    assert answered(store, {"values": [0.5, -1]}) == Answer(ValuesLabel(values=(0.5, -1)))
    found = answered(store, {"points": [[0.5, 0.25, 0.8], [None, None, 0.1]], "size": [320, 240]})
    assert found is not None and isinstance(found.label, PointsLabel)
    assert [(p.x, p.y, p.visible) for p in found.label.points] == [(320, 120, 2), (0, 0, 0)]
    # The places of boxes are those of the picture that the vehicle saw, twice as small as the stored one.
    boxes = [
        {"class": "car", "score": 0.7, "p": 0.4, "box": [10, 20, 30, 40]},
        {"class": "bus", "box": [0, 0, 5, 5]},
    ]
    found = answered(store, {"boxes": boxes, "more": 3, "size": [320, 240]})
    assert found == Answer(
        given.boxes(("car", 20, 40, 60, 80), ("bus", 0, 0, 10, 10)), (0.7, None), (0.4, None), more=3
    )


@pytest.mark.parametrize(
    "prediction",
    [
        {},
        {"shares": {"road": 0.5}},
        {"class": "x" * 201},
        {"points": [[1]]},
        {"points": []},
        {"values": ["a"]},
        {"labels": [1, 2]},
        {"boxes": 3},
        {"not_finite": 4},
    ],
)
def test_an_answer_that_is_no_label_is_none(store: Store, prediction: dict[str, Any]) -> None:
    assert answered(store, prediction) is None


def test_boxes_that_are_none_are_left_out(store: Store) -> None:
    found = answered(
        store, {"boxes": [3, {"box": [1, 2]}, {"box": [5, 5, 1, 1]}, {"class": "a", "box": [1, 2, 3, 4]}]}
    )
    assert found is not None and found.label == given.boxes(("a", 1, 2, 3, 4))


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_splits_are_the_trainers_halves(name: str, tmp_path: Path) -> None:
    from misfire_train.data import load_dataset

    frames = list(given.carla(30))
    items = [
        given.item(f.read(), f.label, size=(640, 380), split=("train", "val", "test")[n % 3])
        for n, f in enumerate(frames)
    ]
    format_of(name).write(iter(items), tmp_path, given.plan(classes=()))
    reader = {"coco": "coco-boxes"}.get(name, name)
    dataset = load_dataset(f"{reader}:{tmp_path}")
    of_split = {split: {i.sample for i in items if i.split == split} for split in ("train", "val", "test")}
    stems = [
        {identity.rpartition("/")[2][:64] for identity in half.ids} for half in (dataset.train, dataset.test)
    ]
    assert of_split["train"] <= stems[0]
    assert of_split["test"] <= stems[1]
    assert len(stems[0]) + len(stems[1]) == 30


def test_one_document_has_all_halves(tmp_path: Path) -> None:
    items = (given.item(f.read(), f.label, split="test") for f in given.carla(3))
    file = tmp_path / "street.json"
    export(items, format_of("coco"), file, plan=given.plan())
    assert len(json.loads(file.read_text())["images"]) == 3
