"""A wish that harms is dropped: after restarts, when memory grows, when frames stop. Another stays."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vehicle_support import NONE, make

from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.errors import EngineError, SourceError
from misfire_runtime.messages import Desired, Reported
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import ListSource
from misfire_runtime.vehicle.live_config import MAX_FIRST_VERSION, MAX_RISE, LiveConfig
from misfire_runtime.vehicle.probation import DesiredStore, Probation, Trial, Vitals, harm

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("wish_process.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LONG = Probation(seconds=600)
AT_ONCE = Probation(seconds=0, frames=0)


def wish(version: int, quality: int = 50) -> Desired:
    return Desired(version=version, config={"encode": {"jpeg_quality": quality}})


def give_back_memory() -> None:
    """Frees what earlier tests of this process left, so that it is not freed while a test watches memory."""
    gc.collect()
    with suppress(AttributeError):  # only glibc keeps free memory until it is told
        ctypes.CDLL(None).malloc_trim(0)


class Child:
    """A vehicle in a process of its own."""

    def __init__(self, bundle: Any, folder: Path, desired: Desired | None, **probation: float) -> None:
        text = "" if desired is None else desired.model_dump_json()
        command = [sys.executable, str(SCRIPT), str(bundle.path), str(folder), json.dumps(probation), text]
        self._errors = (folder / "child.log").open("ab")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=ENVIRONMENT
        )

    def says(self, key: str) -> Any:
        """The next line that holds `key`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if key in said:
                return said[key]
        raise AssertionError("the vehicle ended")

    def end(self, how: str) -> None:
        getattr(self.process, how)()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


@pytest.fixture
def vehicle_process(bundle: Any, tmp_path: Path) -> Callable[..., Any]:
    """`with vehicle_process(wish, seconds=...) as child`; it is killed with -9 unless `end` differs."""

    @contextmanager
    def running(desired: Desired | None = None, *, end: str = "kill", **probation: float) -> Iterator[Child]:
        child = Child(bundle, tmp_path, desired, **{"seconds": 600, **probation})
        try:
            yield child
        finally:
            child.end(end)

    return running


def test_a_wish_with_which_the_vehicle_dies_twice_is_refused_and_the_last_good_one_is_used(
    vehicle_process: Callable[..., Any],
) -> None:
    with vehicle_process(wish(1, quality=70), seconds=0, frames=10) as child:
        assert child.says("answer")["accepted"]
        assert child.says("quality") in (90, 70)
        child.says("quality")
        assert child.says("quality") == 70
    with vehicle_process(wish(2, quality=50)) as child:
        assert child.says("restored") == {**_answer(1), "accepted": True}
        assert child.says("answer")["accepted"]
        child.says("quality")
        assert child.says("quality") == 50
    with vehicle_process(wish(2, quality=50)) as child:
        assert child.says("restored")["accepted"], "one death may be somebody switching the vehicle off"
        assert child.says("answer") == {**_answer(2), "accepted": True}
        child.says("quality")
        assert child.says("quality") == 50
    with vehicle_process(wish(2, quality=50)) as child:
        refused = child.says("restored")
        assert (refused["version"], refused["accepted"]) == (2, False)
        assert "ended 2 times other than in order" in refused["reason"]
        assert child.says("answer") == refused, "the broker delivers it again: it is not tried again"
        child.says("quality")
        assert child.says("quality") == 70
    with vehicle_process(wish(3, quality=60)) as child:
        assert child.says("answer")["accepted"], "a better wish is taken"


def test_ends_in_order_are_not_held_against_a_wish(vehicle_process: Callable[..., Any]) -> None:
    with vehicle_process(wish(1), end="terminate") as child:
        assert child.says("answer")["accepted"]
        child.says("quality")
    for _ in range(2):
        with vehicle_process(end="terminate") as child:
            assert child.says("restored")["accepted"]
            child.says("quality")


def test_a_confirmed_wish_is_not_on_trial_any_more(vehicle_process: Callable[..., Any]) -> None:
    with vehicle_process(wish(1), seconds=0.1, frames=10) as child:
        assert child.says("answer")["accepted"]
        while not (child.says("version") == 1 and _confirmed(child)):
            pass
    for _ in range(2):
        with vehicle_process() as child:
            assert child.says("restored")["accepted"]


