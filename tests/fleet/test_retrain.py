"""`misfire retrain`: uploads and labels in, a better child run out; no leak, nothing lost silently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from misfire_fleet.errors import StoreError
from misfire_fleet.retrain.command import retrain_from_store
from misfire_fleet.retrain.uploads import labelled_uploads, parse_label, read_labels
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_fleet.store.rows import sample_of
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Clock
from misfire_runtime.preprocess import decode_image, encode_png
from misfire_runtime.testing import make_offer
from misfire_train.data import load_dataset
from misfire_train.data.corruptions import corrupt
from misfire_train.data.images import planes
from misfire_train.fit import train_run
from misfire_train.retraining import Schedule, divide, retrain_run, shifted_test
from misfire_train.runs import Run, load_run, read_splits, run_splits
from misfire_train.train_config import parse_train_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = parse_train_config(
        {
            "dataset": "digits",
            "model": {"options": {"width": 6}},
            "split": {"field": 0.5},
            "training": {"epochs": 5},
            "head": {"steps": 60, "copies": 1},
        }
    )
    return train_run(config, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def fleet(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet folder with 200 uploads in fog and labels for them."""
    folder = tmp_path_factory.mktemp("fleet")
    digits = load_dataset("digits")
    field = run_splits(run, digits)["field"]
    lines = ["id,label"]
    with Store.open_folder(folder) as store:
        new = []
        for i in range(200):
            data = encode_png(corrupt(field.images[i], "fog", severity=4, seed=i))
            captured = Clock(wall=1_700_000_000.0 + 7 * i, monotonic=5.0, boot_id="boot")
            offer = make_offer(
                data,
                vehicle=f"car-{i % 3}",
                media_type="image/png",
                captured_at=captured,
                scores={"msp": 0.5},
            )
            new.append(NewSample(offer, data, 8, 8, "collector-1"))
            lines.append(f"{offer.id},{digits.classes[int(field.targets[i])]}")
        store.add_many(new)
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_retraining_on_foggy_uploads_helps_in_fog_and_keeps_the_rest(
    run: Run, fleet: Path, tmp_path: Path
) -> None:
    digits = load_dataset("digits")
    with Store.open_folder(fleet) as store:
        outcome = retrain_from_store(
            run, store, labels=fleet / "labels.csv", dataset=digits, out=tmp_path / "run2"
        )
    assert outcome.run.record.parent_run_id == run.record.run_id
    assert outcome.after["shifted"] > outcome.before["shifted"]
    assert outcome.after["clean"] > outcome.before["clean"] - 0.03
    used = outcome.retrained.uploads
    assert used["train"] + used["holdout"] == 200 and used["holdout"] > 10
    numbers = outcome.to_dict()
    assert numbers["difference"]["clean"]["low"] <= numbers["difference"]["clean"]["high"]
    # The next generation keeps every upload on its side of the split.
    ids = read_splits(tmp_path / "run2")
    assert not set(ids["uploads-train"]) & set(ids["uploads-holdout"])
    assert set(run_splits(load_run(tmp_path / "run2"), digits)) == {
        *("train", "validation", "holdout", "calibration", "field", "test")
    }


def test_the_command_prints_before_and_after(run: Run, fleet: Path, tmp_path: Path) -> None:
    command = ["retrain", str(run.path), "--uploads", str(fleet), "--labels", str(fleet / "labels.csv")]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "r"), "--epochs", "1", "--json"])
    assert result.exit_code == 0, result.output
    numbers = json.loads(result.stdout.strip().splitlines()[-1])
    assert numbers["uploads_used"] == 200 and numbers["unlabelled"] == 0
    assert 0 < numbers["accuracy_before_clean"] <= 1 and 0 < numbers["accuracy_after_shifted"] <= 1
    again = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "r")])
    assert isinstance(again.exception, ConfigError) and "finished run" in str(again.exception)


def test_the_parent_is_not_touched_and_test_examples_are_refused(run: Run, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in run.path.iterdir()}
    digits = load_dataset("digits")
    with pytest.raises(ConfigError, match="test half"):
        retrain_run(run, digits.test.take([0, 1]), dataset=digits, out=tmp_path / "r")
    assert before == {file.name: file.read_bytes() for file in run.path.iterdir()}


