"""A running vehicle takes a better configuration and keeps the last good one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from vehicle_support import make

from misfire_runtime.config.tables import read_config
from misfire_runtime.messages import Desired
from misfire_runtime.preprocess import encode_png
from misfire_runtime.vehicle.live_config import LiveConfig
from misfire_runtime.vehicle.probation import DesiredStore

TEXT = 'version = {version}\n[random]\nrate = {rate}\n[triggers.t]\nkind = "threshold"\nabove = 1e9\n'


@pytest.fixture
def live(bundle: Any, store: Any, tmp_path: Path) -> Any:
    import numpy as np

    (tmp_path / "in").mkdir()
    for number in range(20):
        data = encode_png(np.full((8, 8, 3), number, np.uint8))
        (tmp_path / "in" / f"{number}.png").write_bytes(data)
    file = tmp_path / "v.toml"
    file.write_text(TEXT.format(version=1, rate=0.0))
    vehicle = make(bundle, store, tmp_path, tmp_path / "in", file.read_text())
    config = read_config(file)
    vehicle.config = config
    yield LiveConfig(vehicle, config=config, state_dir=tmp_path, file=file), vehicle, file
    vehicle.close()


def test_a_changed_file_is_taken_over_between_frames(live: Any, store: Any) -> None:
    config, vehicle, file = live
    assert not config.reload_if_changed()
    file.write_text(TEXT.format(version=2, rate=1.0) + "\n")
    assert config.reload_if_changed()
    report = vehicle.run(threading.Event())
    assert report.chosen == {"random": 20}
    assert not config.reload_if_changed()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT.format(version=1, rate=1.0), "version: 1 is not above 1; raise it"),
        (TEXT.format(version=2, rate=5.0), "v.toml:3: random.rate"),
        ('vehicle = "other"\n' + TEXT.format(version=2, rate=1.0), "vehicle: changed, which needs a restart"),
        ("not toml", "v.toml"),
        (TEXT.format(version=2, rate=1.0).replace("above", 'score = "nope"\nabove'), "no score 'nope'"),
    ],
)
def test_a_file_that_is_wrong_leaves_the_last_good_in_force(
    live: Any, text: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, vehicle, file = live
    file.write_text(text)
    assert not config.reload()
    assert any(says in record.fields["problem"] for record in caplog.records if hasattr(record, "fields"))
    assert vehicle.run(threading.Event()).chosen == {}


def test_the_fleets_wish_is_taken_reported_and_survives_a_restart(live: Any, tmp_path: Path) -> None:
    config, vehicle, _file = live
    answer = config.take_desired(Desired(version=4, config={"random": {"rate": 1.0}}))
    assert (answer.version, answer.accepted, answer.bundle) == (4, True, "small@1.0.0")
    again = LiveConfig(vehicle, config=vehicle.config, state_dir=tmp_path)
    answer = again.restore()
    assert answer is not None and answer.accepted and again.desired_version == 4
    assert vehicle.run(threading.Event()).chosen == {"random": 20}


def test_an_old_or_wrong_wish_is_refused_with_its_reason(live: Any) -> None:
    config, _vehicle, _file = live
    assert config.take_desired(Desired(version=4, config={"random": {"rate": 0.5}})).accepted
    stale = config.take_desired(Desired(version=3, config={"random": {"rate": 1.0}}))
    assert not stale.accepted and "version 3 is not above 4" in stale.reason and stale.version == 4
    assert config.take_desired(Desired(version=4, config={"random": {"rate": 0.5}})).accepted
    path = {"degrade": {"temperature_c": 80, "temperature_file": "/dev/zero"}}
    poisoned = config.take_desired(Desired(version=8, config=path))
    assert not poisoned.accepted and "cannot set degrade.temperature_file" in poisoned.reason
    wrong = config.take_desired(Desired(version=5, config={"privacy": {}}))
    assert not wrong.accepted and "cannot set privacy" in wrong.reason and wrong.version == 5
    gone = config.take_desired(Desired(version=6, bundle="other@9.9.9"))
    assert not gone.accepted and "no `bundles` folder" in gone.reason
    assert config.desired_version == 4


def test_a_kept_wish_that_cannot_be_read_is_no_obstacle(live: Any, tmp_path: Path) -> None:
    config, _vehicle, _file = live
    (tmp_path / "desired.json").write_text("{")
    assert config.restore() is None


def test_a_confirmed_wish_on_which_an_engine_breaks_is_no_obstacle_to_the_start(
    live: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _config, vehicle, _file = live
    kept = DesiredStore(tmp_path)
    kept.begin(Desired(version=4, config={"random": {"rate": 1.0}}))
    kept.confirm()

    def breaks(_config: object) -> None:
        raise RuntimeError("a driver's own error")

    monkeypatch.setattr(vehicle, "apply", breaks)
    again = LiveConfig(vehicle, config=vehicle.config, state_dir=tmp_path)
    answer = again.restore()
    assert answer is not None and not answer.accepted and "RuntimeError: a driver's own" in answer.reason
    assert again.desired_version == -1


def test_the_fleet_switches_to_a_bundle_on_this_machine(
    bundle: Any, make_bundle: Any, store: Any, tmp_path: Path, live: Any
) -> None:
    _config, vehicle, _file = live
    folder = tmp_path / "bundles"
    make_bundle(folder / "new", seed=9, version="1.1.0")
    broken = make_bundle(folder / "bad", seed=8, version="1.2.0")
    (broken.path / "model.onnx").write_bytes(b"x")
    config = vehicle.config.model_copy(update={"bundles": folder})
    live_config = LiveConfig(vehicle, config=config, state_dir=tmp_path)
    wish = {"triggers": {"m": {"kind": "threshold", "score": "msp", "above": -1.0}}}
    answer = live_config.take_desired(Desired(version=1, bundle="small@1.1.0", config=wish))
    assert answer.accepted and answer.bundle == "small@1.1.0"
    refused = live_config.take_desired(Desired(version=2, bundle="small@1.2.0"))
    assert not refused.accepted and "model.onnx is not what the manifest says" in refused.reason
    report = vehicle.run(threading.Event())
    assert report.bundle == "small@1.1.0" and report.chosen == {"m": 20}


def test_clips_and_encoding_change_while_it_runs(live: Any, store: Any) -> None:
    config, vehicle, _file = live
    wish = {
        "random": {"rate": 1.0},
        "encode": {"keep_original": False},
        "clips": {},
        "degrade": {"hold_s": 3},
    }
    assert config.take_desired(Desired(version=1, config=wish)).accepted
    vehicle.run(threading.Event())
    assert {offer.media_type for offer in store.offers} == {"image/jpeg"}
    assert vehicle.writer.clips is not None and vehicle.ladder.table.hold_s == 3