def _confirmed(child: Child) -> bool:
    folder = Path(child.process.args[3])  # type: ignore[index, arg-type]
    return DesiredStore(folder / "state").confirmed is not None


def _answer(version: int) -> dict[str, Any]:
    return {"v": 1, "version": version, "bundle": "small@1.0.0", "reason": ""}


@pytest.fixture
def live(bundle: Any, store: Any, tmp_path: Path) -> Any:
    """`live(probation, sources)`: a LiveConfig, its vehicle, and what it reported later."""
    made = []

    def build(probation: Probation, source: Any = None) -> Any:
        (tmp_path / "in").mkdir(exist_ok=True)
        for number in range(20):
            picture = encode_png(np.full((8, 8, 3), number, np.uint8))
            (tmp_path / "in" / f"{number}.png").write_bytes(picture)
        later: list[Reported] = []
        vehicle = make(bundle, store, tmp_path, source or tmp_path / "in", NONE)
        made.append(vehicle)
        return (
            LiveConfig(
                vehicle,
                config=vehicle.config,
                state_dir=tmp_path,
                probation=probation,
                report=later.append,
            ),
            vehicle,
            later,
        )

    yield build
    for vehicle in made:
        vehicle.close()


def test_a_wish_is_on_disk_before_it_is_applied(live: Any, tmp_path: Path) -> None:
    config, vehicle, _later = live(LONG)
    seen = []
    real = vehicle.apply

    def apply(fresh: VehicleConfig) -> None:
        seen.append(DesiredStore(tmp_path).trial)
        real(fresh)

    vehicle.apply = apply
    assert config.take_desired(wish(4)).accepted
    assert seen == [Trial(wish(4), starts=1)]


def test_a_wish_that_cannot_be_kept_is_not_applied(live: Any, tmp_path: Path) -> None:
    config, vehicle, _later = live(LONG)
    (tmp_path / "trial.tmp").mkdir()
    answer = config.take_desired(wish(4))
    assert not answer.accepted and "cannot be kept" in answer.reason
    assert vehicle._pending is None


def test_memory_that_grows_takes_a_wish_back_at_once(live: Any, tmp_path: Path) -> None:
    give_back_memory()
    config, vehicle, later = live(Probation(seconds=600, growth_bytes=32 * 1024**2))
    assert config.take_desired(wish(1, quality=70)).accepted
    config.watch()
    assert later == []
    hoard = np.ones(512 * 1024**2, np.uint8)  # far more than what is freed meanwhile
    config.watch()
    (report,) = later
    assert (report.version, report.accepted) == (1, False)
    assert "memory grew by" in report.reason and "at most 32 MiB" in report.reason
    vehicle.run(threading.Event())
    assert vehicle.config.encode.jpeg_quality == 90 and config.desired_version == -1
    again = config.take_desired(wish(1, quality=70))
    assert not again.accepted and again.reason == report.reason
    assert DesiredStore(tmp_path).trial.refused == report.reason  # type: ignore[union-attr]
    assert hoard.size


def test_frames_that_come_and_are_not_scored_take_a_wish_back(live: Any) -> None:
    good, empty = (np.zeros((side, side, 3), np.uint8) for side in (8, 0))
    camera = ListSource(chain(repeat(good, 20), repeat(empty)), live=True, period_s=0.01)
    config, vehicle, later = live(Probation(seconds=600, unscored_s=0.3), [camera])
    stop = threading.Event()
    thread = threading.Thread(target=vehicle.run, args=(stop,))
    thread.start()
    assert config.take_desired(wish(1)).accepted
    deadline = time.monotonic() + 20
    while not later and time.monotonic() < deadline:
        config.watch()
        time.sleep(0.02)
    stop.set()
    thread.join()
    assert not later[0].accepted and "frames came with it and none was scored" in later[0].reason


def test_a_bundle_that_is_taken_back_gives_way_to_the_vehicles_own(
    live: Any, make_bundle: Any, bundle: Any, tmp_path: Path
) -> None:
    give_back_memory()
    make_bundle(tmp_path / "bundles" / "new", seed=9, version="1.1.0")
    _config, vehicle, later = live(LONG)
    own = vehicle.config.model_copy(update={"bundles": tmp_path / "bundles", "bundle": bundle.path})
    limits = Probation(seconds=600, growth_bytes=32 * 1024**2)
    config = LiveConfig(vehicle, config=own, state_dir=tmp_path, probation=limits, report=later.append)
    assert config.take_desired(Desired(version=1, bundle="small@1.1.0")).accepted
    vehicle._take_over()
    assert vehicle.scorer.label == "small@1.1.0"
    hoard = np.ones(512 * 1024**2, np.uint8)
    config.watch()
    vehicle._take_over()
    assert vehicle.scorer.label == "small@1.0.0" and not later[0].accepted and hoard.size