def test_labels_with_mistakes_are_named(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "labels.csv"
    for text, message in (
        ("identity,label\na,1\n", "id is missing"),
        ("id,label\na,\n", "labels.csv:2: a row needs both"),
        ("id,label\na,1\na,2\n", "labels.csv:3: a is labelled '1' and '2'"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_labels(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_labels(tmp_path / "absent.csv")
    file.write_bytes(b"id,label\n\xff\xfe,1\n")
    with pytest.raises(ConfigError, match="not a CSV file"):
        read_labels(file)
    with pytest.raises(ConfigError, match="no class 'cat'"):
        parse_label("cat", run=run, sample="s", beside=tmp_path)
    assert parse_label("7", run=run, sample="s", beside=tmp_path) == 7


def test_unusable_uploads_are_counted_and_named(run: Run, tmp_path: Path) -> None:
    good = encode_png(np.full((8, 8, 3), 90, np.uint8))
    broken, clip = b"\x89PNG\r\n\x1a\n truncated", b"\x00" * 64
    with Store.open_folder(tmp_path) as store:
        offers = [
            make_offer(good, media_type="image/png"),
            make_offer(broken, media_type="image/png"),
            make_offer(clip, media_type="video/mp4"),
        ]
        new = [NewSample(o, d, 8, 8, "c") for o, d in zip(offers, (good, broken, clip), strict=True)]
        store.add_many(new)
        labels = tmp_path / "labels.csv"
        rows = [f"{offer.id},3" for offer in offers] + ["f" * 64 + ",3"]
        labels.write_text("id,label\n" + "\n".join(rows) + "\n")
        uploads = labelled_uploads(store, labels, run=run)
        assert len(uploads.examples) == 1
        assert uploads.skipped == {"not_stored": 1, "not_an_image": 1, "undecodable": 1}
        assert len(uploads.problems) == 2
        labels.write_text("id,label\n" + "f" * 64 + ",3\n")
        with pytest.raises(StoreError, match="none of the 1 labels"):
            labelled_uploads(store, labels, run=run)


def test_only_labelled_rows_are_read_and_each_image_is_decoded_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [encode_png(np.full((8, 8, 3), 5 * i, np.uint8)) for i in range(30)]
    offers = [make_offer(picture, media_type="image/png") for picture in pictures]
    wanted = sorted(offer.id for offer in offers[4:8])
    read: list[str] = []
    decoded: list[str] = []
    monkeypatch.setattr(
        "misfire_fleet.store.store.sample_of", lambda row: read.append(row.id) or sample_of(row)
    )
    monkeypatch.setattr(
        "misfire_fleet.retrain.uploads.decode_image",
        lambda data, name: decoded.append(name) or decode_image(data, name=name),
    )
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\n" + "".join(f"{key},3\n" for key in wanted))
    with Store.open_folder(tmp_path) as store:
        store.add_many([NewSample(o, d, 8, 8, "c") for o, d in zip(offers, pictures, strict=True)])
        uploads = labelled_uploads(store, labels, run=run)
        assert (uploads.stored, uploads.unlabelled) == (30, 26)
        for _ in range(2):
            planes(uploads.examples.images, range(4), run.contract)
    assert sorted(read) == sorted(decoded) == wanted


def test_groups_are_minutes_of_the_recording_not_of_its_replay(run: Run, tmp_path: Path) -> None:
    replayed = Clock(wall=1_700_000_000.0, monotonic=5.0, boot_id="boot")
    times: list[dict[str, float | str]] = [
        {"recorded_at": 1_500_000_000.0 + 30 * i, "position_s": 30.0 * i} for i in range(4)
    ]
    times += [{"source": "drive.mp4", "position_s": 30.0 * i} for i in range(4)]
    pictures = [encode_png(np.full((8, 8, 3), 20 * i, np.uint8)) for i in range(8)]
    offers = [
        make_offer(picture, media_type="image/png", captured_at=replayed, **fields)
        for picture, fields in zip(pictures, times, strict=True)
    ]
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\n" + "".join(f"{offer.id},3\n" for offer in offers))
    with Store.open_folder(tmp_path) as store:
        store.add_many([NewSample(o, d, 8, 8, "c") for o, d in zip(offers, pictures, strict=True)])
        examples = labelled_uploads(store, labels, run=run).examples
    group = dict(zip(examples.ids, examples.groups, strict=True))
    groups = [group[offer.id] for offer in offers]
    assert groups[:4] == [f"car-1/{25_000_000 + i // 2}" for i in range(4)]
    assert groups[4:] == [f"car-1/drive.mp4/{i // 2}" for i in range(4)]


def test_the_order_of_arrival_does_not_matter(run: Run, tmp_path: Path) -> None:
    pictures = [encode_png(np.full((8, 8, 3), 10 * i, np.uint8)) for i in range(6)]
    offers = [make_offer(picture, media_type="image/png") for picture in pictures]
    new = [NewSample(offer, data, 8, 8, "c") for offer, data in zip(offers, pictures, strict=True)]
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\n" + "".join(f"{offer.id},{i}\n" for i, offer in enumerate(offers)))
    found = []
    for name, order in (("one", new), ("other", new[::-1])):
        with Store.open_folder(tmp_path / name) as store:
            for sample in order:
                store.add_many([sample])
            examples = labelled_uploads(store, labels, run=run).examples
            found.append((examples.ids, examples.targets.tolist(), [i.tobytes() for i in examples.images]))
    assert found[0] == found[1] and len(found[0][0]) == 6


def test_neighbouring_frames_stay_on_one_side() -> None:
    digits = load_dataset("digits").train.take(range(60))
    grouped = type(digits)(
        digits.images, digits.targets, digits.ids, tuple(f"car/{i // 6}" for i in range(60))
    )
    fitting, held = divide(grouped)
    assert not set(fitting.groups) & set(held.groups) and len(fitting) + len(held) == 60
    single = type(digits)(digits.images, digits.targets, digits.ids, ("car/0",) * 60)
    fitting, held = divide(single)
    assert len(fitting) and len(held)
    few, none = divide(digits.take([0]))
    assert len(few) == 1 and len(none) == 0


def test_a_missing_fleet_folder_is_not_made(run: Run, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\na,1\n")
    command = ["retrain", str(run.path), "--labels", str(labels), "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, [*command, "--uploads", str(tmp_path / "absent")])
    assert isinstance(result.exception, ConfigError) and not (tmp_path / "absent").exists()
    assert isinstance(CliRunner().invoke(app, command).exception, ConfigError)


def test_the_shifted_test_half_is_the_same_for_everybody() -> None:
    digits = load_dataset("digits")
    first, second = (shifted_test(digits.test).batch(range(30), digits.contract) for _ in range(2))
    assert np.array_equal(first.numpy(), second.numpy())
    assert not np.array_equal(first.numpy(), digits.test.batch(range(30), digits.contract).numpy())


def test_a_regressions_child_counts_failures_by_its_parents_threshold(tmp_path: Path) -> None:
    """The loss above which a frame has failed came off the parent's holdout, and stays what it was."""
    rng = np.random.default_rng(0)
    rows = ["image,brightness"]
    for i in range(160):
        level = int(rng.integers(30, 220))
        picture = np.clip(level + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        (tmp_path / f"{i}.png").write_bytes(encode_png(picture))
        rows.append(f"{i}.png,{level / 255:.4f}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    name = f"csv-regression:{tmp_path / 'table.csv'}?size=16x16"
    values = {"dataset": name, "training": {"epochs": 2}, "head": {"steps": 20, "copies": 1}}
    parent = train_run(parse_train_config(values), out=tmp_path / "run")
    assert parent.record.failure is not None and "holdout" in parent.record.failure.source
    pictures = [encode_png(np.full((16, 16, 3), 20 * i, np.uint8)) for i in range(1, 11)]
    offers = [make_offer(picture, media_type="image/png") for picture in pictures]
    lines = [f"{offer.id},{20 * i / 255:.4f}" for i, offer in enumerate(offers, 1)]
    (tmp_path / "labels.csv").write_text("id,label\n" + "\n".join(lines) + "\n")
    with Store.open_folder(tmp_path / "fleet") as store:
        store.add_many([NewSample(o, p, 16, 16, "c") for o, p in zip(offers, pictures, strict=True)])
        outcome = retrain_from_store(
            parent,
            store,
            labels=tmp_path / "labels.csv",
            dataset=load_dataset(name),
            out=tmp_path / "run2",
            schedule=Schedule(epochs=1),
        )
    assert outcome.run.record.failure == parent.record.failure
    assert load_run(tmp_path / "run2").task.failure_threshold == parent.task.failure_threshold
