"""`misfire demo`: the whole loop, through its command line, on both brokers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misfire_fleet.demo.counting import count
from misfire_fleet.demo.drive import write_drive
from misfire_fleet.demo.loop import train_config
from misfire_fleet.demo.plan import PLANS, plan_for
from misfire_fleet.demo.triggering import write_triggers
from misfire_fleet.store import Store
from misfire_runtime.config.tables import read_config
from misfire_runtime.errors import ConfigError
from misfire_train.data import load_dataset
from misfire_train.fit import new_model
from proving_ground.services import find_program

pytestmark = pytest.mark.slow

KEYS = (
    "frames",
    "uploaded",
    "stored",
    "bytes",
    "failures_uploaded",
    "failures_random",
    "accuracy_before_clean",
    "accuracy_after_clean",
    "accuracy_before_shifted",
    "accuracy_after_shifted",
)


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "misfire_runtime.cli", "demo", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)


def check(result: dict[str, Any], out: Path) -> None:
    assert set(KEYS) <= set(result)
    assert result["uploaded"] == result["stored"] > 20
    assert result["failures_uploaded"] >= 2 * result["failures_random"] > 0
    with Store.open_folder(out / "fleet") as store:
        rows = store.newest(10_000)
        assert len(rows) == result["stored"]
        assert sum(row.size for row in rows) == result["bytes"]
        on_disk = {file.read_bytes() for file in (out / "drives").rglob("*.png")}
        assert all(store.read_blob(row.id) in on_disk for row in rows)


def test_the_loop_closes_over_the_broker_that_pip_installs(tmp_path: Path) -> None:
    done = run_demo("--embedded-broker", "--out", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stderr
    assert "amqtt" in done.stderr
    for row in ("frames seen", "uploaded, stored", "failures among the uploaded", "accuracy, shifted"):
        assert row in done.stdout


def test_an_out_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    done = run_demo("--out", str(tmp_path))
    assert done.returncode == 1
    assert "expected a new or empty folder" in done.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_an_unknown_dataset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="digits, traffic-lights, fashion-mnist, street"):
        plan_for("roads")


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_configures_a_training_of_its_data(name: str) -> None:
    config = train_config(name, plan_for(name), data=None, seed=3)
    assert (config.dataset, config.seed) == (name, 3)
    assert config.training.epochs == PLANS[name].epochs
    if name == "street":
        assert config.detection.min_side == 12
        assert new_model(config, load_dataset(name)).name == "detector-small"


def test_a_drive_repeats_with_its_seed_and_turns_bad_half_way(tmp_path: Path) -> None:
    field = load_dataset("digits").train.take(np.arange(60))
    settings = {"weather": ("night",), "severity": 3, "frames": 100, "seed": 5}
    first = write_drive(tmp_path / "a", field, **settings)  # type: ignore[arg-type]
    again = write_drive(tmp_path / "b", field, **settings)  # type: ignore[arg-type]
    assert [frame.sample for frame in first] == [frame.sample for frame in again]
    weather = [frame.bad_weather for frame in first]
    assert weather == sorted(weather)
    assert 40 <= sum(weather) <= 50
    assert len({frame.sample for frame in first}) == len(first)


def test_a_random_sample_is_expected_to_hold_the_failure_rate() -> None:
    findings = count([], {"a"}, frames=2)
    assert findings.failure_rate == 0.5
    assert findings.failures_random == 0


def test_the_loop_closes_over_mosquitto_and_keep_serves_the_console(tmp_path: Path) -> None:
    find_program("mosquitto", install="apt-get install mosquitto")
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "misfire_runtime.cli", "demo", "--json", "--keep", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            result = json.loads(process.stdout.readline())
            check(result, out)
            os.set_blocking(process.stderr.fileno(), False)
            said = process.stderr.read() or ""
            assert "mosquitto" in said
            address = next(word for word in said.split() if word.startswith("http://127.0.0.1"))
            page = urllib.request.urlopen(address, timeout=20).read().decode()
            assert "vehicle-1" in page
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            finally:
                process.kill()
    assert process.returncode == 0


def test_vehicles_trigger_on_each_chosen_score_with_its_share(tmp_path: Path) -> None:
    file = write_triggers(tmp_path / "vehicle.toml", ("expected_errors", "silence"), rate=0.1)
    triggers = read_config(file).triggers
    assert {name: (table.kind, table.score, table.rate) for name, table in triggers.items()} == {  # type: ignore[attr-defined]
        "expected_errors": ("target-rate", "expected_errors", 0.05),
        "silence": ("target-rate", "silence", 0.05),
    }
