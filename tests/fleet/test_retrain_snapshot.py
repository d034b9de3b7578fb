"""`misfire retrain --snapshot`: each side for what it is, and no way to train on a frozen test set."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from typer.testing import CliRunner

from misfire_fleet.datasets.lineage import trace
from misfire_fleet.datasets.manifest import digest
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import (
    Box,
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    MaskLabel,
    Point,
    PointsLabel,
    ValuesLabel,
)
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.retrain.command import retrain_from_store
from misfire_fleet.retrain.snapshot import snapshot_uploads
from misfire_fleet.retrain.targets import target_of
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import Document
from misfire_fleet.store.curated.snapshots import document_of
from misfire_fleet.store.records import ANY, NewSample, SampleFilter
from misfire_fleet.store.schema import labels, snapshot_samples, snapshots
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Clock
from misfire_runtime.preprocess import InputContract, encode_png
from misfire_runtime.testing import make_offer
from misfire_train.data import load_dataset
from misfire_train.fit import train_run
from misfire_train.retraining import Schedule
from misfire_train.runs import Run, load_run, read_splits, run_splits
from misfire_train.tasks import get_task
from misfire_train.train_config import parse_train_config

pytestmark = pytest.mark.slow
COUNT = 60
SPLIT = Plan(shares=Shares(0.2, 0.3), seed=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = parse_train_config(
        {
            "dataset": "digits",
            "model": {"options": {"width": 4}},
            "split": {"field": 0.5},
            "training": {"epochs": 1},
            "head": {"steps": 20, "copies": 1},
        }
    )
    return train_run(config, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def filled(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet folder with 60 labelled pictures of 12 drives, and labels.csv."""
    folder = tmp_path_factory.mktemp("fleet")
    digits = load_dataset("digits")
    field = run_splits(run, digits)["field"]
    lines = ["id,label"]
    with Store.open_folder(folder) as store:
        new, said = [], []
        for i in range(COUNT):
            data = encode_png(field.images[i])
            clock = Clock(wall=1_700_000_000.0 + i, monotonic=5.0, boot_id=f"boot-{i // 5}")
            offer = make_offer(data, vehicle="car", media_type="image/png", captured_at=clock)
            new.append(NewSample(offer, data, 8, 8, "collector-1"))
            name = digits.classes[int(field.targets[i])]
            said.append(NewLabel(offer.id, ClassLabel(name=name), source="file"))
            lines.append(f"{offer.id},{name}")
        store.add_many(new)
        assert LabelLedger(store).add(said, add_classes=True).written
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def fleet(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "fleet"))


@pytest.fixture
def store(fleet: Path) -> Iterator[Store]:
    with Store.open_folder(fleet) as opened:
        yield opened


def sides(store: Store, name: str) -> dict[str, set[str]]:
    members = Snapshots(store).read(name)[0].members
    return {side: {m.id for m in members if m.side == side} for side in ("train", "holdout", "test")}


def again(run: Run, store: Store, out: Path, **options: Any) -> Any:
    return retrain_from_store(
        run, store, dataset=load_dataset("digits"), out=out, schedule=Schedule(epochs=1), **options
    )


def test_each_side_is_used_for_what_it_is_and_the_test_is_not_read(
    run: Run, store: Store, tmp_path: Path
) -> None:
    made = Snapshots(store).create("first", ANY, plan=SPLIT)
    found = sides(store, "first")
    # Not even readable: nothing may depend on the test side.
    store.blobs.delete_many(found["test"])
    outcome = again(run, store, tmp_path / "run2", snapshot="first")
    parts = read_splits(tmp_path / "run2")
    assert set(parts["uploads-train"]) == found["train"]
    assert set(parts["uploads-holdout"]) == found["holdout"]
    assert not found["test"] & {each for part in parts.values() for each in part}
    assert load_run(tmp_path / "run2").record.snapshot == made.sha256
    numbers = outcome.to_dict()
    assert numbers["snapshot"] == "first" and numbers["uploads_used"] == len(
        found["train"] | found["holdout"]
    )
    # A run of a run still names what its ancestors were trained on.
    again(outcome.run, store, tmp_path / "run3", snapshot="first")
    assert set(read_splits(tmp_path / "run3")["earlier-uploads"]) == found["train"] | found["holdout"]


def test_lineage_leads_from_a_sample_to_the_run_and_back(run: Run, store: Store, tmp_path: Path) -> None:
    Snapshots(store).create("first", ANY, plan=SPLIT)
    found = sides(store, "first")
    child = again(run, store, tmp_path / "run2", snapshot="first").run.record.run_id
    (sample, *_), (held, *_), (tested, *_) = (sorted(found[side]) for side in ("train", "holdout", "test"))
    assert child in {each.id for each in trace(store, sample).down if each.kind == "run"}
    assert child in {each.id for each in trace(store, held).down if each.kind == "run"}
    assert "first" in {each.id for each in trace(store, tested).down if each.kind == "snapshot"}
    up = {(each.kind, each.id) for each in trace(store, child).up}
    assert {("snapshot", "first"), ("run", run.record.run_id)} <= up


