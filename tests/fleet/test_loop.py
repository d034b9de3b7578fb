"""`misfire fleet loop`: rounds that survive a kill at every step, on real runs, bundles and stores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.loop_process import POINTS, RULES
from typer.testing import CliRunner

from misfire_export.options import Options
from misfire_export.sources.frames import frames_of_run
from misfire_export.sources.run import export_run
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.loop.lock import only_loop
from misfire_fleet.loop.loop import Loop, Pace, parse_span
from misfire_fleet.loop.rounds import Settings
from misfire_fleet.loop.state import StateFile
from misfire_fleet.retrain.command import changed_mixture
from misfire_fleet.retrain.snapshot import snapshot_uploads
from misfire_fleet.retrain.uploads import slices_of
from misfire_fleet.store import Store
from misfire_fleet.store.curated.candidates import verdicts
from misfire_fleet.store.records import ANY, NewSample
from misfire_runtime.cli import app
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Clock
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import make_offer
from misfire_train.data import Examples, load_dataset
from misfire_train.fit import fit_key, train_run
from misfire_train.retraining import Schedule, child_config, parts_with
from misfire_train.runs import load_run, read_splits, run_splits
from misfire_train.train_config import parse_train_config

pytestmark = pytest.mark.slow
COUNT, DRIVES = 100, 25


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its bundle, and a fleet with labelled pictures and a frozen exam."""
    folder = tmp_path_factory.mktemp("loop")
    config = parse_train_config(
        {
            "dataset": "digits",
            "model": {"options": {"width": 4}},
            "split": {"field": 0.4, "limit": 900},
            "training": {"epochs": 2},
            "head": {"recipe": "none"},
        }
    )
    run, digits = train_run(config, out=folder / "run"), load_dataset("digits")
    export_run(run, frames_of_run(run, digits), out=folder / "bundle", options=Options("digits", "1.0.0"))
    with Store.open_folder(folder / "fleet") as store:
        label(store, run_splits(run, digits)["field"], 0, COUNT)
        plan = Plan(shares=Shares(0.1, 0.4), frozen=True, seed=3)
        Snapshots(store).create("exam", ANY, plan=plan)
    return folder


@pytest.fixture
def place(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "loop")
    return tmp_path / "loop"


def label(store: Store, field: Examples, start: int, end: int) -> list[str]:
    """Stores and labels pictures of the data set's field; returns their ids."""
    names = load_dataset("digits").classes
    new, said = [], []
    for i in range(start, end):
        data = encode_png(field.images[i])
        clock = Clock(wall=1_700_000_000.0 + i, monotonic=5.0, boot_id=f"boot-{i % DRIVES}")
        offer = make_offer(data, vehicle="car", media_type="image/png", captured_at=clock)
        new.append(NewSample(offer, data, 8, 8, "collector-1"))
        said.append(NewLabel(offer.id, ClassLabel(name=names[int(field.targets[i])]), source="file"))
    store.add_many(new)
    assert LabelLedger(store).add(said, add_classes=True).written
    return [sample.offer.id for sample in new]


def settings(place: Path, **changed: Any) -> Settings:
    given: dict[str, Any] = {"exam": "exam", "rules": RULES, "schedule": Schedule(epochs=2)}
    folders = {"run": place / "run", "bundle": place / "bundle", "folder": place / "fleet" / "loop"}
    return Settings(**{**folders, **given, **changed})