def test_what_was_wrong_before_a_wish_is_not_blamed_on_it() -> None:
    limits, mib = Probation(unscored_s=20), 1024**2
    ill, well = Vitals(5, 30.0, 100 * mib), Vitals(5, 0.1, 100 * mib)
    later = Vitals(5, 60.0, 400 * mib)
    assert harm(later, ill, limits) == ""
    assert "none was scored for 60 s" in harm(later, well, limits)
    assert "memory grew by 600 MiB" in harm(Vitals(900, 0.0, 700 * mib), ill, limits)


@pytest.mark.parametrize(
    ("error", "starts"),
    [(None, 0), (SourceError("gone"), 0), (EngineError("gave up"), 1), (MemoryError(), 1)],
)
def test_only_an_end_that_a_wish_may_have_caused_is_held_against_it(
    live: Any, tmp_path: Path, error: BaseException | None, starts: int
) -> None:
    config, _vehicle, _later = live(LONG)
    assert config.take_desired(wish(1)).accepted
    config.close(error)
    trial = DesiredStore(tmp_path).trial
    assert trial is not None and trial.starts == starts


def test_a_version_cannot_lock_out_later_ones(live: Any, tmp_path: Path) -> None:
    config, _vehicle, _later = live(AT_ONCE)
    for version in (9007199254740993123, MAX_FIRST_VERSION + 1):
        answer = config.take_desired(wish(version))
        assert not answer.accepted and "the highest that may follow" in answer.reason
        assert answer.version == 0, "a fleet that goes on from what is reported is not led astray"
    assert config.take_desired(wish(MAX_FIRST_VERSION)).accepted
    assert not config.take_desired(wish(MAX_FIRST_VERSION + MAX_RISE + 1)).accepted
    assert config.take_desired(wish(MAX_FIRST_VERSION + 1)).accepted
    assert config.take_desired(wish(MAX_FIRST_VERSION + 1 + MAX_RISE)).accepted
    (tmp_path / "desired.json").write_text(wish(2**60).model_dump_json())
    again, _vehicle, _later = live(AT_ONCE)
    assert again.restore() is None, "a version of an earlier release that locks a vehicle is set aside"
    assert again.take_desired(wish(1)).accepted


def test_a_kept_wish_of_an_earlier_release_that_names_a_path_is_refused(live: Any, tmp_path: Path) -> None:
    table = {"degrade": {"temperature_c": 80, "temperature_file": "/dev/zero"}}
    (tmp_path / "desired.json").write_text(Desired(version=8, config=table).model_dump_json())
    config, vehicle, _later = live(LONG)
    answer = config.restore()
    assert not answer.accepted and "cannot set degrade.temperature_file" in answer.reason
    assert vehicle._pending is None
    assert config.take_desired(Desired(version=8, config=table)) == answer
    assert config.take_desired(wish(9)).accepted


def test_a_wish_that_cannot_be_loaded_leaves_the_one_before_it_on_trial(live: Any, tmp_path: Path) -> None:
    config, _vehicle, _later = live(LONG)
    assert config.take_desired(wish(1)).accepted
    assert not config.take_desired(Desired(version=2, bundle="gone@1.0.0")).accepted
    trial = DesiredStore(tmp_path).trial
    assert trial is not None and trial.desired == wish(1)
    assert config.take_desired(wish(1)).accepted and config.take_desired(wish(2)).accepted


@pytest.mark.parametrize("damage", ["{", '{"desired": {}}', '{"desired": {"version": 3}, "starts": "x"}'])
def test_a_damaged_trial_is_set_aside(live: Any, tmp_path: Path, damage: str) -> None:
    (tmp_path / "trial.json").write_text(damage)
    config, _vehicle, _later = live(LONG)
    assert config.restore() is None
    assert (tmp_path / "trial.damaged").read_text() == damage
