"""`misfire fleet configure` against the shipped broker: the operator reads what the vehicle answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.conftest import eventually

from misfire_runtime.config.desired import with_desired
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Desired, Reported
from misfire_runtime.spool import Spool
from misfire_runtime.uplink import Uplink
from proving_ground.client import FLEET
from proving_ground.hardened import PASSWORDS, Hardened, hardened

pytestmark = pytest.mark.slow


class Wishes:
    """Takes wishes as a vehicle does: versions rise, and what does not fit is refused with the reason."""

    def __init__(self, highest: int = -1) -> None:
        self.config = VehicleConfig()
        self.highest = highest
        self.taken: list[Desired] = []

    def __call__(self, desired: Desired) -> Reported:
        if desired.version <= self.highest:
            reason = f"version {desired.version} is not above {self.highest}"
            return Reported(version=self.highest, bundle="b@1", accepted=False, reason=reason)
        self.highest = desired.version
        if desired.bundle == "missing@1":
            reason = "bundle missing@1 is desired, but is not in /bundles"
            return Reported(version=desired.version, bundle="b@1", accepted=False, reason=reason)
        try:
            self.config = with_desired(VehicleConfig(), desired.config)
        except ConfigError as error:
            return Reported(version=desired.version, bundle="b@1", accepted=False, reason=str(error))
        self.taken.append(desired)
        return Reported(version=desired.version, bundle=desired.bundle or "b@1")


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[Hardened]:
    with hardened(tmp_path / "mosquitto", fleet=FLEET) as running:
        yield running


@pytest.fixture
def vehicle(shipped: Hardened, tmp_path: Path) -> Iterator[Callable[[Wishes], Uplink]]:
    """Starts a real uplink that hands wishes on."""
    running: list[tuple[Uplink, Spool]] = []

    def start(wishes: Wishes) -> Uplink:
        spool = Spool(tmp_path / "spool", reserve_bytes=0)
        uplink = Uplink(
            spool, fleet=FLEET, vehicle="car-1", broker=shipped.vehicle("car-1"), on_desired=wishes
        )
        uplink.start()
        running.append((uplink, spool))
        assert uplink.wait_online(20.0)
        return uplink

    yield start
    for uplink, spool in running:
        uplink.close()
        spool.close()


def configure(shipped: Hardened, *options: str) -> tuple[int, dict[str, Any], str]:
    broker = f"mqtt://operator@127.0.0.1:{shipped.inside_port}"
    password = shipped.authority.folder / "operator.txt"
    password.write_text(PASSWORDS["operator"])
    arguments = ["car-1", "--fleet", FLEET, "--broker", broker, "--password-file", str(password), "--json"]
    command = [sys.executable, "-m", "misfire_runtime.cli", "fleet", "configure", *arguments, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_a_wish_is_taken_and_the_next_one_changes_it(
    shipped: Hardened, vehicle: Callable[[Wishes], Uplink], tmp_path: Path
) -> None:
    wishes = Wishes()
    vehicle(wishes)
    code, first, _ = configure(shipped, "--set", "encode.jpeg_quality=70", "--set", "clips.format=video")
    assert (code, first["accepted"], first["online"]) == (0, True, True)
    code, second, _ = configure(shipped, "--set", "limits.samples_per_day=5")
    assert code == 0
    assert second["version"] > first["version"]
    assert second["config"] == {
        "encode": {"jpeg_quality": 70},
        "clips": {"format": "video"},
        "limits": {"samples_per_day": 5},
    }
    assert (wishes.config.encode.jpeg_quality, wishes.config.limits.samples_per_day) == (70, 5)
    file = tmp_path / "wish.json"
    file.write_text('{"random": {"rate": 0.5}}')
    code, third, _ = configure(shipped, "--file", str(file))
    assert (code, third["config"]) == (0, {"random": {"rate": 0.5}})


def test_a_refusal_is_printed_with_its_reason(shipped: Hardened, vehicle: Callable[[Wishes], Uplink]) -> None:
    vehicle(Wishes())
    code, answer, _ = configure(shipped, "--bundle", "missing@1")
    assert (code, answer["accepted"]) == (1, False)
    assert "bundle missing@1 is desired, but is not in" in answer["reason"]


def test_a_vehicle_that_took_a_higher_version_names_it(
    shipped: Hardened, vehicle: Callable[[Wishes], Uplink]
) -> None:
    wishes = Wishes(highest=2**40)
    vehicle(wishes)
    code, answer, _ = configure(shipped, "--set", "encode.jpeg_quality=70")
    assert (code, answer["version"]) == (0, 2**40 + 1)
    assert [wish.version for wish in wishes.taken] == [2**40 + 1]


def test_an_absent_vehicle_takes_its_wish_when_it_comes(
    shipped: Hardened, vehicle: Callable[[Wishes], Uplink]
) -> None:
    code, answer, _ = configure(shipped, "--set", "encode.jpeg_quality=70", "--wait", "0.5")
    assert (code, answer["accepted"], answer["online"]) == (1, None, False)
    wishes = Wishes()
    vehicle(wishes)
    assert eventually(lambda: wishes.config.encode.jpeg_quality == 70)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "encode.jpeg_quality=700"], "encode.jpeg_quality: Input should be less than"),
        (["--set", "degrade.temperature_file=/dev/zero"], "the fleet cannot set degrade.temperature_file"),
        (["--set", "jpeg_quality=70"], "expected TABLE.FIELD=VALUE"),
        ([], "nothing to change"),
    ],
)
def test_what_no_vehicle_would_take_is_not_published(
    shipped: Hardened, options: list[str], says: str
) -> None:
    code, _, error = configure(shipped, *options)
    assert code != 0
    assert says in error