def test_an_altered_manifest_is_refused(run: Run, store: Store, tmp_path: Path) -> None:
    Snapshots(store).create("first", ANY, plan=SPLIT)
    (name,) = store.blobs.documents("snapshots")
    data = store.blobs.document("snapshots", name)
    store.blobs.keep(Document("snapshots", name, data.replace(b'"side":"test"', b'"side":"train"')))
    with pytest.raises(StoreError, match="altered"):
        again(run, store, tmp_path / "run2", snapshot="first")
    assert not (tmp_path / "run2").exists()


def test_a_frozen_test_set_cannot_be_trained_on_in_any_way(
    run: Run, store: Store, fleet: Path, tmp_path: Path
) -> None:
    Snapshots(store).create("open", ANY, plan=Plan(seed=1, shares=Shares(0.2, 0.0)))
    outcome = again(run, store, tmp_path / "before", snapshot="open")
    frozen = Plan(seed=1, shares=Shares(0.2, 0.3), frozen=True)
    Snapshots(store).create("test", ANY, plan=frozen)
    tested = sides(store, "test")["test"]

    def refused(**options: Any) -> None:
        with pytest.raises(StoreError, match="frozen test set"):
            again(options.pop("run", run), store, tmp_path / "run2", **options)
        assert not (tmp_path / "run2").exists()

    # By an older snapshot, by a CSV, and by a run that was trained on it before it was frozen.
    refused(snapshot="open")
    refused(labels=fleet / "labels.csv")
    refused(run=outcome.run, snapshot="test")
    # By another picture of a drive that is in the test set.
    data = encode_png(np.full((8, 8, 3), 7, np.uint8))
    when = store.get(sorted(tested)[0]).offer.captured_at
    offer = make_offer(data, vehicle="car", media_type="image/png", captured_at=when)
    store.add_many([NewSample(offer, data, 8, 8, "c")])
    (fleet / "one.csv").write_text(f"id,label\n{offer.id},3\n")
    refused(labels=fleet / "one.csv")
    # By a manifest that was edited, with hashes that match it in the database.
    manifest = Snapshots(store).create("good", ANY, plan=SPLIT).manifest
    forged = manifest.to_bytes().replace(b'"side":"test"', b'"side":"train"')
    with store.database.write() as connection:
        of_good = snapshots.update().where(snapshots.c.name == "good")
        connection.execute(of_good.values(sha256=digest(forged)))
        of_test = snapshot_samples.update().where(snapshot_samples.c.side == "test")
        connection.execute(of_test.where(snapshot_samples.c.snapshot == "good").values(side="train"))
    store.blobs.keep(Document("snapshots", document_of("good", digest(forged)), forged))
    refused(snapshot="good")


def test_the_bytes_of_a_test_sample_under_another_name_are_refused(
    run: Run, store: Store, tmp_path: Path
) -> None:
    Snapshots(store).create("test", ANY, plan=Plan(seed=1, shares=Shares(0.2, 0.3), frozen=True))
    found = sides(store, "test")
    trained, tested = sorted(found["train"])[0], sorted(found["test"])[0]
    data = store.read_blob(tested)
    store.blobs.delete_many([trained])
    store.blobs.publish([store.blobs.stage(trained, data)])
    with pytest.raises(StoreError, match="its bytes were altered"):
        again(run, store, tmp_path / "run2", snapshot="test")


def test_an_altered_label_is_refused_and_a_deleted_sample_is_left_out(
    run: Run, store: Store, tmp_path: Path
) -> None:
    Snapshots(store).create("first", ANY, plan=SPLIT)
    found = sides(store, "first")
    gone, changed, *_ = sorted(found["train"])
    store.deletion.delete(sample=gone, reason="asked for")
    uploads = snapshot_uploads(store, "first", run=run)
    assert uploads.deleted == 1 and set(uploads.train.examples.ids) == found["train"] - {gone}
    with store.database.write() as connection:
        content = labels.update().where(labels.c.sample == changed)
        connection.execute(content.values(content='{"kind":"class","name":"none of them"}'))
    with pytest.raises(StoreError, match="its content was altered"):
        snapshot_uploads(store, "first", run=run)


def test_one_source_of_labels_is_needed(run: Run, store: Store, fleet: Path, tmp_path: Path) -> None:
    for options in ({}, {"snapshot": "a", "labels": fleet / "labels.csv"}):
        with pytest.raises(ConfigError, match="--snapshot NAME, or --labels"):
            again(run, store, tmp_path / "run2", **options)