def killed(place: Path, points: list[str]) -> list[tuple[int, str]]:
    """Runs one round, killed at each point in turn; how each process ended, and at which step it was."""
    folders = {"run": place / "run", "bundle": place / "bundle", "folder": place / "fleet" / "loop"}
    given = {
        "settings": {name: str(path) for name, path in folders.items()},
        "fleet": str(place / "fleet"),
        "points": points,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.fleet.loop_process", json.dumps(given)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return [(end, step) for end, step in json.loads(done.stdout.splitlines()[-1])]


def test_a_round_that_is_killed_at_every_step_ends_as_one_that_was_not(place: Path, begun: Path) -> None:
    calm = place.parent / "calm"
    shutil.copytree(begun, calm)
    assert killed(calm, [""]) == [(0, "done")]
    ends = killed(place, list(POINTS))
    assert [end for end, _ in ends] == [-9] * (len(POINTS) - 1) + [0]
    # Each process goes on where the one before was, and none goes back.
    assert [step for _, step in ends] == [
        *("snapshot", "snapshot", "retrain", "retrain", "export", "export", "gate", "gate", "done")
    ]
    runs = [load_run(each / "fleet" / "loop" / "rounds" / "0001" / "run") for each in (calm, place)]
    assert runs[0].record.files["model.safetensors"] == runs[1].record.files["model.safetensors"]
    folder = place / "fleet" / "loop" / "rounds" / "0001"
    assert {path.name for path in folder.iterdir()} <= {"run", "bundle", "gate.html"}
    assert not (folder / "run" / "checkpoint.safetensors").exists()
    with Store.open_folder(place / "fleet") as store:
        assert [row.name for row in Snapshots(store).listed()] == ["exam", "loop-0001"]
        assert len([name for name in store.blobs.documents("snapshots") if "loop-0001" in name]) == 1
        (verdict,) = verdicts(store.database)
        state = StateFile(place / "fleet" / "loop").read()
        assert state is not None and state.last is not None
        assert (state.last.passed, state.incumbent) == (verdict.passed, int(verdict.passed))
        assert state.last.bundle == verdict.candidate == "digits@1.1.0"
        tested = {m.id for m in Snapshots(store).read("exam")[0].members if m.side == "test"}
        trained = {each for part in read_splits(folder / "run").values() for each in part}
        assert tested and not tested & trained


def test_new_samples_of_frozen_groups_are_never_trained_on_and_rounds_follow_labels(place: Path) -> None:
    field = run_splits(load_run(place / "run"), load_dataset("digits"))["field"]
    with Store.open_folder(place / "fleet") as store:
        loop = Loop(store, settings(place), pace=Pace(new_labels=30, attempts=1))
        assert loop.due() and loop.new_labels() == COUNT
        assert loop.round().step == "done"
        assert not loop.due() and loop.new_labels() == 0
        later = label(store, field, COUNT, COUNT + 29)
        assert not loop.due() and loop.new_labels() == 29
        later += label(store, field, COUNT + 29, COUNT + 50)
        assert loop.due()
        last = loop.round()
        frozen = {m.group for m in Snapshots(store).read("exam")[0].members if m.side == "test"}
        members = {m.id: m for m in Snapshots(store).read("loop-0002")[0].members}
        used = {each for part in read_splits(loop._steps.run_of(2)).values() for each in part}
        new = set(later)
        assert last.number == 2 and new & used
        # Those of frozen drives are in no snapshot's training sides; here the test set is exactly the exam's.
        assert {m.group for m in members.values() if m.side != "test"}.isdisjoint(frozen)
        assert new - set(members) and not (new - set(members)) & used


def test_a_failing_round_is_tried_again_and_given_up_and_the_next_one_comes(place: Path) -> None:
    said: list[str] = []
    shutil.move(place / "bundle", place / "gone")
    with Store.open_folder(place / "fleet") as store:
        with pytest.raises(Exception, match="bundle"):
            Loop(store, settings(place))
        shutil.move(place / "gone", place / "bundle")
        pace = Pace(new_labels=1, attempts=2, pause_s=0.01)
        nobody = settings(place, where=("vehicle=nobody",))
        given_up = Loop(store, nobody, pace=pace, say=said.append).round()
        assert (given_up.open, given_up.passed, given_up.failures) == (False, None, 2)
        assert "none of the 0 labels" in given_up.error and "given up" in said[-1]
        assert not (place / "fleet" / "loop" / "rounds" / "0001" / "run").exists()
        # It used no label, so the next round is due, after a rest, and continues the run that it had.
        assert not Loop(store, settings(place), pace=pace).due()
        loop = Loop(store, settings(place), pace=replace(pace, rest_s=0.0))
        assert loop.due()
        last = loop.round()
        assert (last.number, last.parent, last.step) == (2, 0, "done")


def test_a_stop_ends_the_training_between_epochs_and_the_next_start_goes_on(place: Path) -> None:
    stop = threading.Event()
    epochs: list[str] = []

    def say(text: str) -> None:
        epochs.append(text)
        if text.startswith("epoch 2"):
            stop.set()

    slow = settings(place, schedule=Schedule(epochs=4))
    with Store.open_folder(place / "fleet") as store:
        state = Loop(store, slow, stop=stop, say=say).round()
        assert (state.open, state.step, state.failures) == (True, "retrain", 0)
        assert "stopped" in epochs[-1]
        epochs.clear()
        assert Loop(store, slow, say=epochs.append).round().step == "done"
        assert any(line.startswith("resumed after epoch") for line in epochs)


def test_only_one_loop_works_on_a_store(anywhere: Store) -> None:
    refused = pytest.raises(StoreError, match="another misfire fleet loop")
    # The lock belongs to an open file or a connection: a second one in this process is refused, too.
    with only_loop(anywhere.database), refused, only_loop(anywhere.database):
        pass
    with only_loop(anywhere.database):
        pass


def test_a_killed_loop_leaves_no_lock(place: Path) -> None:
    assert killed(place, ["manifest written, rows missing"]) == [(-9, "snapshot")]
    with Store.open_folder(place / "fleet") as store, only_loop(store.database):
        pass


def test_the_command_runs_one_round_and_tells_what_it_needs(place: Path) -> None:
    runner = CliRunner()
    words = ["fleet", "loop", "--run", str(place / "run"), "--bundle", str(place / "bundle")]
    words += ["--fleet-dir", str(place / "fleet"), "--test-from", "exam"]
    # Raised as MisfireError, which `misfire` prints as one line.
    result = runner.invoke(app, words)
    assert "--every" in f"{result.output}{result.exception}"
    quick = ["--once", "--epochs", "1", "--min-frames", "5", "--tolerance", "0.9", "--json"]
    mixed = ["--class-balance", "0.5", "--slice-balance", "0.5", "--slice-by", "day"]
    result = runner.invoke(app, [*words, *quick, *mixed])
    state = json.loads(result.stdout.splitlines()[-1])
    (only,) = state["rounds"]
    assert only["step"] == "done" and result.exit_code == (0 if only["passed"] else 1), result.output
    mixture = load_run(place / "fleet" / "loop" / "rounds" / "0001" / "run").config.mixture
    assert (mixture.class_balance, mixture.slice_balance, mixture.replay) == (0.5, 0.5, 0.67)
    other = load_run(place / "run").record.run_id
    file = place / "fleet" / "loop" / "loop.json"
    file.write_text(file.read_text().replace(other, "f" * 16))
    result = runner.invoke(app, [*words, "--once"])
    assert "this loop began with run ffff" in f"{result.output}{result.exception}"


def test_rounds_by_the_clock_need_a_new_label(place: Path) -> None:
    with Store.open_folder(place / "fleet") as store:
        loop = Loop(store, settings(place), pace=Pace(every_s=3600.0))
        assert loop.due()
        loop.state = loop.state.with_round(
            loop._new().model_copy(update={"ended_at": wall_time(), "labels_up_to": wall_time()})
        )
        assert not loop.due()
    assert parse_span("24h") == 86_400
    with pytest.raises(ConfigError, match="24h"):
        parse_span("soon")


def test_retraining_mixes_as_stated_and_by_slices_of_the_store(place: Path) -> None:
    run, digits = load_run(place / "run"), load_dataset("digits")
    stated = changed_mixture(run, replay=0.5, class_balance=None, slice_balance=1.0)
    config = child_config(run, Schedule(mixture=stated))
    assert (config.mixture.replay, config.mixture.slice_balance, config.mixture.class_balance) == (
        0.5,
        1.0,
        0.0,
    )
    # The mixture decides the result, so a checkpoint of another one is refused.
    assert fit_key(config) != fit_key(child_config(run, Schedule()))
    with pytest.raises(ConfigError, match="replay"):
        changed_mixture(run, replay=1.5)
    with Store.open_folder(place / "fleet") as store:
        uploads = snapshot_uploads(store, "exam", run=run).train.examples
        for by in ("vehicle", "day", "class", "weather"):
            assert set(slices_of(store, uploads.ids, by=by)) == set(uploads.ids)
        assert set(slices_of(store, uploads.ids, by="vehicle").values()) == {"car"}
    rare = {name: "fog" if place < 3 else "sun" for place, name in enumerate(uploads.ids)}
    none = uploads.take([])
    parts = parts_with(run, uploads, digits, held=none, mixture=config.mixture, slices=rare)
    assert parts.repeats is not None and len(parts.repeats) == len(parts.train)
    new = parts.repeats[-len(uploads) :]
    assert (new[:3] > new[3:].max()).all()
