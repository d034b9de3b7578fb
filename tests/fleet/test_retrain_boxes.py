"""Boxes that come back as labels: frames without objects too, and F1 before and after with its interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from misfire_export.options import Options
from misfire_export.sources.frames import frames_of_run
from misfire_export.sources.run import export_run
from misfire_fleet.demo.counting import failing_samples
from misfire_fleet.demo.drive import write_drive
from misfire_fleet.demo.labels import label_of
from misfire_fleet.retrain.command import describe, retrain_from_store
from misfire_fleet.retrain.uploads import labelled_uploads, parse_label, read_labels
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract, encode_png
from misfire_runtime.testing import make_offer
from misfire_train.data import Dataset, load_dataset
from misfire_train.data.boxes import with_contract
from misfire_train.data.corruptions import corrupt
from misfire_train.fit import train_run
from misfire_train.retraining import Schedule
from misfire_train.runs import Run, run_splits
from misfire_train.train_config import parse_train_config

UPLOADS = 12


@pytest.fixture(scope="module")
def street() -> Dataset:
    return load_dataset("street")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = {
        "dataset": "street",
        "model.options": {"width": 4, "tower": 8},
        "split.limit": 300,
        "split.field": 0.3,
        # The export refuses to calibrate on fewer than 50 frames.
        "split.calibration": 0.6,
        "training.epochs": 1,
        "training.batch": 16,
        "head.recipe": "none",
    }
    return train_run(parse_train_config({}, overrides=overrides), out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def fleet(run: Run, street: Dataset, tmp_path: Path) -> tuple[Path, list[str]]:
    """A fleet folder with uploads and their labels, and the ids; at least two are frames without objects."""
    field = run_splits(run, street)["field"]
    empty = [i for i in range(len(field)) if not len(field.targets[i])][:2]
    assert len(empty) == 2
    chosen = [*empty, *(i for i in range(len(field)) if i not in empty)][:UPLOADS]
    lines, ids = ["id,label"], []
    with Store.open_folder(tmp_path) as store:
        for i in chosen:
            data = encode_png(corrupt(field.images[i], "fog", severity=2, seed=i))
            offer = make_offer(data, vehicle=f"car-{i % 4}", media_type="image/png")
            store.add_many([NewSample(offer, data, 160, 96, "collector-1")])
            text = label_of(field.targets[i], street, size=(160, 96))
            lines.append(f'{offer.id},"{text}"')
            ids.append(offer.id)
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path, ids


def test_a_label_leads_back_to_its_boxes_whatever_the_size_of_the_picture(street: Dataset, run: Run) -> None:
    targets = next(each for each in street.train.targets if len(each) > 3)
    for size in ((160, 96), (640, 480)):
        text = label_of(targets, street, size=size)
        back = parse_label(text, run=run, sample="s", beside=Path(), size=size)
        assert np.abs(back - targets[targets[:, 5] == 0]).max() < 0.02
    other = InputContract(width=320, height=192, resize="letterbox")
    moved = next(each for each in with_contract(street, other).train.targets if len(each) > 3)
    assert np.abs(moved[:, :4] - 2 * targets[:, :4]).max() < 1e-3


def test_an_empty_label_is_a_frame_without_objects(run: Run, fleet: tuple[Path, list[str]]) -> None:
    folder, ids = fleet
    with Store.open_folder(folder) as store:
        uploads = labelled_uploads(store, folder / "labels.csv", run=run)
    assert set(uploads.examples.ids) == set(ids)
    counts = dict(zip(uploads.examples.ids, map(len, uploads.examples.targets), strict=True))
    assert [counts[identity] for identity in ids[:2]] == [0, 0]
    assert sum(counts.values()) > 4


def test_a_row_that_is_cut_off_is_no_empty_label(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("id,label\na,\n")
    assert read_labels(file, empty=True) == {"a": ""}
    for text in ("id,label\na\n", 'id,label\n,"car,1,2,3,4"\n'):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"labels\.csv:2: a row needs both"):
            read_labels(file, empty=True)


def test_retraining_on_boxes_compares_f1_on_the_same_frames(
    run: Run, street: Dataset, fleet: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ids = fleet
    with Store.open_folder(folder) as store:
        outcome = retrain_from_store(
            run,
            store,
            labels=folder / "labels.csv",
            dataset=street,
            out=tmp_path / "run2",
            schedule=Schedule(epochs=1),
        )
    assert sum(outcome.retrained.uploads.values()) == UPLOADS
    for view, (gain, low, high) in outcome.retrained.difference.items():
        assert gain == pytest.approx(outcome.after[view] - outcome.before[view], abs=1e-6)
        assert low <= gain <= high
    assert "F1 on the test half" in describe(outcome)


def test_the_shares_of_frames_add_up_to_f1(run: Run, street: Dataset) -> None:
    part = street.test.take(range(0, 420, 14))
    truth = run.task.collate(part.targets)
    # Answers that are right, except in every third frame.
    answers = torch.zeros(len(part), truth.shape[1], 6)
    answers[..., :4], answers[..., 5] = truth[..., :4], truth[..., 4].clamp_min(0)
    answers[..., 4] = torch.where(truth[..., 4] >= 0, 0.9, 0.0)
    answers[::3, :, 5] = (answers[::3, :, 5] + 1) % 3
    right, counted = run.task.shares(answers, truth)
    assert 0 < float(right.sum() / counted.sum()) < 1
    assert float(right.sum() / counted.sum()) == pytest.approx(float(run.task.accuracy(answers, truth)))


def test_the_demo_drives_past_boxes_and_counts_missed_objects(
    run: Run, street: Dataset, tmp_path: Path
) -> None:
    field = run_splits(run, street)["field"]
    drive = write_drive(tmp_path / "drive", field, weather=("night",), severity=2, frames=20, seed=3)
    bundle = export_run(
        run, frames_of_run(run, street), out=tmp_path / "bundle", options=Options("street", "1.0.0")
    )
    rule = run.task.box_rule
    assert rule is not None
    failing = failing_samples(bundle.path, drive, run.task)
    # A network of one epoch finds nothing: what fails is every frame with an object that counts.
    sizes = [(boxes[:, 2:4] - boxes[:, :2]).min(1) for boxes in (frame.target for frame in drive)]
    with_objects = {
        frame.sample
        for frame, side in zip(drive, sizes, strict=True)
        if ((side >= rule.min_side) & (frame.target[:, 5] == 0)).any()
    }
    assert failing >= with_objects
    assert with_objects
