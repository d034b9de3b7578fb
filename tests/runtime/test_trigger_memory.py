"""What triggers learned survives a restart, a kill -9 and a damaged file, and belongs to one bundle."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vehicle_support import make, run, scored_frame

from misfire_runtime.state.statistics import unpack_sketch
from misfire_runtime.triggers.memory import TriggerMemory
from misfire_runtime.triggers.rates import TargetRate
from misfire_runtime.triggers.scored_frame import ScoredFrame
from misfire_runtime.vehicle import pipeline

RATE = (
    '[triggers.telling]\nkind = "target-rate"\nrate = 0.2\nwarm_up = 10\nwindow = 60\n[random]\nrate = 0.0\n'
)
GROUPED = RATE + '[triggers.either]\nkind = "any"\nof = ["telling"]\n'


def seen(value: float, count: int) -> ScoredFrame:
    scored: Any = SimpleNamespace(scores={"s": value})
    return scored_frame(scored, time_s=float(count), count=count)


def fires(trigger: TargetRate, values: list[float]) -> list[bool]:
    found = []
    for count, value in enumerate(values):
        frame = seen(value, count)
        found.append(trigger.look(frame) is not None)
        if found[-1]:
            trigger.taken(frame)
    return found


def test_a_restarted_trigger_decides_as_one_that_never_stopped() -> None:
    rng = random.Random(3)
    values = [rng.lognormvariate(0, 1) for _ in range(3000)]
    whole = TargetRate("t", score="s", rate=0.05, window=400)
    expected = fires(whole, values)
    first, second = (TargetRate("t", score="s", rate=0.05, window=400) for _ in range(2))
    before = fires(first, values[:1234])
    assert second.relearn(json.loads(json.dumps(first.learned())))
    assert before + fires(second, values[1234:]) == expected and any(expected[1234:])


@pytest.mark.parametrize("change", [{"rate": 0.1}, {"score": "other"}, {"window": 500}])
def test_what_was_learned_on_other_terms_is_left(change: dict[str, Any]) -> None:
    terms: dict[str, Any] = {"score": "s", "rate": 0.05, "window": 400}
    learned = TargetRate("t", **terms)
    fires(learned, [1.0] * 100)
    other = TargetRate("t", **{**terms, **change})
    assert not other.relearn(learned.learned()) and other.threshold == float("inf")


def _pictures(folder: Path, count: int, clip: Path) -> Path:
    """Frames of the real drive as files."""
    import cv2

    folder.mkdir()
    capture = cv2.VideoCapture(str(clip))
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:03}.jpg"), capture.read()[1])
    capture.release()
    return folder


def _run_until(vehicle: Any, frames: int) -> None:
    stop, choose, count = threading.Event(), vehicle.selector.select, itertools.count(1)

    def counting(*arguments: Any, **keywords: Any) -> Any:
        if next(count) >= frames:
            stop.set()
        return choose(*arguments, **keywords)

    vehicle.selector.select = counting
    run(vehicle, stop)


@pytest.mark.slow
@pytest.mark.parametrize("text", [RATE, GROUPED])
def test_an_interrupted_run_chooses_what_an_uninterrupted_one_does(
    bundle: Any, new_store: Any, tmp_path: Path, clip: Path, text: str
) -> None:
    folder = _pictures(tmp_path / "in", 120, clip)
    whole, halves = new_store(), new_store()
    run(make(bundle, whole, tmp_path / "whole", folder, text))
    _run_until(make(bundle, halves, tmp_path / "halves", folder, text), 70)
    run(make(bundle, halves, tmp_path / "halves", folder, text))
    assert [offer.frame for offer in halves.offers] == [offer.frame for offer in whole.offers]
    assert len(whole.offers) > 10
    assert not (tmp_path / "halves" / "state" / "triggers.json").exists(), (
        "a recording that ended leaves none"
    )


def test_after_kill_9_it_knows_its_threshold(
    bundle: Any, store: Any, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _pictures(tmp_path / "in", 60, clip)
    monkeypatch.setattr(pipeline, "TICK_S", 0.0)
    monkeypatch.setattr(pipeline, "REMEMBER_S", 0.0)
    file = tmp_path / "state" / "triggers.json"
    pid = os.fork()
    if pid == 0:
        try:
            vehicle = make(bundle, store, tmp_path, folder, RATE)
            frames = vehicle.selector.select

            def slow(*arguments: Any, **keywords: Any) -> Any:
                time.sleep(0.02)
                return frames(*arguments, **keywords)

            vehicle.selector.select = slow  # type: ignore[method-assign]
            run(vehicle)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while _seen_in(file) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    learned = json.loads(file.read_text())["triggers"]["telling"]
    vehicle = make(bundle, store, tmp_path, folder, RATE)
    assert vehicle.selector.thresholds["telling"] == learned["threshold"]
    fresh = make(bundle, store, tmp_path / "other", folder, RATE)
    assert fresh.selector.thresholds["telling"] != learned["threshold"]
    ignoring = make(bundle, store, tmp_path, folder, RATE, resume=False)
    assert ignoring.selector.thresholds == fresh.selector.thresholds
    for made in (vehicle, fresh, ignoring):
        made.close()


def _seen_in(file: Path) -> int:
    return int(json.loads(file.read_text())["triggers"]["telling"]["seen"]) if file.exists() else 0


def _written(folder: Path, bundle: Any, store: Any, source: Path) -> Path:
    """A file as a stopped vehicle leaves it."""
    vehicle = make(bundle, store, folder, source, RATE)
    trigger: Any = vehicle.selector.triggers[0]
    for count in range(64):
        scored: Any = SimpleNamespace(scores={"entropy": count / 64})
        trigger.look(scored_frame(scored, count=count))
    TriggerMemory(folder / "state" / "triggers.json").save(vehicle.scorer.label, vehicle.selector.learned())
    vehicle.close()
    return folder / "state" / "triggers.json"


DAMAGE: dict[str, tuple[Any, list[str]]] = {
    "half": (lambda text: text[: len(text) // 2], ["state_damaged"]),
    "empty": (lambda _text: "", ["state_damaged"]),
    "list": (lambda _text: "[1]", ["state_damaged"]),
    "sketch": (lambda text: text.replace('"older": "', '"older": "AAAA'), ["trigger_forgot"]),
    "tokens": (lambda text: text.replace('"tokens": ', '"tokens": -'), ["trigger_forgot"]),
    "field": (lambda text: text.replace('"seen"', '"saw"'), ["trigger_forgot"]),
    "bundle": (lambda text: text.replace("small@1.0.0", "small@9.9.9"), []),
}


@pytest.fixture
def left(bundle: Any, store: Any, tmp_path: Path, clip: Path) -> Any:
    """Starts a vehicle again on what a stopped one left: its threshold."""
    source = _pictures(tmp_path / "in", 1, clip)
    _written(tmp_path, bundle, store, source)

    def threshold() -> float:
        vehicle = make(bundle, store, tmp_path, source, RATE)
        vehicle.close()
        return float(vehicle.selector.thresholds["telling"])

    return threshold


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_damaged_or_of_another_bundle_is_ignored(
    left: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file = tmp_path / "state" / "triggers.json"
    good = file.read_text()
    known = json.loads(good)["triggers"]["telling"]["threshold"]
    assert left() == known
    change, events = DAMAGE[damage]
    file.write_text(change(good))
    assert file.read_text() != good
    caplog.clear()
    assert left() != known
    assert [record.message for record in caplog.records] == events


def test_a_disk_that_takes_nothing_costs_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    TriggerMemory(tmp_path / "not-there" / "triggers.json").save("b@1", {})
    assert [record.message for record in caplog.records] == ["triggers_unwritable"]


def test_a_change_of_other_tables_costs_nothing_learned(
    bundle: Any, store: Any, tmp_path: Path, clip: Path
) -> None:
    source = _pictures(tmp_path / "in", 30, clip)
    _written(tmp_path, bundle, store, source)
    vehicle = make(bundle, store, tmp_path, source, RATE)
    before = vehicle.selector.thresholds["telling"]
    vehicle.apply(vehicle.config.model_copy(update={"limits": vehicle.config.limits}))
    vehicle._take_over()
    assert vehicle.selector.thresholds["telling"] == before
    vehicle.close()


def test_a_sketch_that_is_none_is_refused() -> None:
    for text in ("", "AAAA", "not base64!"):
        with pytest.raises(ValueError, match=r"sketch|base64|padding"):
            unpack_sketch(text, accuracy=0.002)