def test_the_command(run: Run, fleet: Path, tmp_path: Path) -> None:
    make = ["fleet", "snapshot", "first", "--test", "0.3", "--seed", "1", "--fleet-dir", str(fleet)]
    assert CliRunner().invoke(app, make).exit_code == 0
    words = ["retrain", str(run.path), "--snapshot", "first", "--uploads", str(fleet), "--epochs", "1"]
    bundle = ["--bundle-out", str(tmp_path / "bundle"), "--version", "3.0.0"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run2"), *bundle, "--json"])
    assert done.exit_code == 0, done.output
    numbers = json.loads(done.stdout.splitlines()[-1])
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["lineage"]["snapshot_id"] == numbers["snapshot_sha256"]
    walked = ["fleet", "lineage", "retrained-digits@3.0.0", "--fleet-dir", str(fleet), "--json"]
    found = json.loads(CliRunner().invoke(app, walked).stdout)
    kinds = [each["kind"] for each in found["up"]]
    assert kinds[0] == "run" and "snapshot" in kinds and "sample" in kinds


def as_run(task: str, classes: tuple[str, ...], contract: InputContract) -> Run:
    record = SimpleNamespace(classes=classes)
    return cast(Run, SimpleNamespace(task=get_task(task), record=record, contract=contract))


def png(mask: np.ndarray[Any, Any]) -> str:
    import cv2

    return base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode()


CLASSES = ("car", "Fußgänger")
CONTRACT = InputContract(width=32, height=16)


@pytest.mark.parametrize(
    ("task", "label", "expected"),
    [
        ("classification", ClassLabel(name="Fußgänger"), 1),
        ("multi-label", ClassesLabel(names=("car",)), [1, 0]),
        ("multi-label", ClassesLabel(names=()), [0, 0]),
        ("regression", ValuesLabel(values=(0.5, -2.0)), [0.5, -2.0]),
        (
            "keypoints",
            PointsLabel(points=(Point(x=8, y=8), Point(x=0, y=4, visible=1))),
            [[4, 4, 2], [0, 2, 1]],
        ),
        ("detection", BoxesLabel(boxes=()), np.zeros((0, 6))),
        (
            "detection",
            BoxesLabel(
                boxes=(
                    Box(name="Fußgänger", x0=4, y0=6, x1=24, y1=26),
                    Box(name="car", x0=10, y0=14, x1=30, y1=18, degrees=90, crowd=True),
                )
            ),
            [[2, 3, 12, 13, 1, 0], [9, 3, 11, 13, 0, 1]],
        ),
    ],
)
def test_every_kind_of_label_becomes_the_target_of_its_task(task: str, label: Label, expected: Any) -> None:
    found = target_of(label, run=as_run(task, CLASSES, CONTRACT), size=(64, 32), where="s")
    assert np.allclose(found, expected, atol=1e-4)


def test_a_mask_becomes_class_numbers_whatever_its_own_numbers_are() -> None:
    mask = np.zeros((32, 64), np.uint8)
    mask[:, 32:], mask[:16, :8] = 9, 77
    label = MaskLabel(png=png(mask), names={0: "Fußgänger", 9: "car"})
    run = as_run("segmentation", CLASSES, CONTRACT)
    found = target_of(label, run=run, size=(64, 32), where="s")
    assert found.shape == (16, 32) and found.dtype == np.uint8
    assert (found[:, 16:] == 0).all() and (found[8:, :16] == 1).all() and (found[:8, :4] == 255).all()
    with pytest.raises(ConfigError, match="the mask is 64x32, its picture 65x32"):
        target_of(label, run=run, size=(65, 32), where="s")
    with pytest.raises(ConfigError, match="no PNG"):
        target_of(MaskLabel(png="QUJD", names={}), run=run, size=(64, 32), where="s")


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("classification", ClassLabel(name="person"), "no class 'person'"),
        ("classification", BoxesLabel(boxes=()), "needs labels of kind class"),
        ("regression", ValuesLabel(values=(1.0,)), "1 values; the run predicts 2"),
        ("keypoints", PointsLabel(points=(Point(x=1, y=1),)), "1 points; the run's skeleton has 2"),
    ],
)
def test_a_label_that_does_not_fit_names_its_sample(task: str, label: Label, message: str) -> None:
    with pytest.raises(ConfigError, match=f"label of sample 7: .*{message}"):
        target_of(label, run=as_run(task, CLASSES, CONTRACT), size=(64, 32), where="sample 7")


def test_a_snapshot_of_one_vehicle_uses_only_that(run: Run, store: Store) -> None:
    with pytest.raises(StoreError, match="no labelled sample"):
        Snapshots(store).create("none", SampleFilter(vehicle="other"))
