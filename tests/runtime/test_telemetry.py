"""Metrics and health over real HTTP, mergeable sketches, log lines, and the ladder."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ddsketch import DDSketch
from ddsketch.pb.ddsketch_pb2 import DDSketch as SketchMessage
from ddsketch.pb.proto import DDSketchProto
from prometheus_client.parser import text_string_to_metric_families
from vehicle_support import EVERY, NONE, camera, make

from misfire_runtime.clock import wall_time
from misfire_runtime.errors import ConfigError, SourceError
from misfire_runtime.messages import Clock, Counters, Place, Telemetry, decode, encode
from misfire_runtime.service.degrade import STEPS, DegradationLadder, DegradeTable, read_temperature_c
from misfire_runtime.service.logs import JsonLines, logs_to
from misfire_runtime.service.systemd import ServiceNotifier
from misfire_runtime.spool.spool import Spool
from misfire_runtime.state.statistics import SKETCH_ACCURACY
from misfire_runtime.testing import ListSource, make_offer
from misfire_runtime.vehicle import pipeline, telemetry
from misfire_runtime.vehicle.telemetry import TelemetryServer, health, heartbeat, place_of

pytestmark = pytest.mark.slow


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def driven(bundle: Any, store: Any, tmp_path: Path, clip: Path) -> Any:
    """A vehicle that has seen the clip."""
    vehicle = make(bundle, store, tmp_path, clip, "[random]\nrate = 0.05\nseed = 1")
    vehicle.run(threading.Event())
    yield vehicle
    vehicle.close()


def test_metrics_and_health_are_served(driven: Any, store: Any) -> None:
    server = TelemetryServer(
        driven,
        counters=store.counters,
        host="127.0.0.1",
        port=0,
        uplink_counts=lambda: {"reoffers": 3, "ignored": 2},
    )
    try:
        status, text = get(server.port, "/metrics")
        assert status == 200
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert samples["misfire_frames_total",] == 221
        assert samples["misfire_captured_total",] == len(store.samples)
        assert samples["misfire_pending",] == len(store.samples)
        assert samples["misfire_source_total", "drive.mp4", "read"] == 221
        assert samples["misfire_uplink_total", "reoffers"] == 3
        assert samples["misfire_uplink_total", "ignored"] == 2
        assert samples["misfire_score", "0.5", "entropy"] > 0
        assert samples["misfire_latency_ms", "0.99"] >= samples["misfire_latency_ms", "0.5"] > 0
        status, body = get(server.port, "/healthz")
        assert status == 200 and json.loads(body)["ok"]
        driven.statistics.last_frame_s -= 100
        assert get(server.port, "/healthz")[0] == 200, "a recording at its end is not ill"
        driven._finished = False
        driven.statistics.last_frame_s = time.monotonic() - 100
        status, body = get(server.port, "/healthz")
        assert status == 503 and "no frame was scored for 100 s" in json.loads(body)["problems"][0]
        assert get(server.port, "/secret")[0] == 404
    finally:
        server.close()


def test_health_shows_why_nothing_gets_through_and_is_well_all_the_same(driven: Any, store: Any) -> None:
    problem = "mqtts://h:8883: the broker does not trust this client"
    for vehicle, status in ((driven, 200), (None, 503)):
        server = TelemetryServer(
            vehicle, counters=store.counters, host="127.0.0.1", port=0, uplink=lambda: problem
        )
        try:
            answer, body = get(server.port, "/healthz")
            assert answer == status and json.loads(body)["uplink"] == problem
        finally:
            server.close()


def test_health_is_false_within_seconds_of_a_frame_path_that_hangs(
    bundle: Any, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert telemetry.STANDING_S <= 5, "seconds, not half a minute"
    monkeypatch.setattr(telemetry, "STANDING_S", 1.0)
    vehicle = make(bundle, store, tmp_path, [camera(period_s=0.01)], EVERY)
    real, hang, let_go, stop = vehicle.scorer.score, threading.Event(), threading.Event(), threading.Event()

    def score(image: Any) -> Any:
        if hang.is_set():  # a driver that does not return
            assert let_go.wait(20)
        return real(image)

    vehicle.scorer.score = score  # type: ignore[method-assign]
    thread = threading.Thread(target=vehicle.run, args=(stop,))
    thread.start()
    try:
        assert wait_for(lambda: vehicle.statistics.frames > 20 and health(vehicle)["ok"])
        hang.set()
        assert wait_for(lambda: "the frame path has stood still for" in str(health(vehicle)["problems"]))
        let_go.set()
        assert wait_for(lambda: health(vehicle)["ok"])
    finally:
        let_go.set()
        stop.set()
        thread.join()
        vehicle.close()


def test_health_names_a_camera_that_failed_while_another_goes_on(
    bundle: Any, store: Any, tmp_path: Path
) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    lost = ListSource([picture], name="rear", live=True, failure=SourceError("rear: unplugged"))
    vehicle = make(bundle, store, tmp_path, [camera(period_s=0.01), lost], EVERY)
    stop = threading.Event()
    thread = threading.Thread(target=vehicle.run, args=(stop,))
    thread.start()
    try:
        assert wait_for(lambda: vehicle.statistics.frames > 20)
        assert wait_for(lambda: health(vehicle)["problems"] == ["source rear ended by an error"])
    finally:
        stop.set()
        thread.join()
        vehicle.close()


def test_health_is_false_when_frames_come_and_none_is_scored(
    bundle: Any, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "STANDING_S", 0.5)
    monkeypatch.setattr(pipeline, "MAX_ENGINE_FAILURES", 10**9)
    vehicle = make(bundle, store, tmp_path, [camera(period_s=0.01)], EVERY)
    stop = threading.Event()
    thread = threading.Thread(target=vehicle.run, args=(stop,))
    thread.start()
    try:
        assert wait_for(lambda: vehicle.statistics.frames > 20)
        vehicle.scorer.engine.close()
        assert wait_for(
            lambda: "frames come, but no frame was scored for" in str(health(vehicle)["problems"])
        )
    finally:
        stop.set()
        thread.join()
        vehicle.close()


def test_a_vehicle_that_scores_only_its_random_stream_is_well(
    bundle: Any, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "STANDING_S", 0.3)
    vehicle = make(bundle, store, tmp_path, [camera(period_s=0.01)], NONE + "[degrade]\nenabled = false\n")
    vehicle.ladder.step = 4
    stop = threading.Event()
    thread = threading.Thread(target=vehicle.run, args=(stop,))
    thread.start()
    try:
        assert wait_for(lambda: vehicle.statistics.skipped > 100)
        assert vehicle.statistics.frames == 0
        assert wait_for(lambda: health(vehicle, silence_s=0.5)["ok"])
    finally:
        stop.set()
        thread.join()
        vehicle.close()


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_port_that_is_taken_is_said(driven: Any, store: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot listen"):
            TelemetryServer(driven, counters=store.counters, host="127.0.0.1", port=taken.getsockname()[1])


def test_a_heartbeats_sketches_merge_across_vehicles(driven: Any, store: Any, tmp_path: Path) -> None:
    beat = decode(Telemetry, encode(heartbeat(driven, store.counters(), disk=tmp_path)))
    assert beat.counters.frames == 221 and beat.disk_free_bytes > 0 and beat.latency_ms_p99 > 0
    merged = DDSketch(relative_accuracy=SKETCH_ACCURACY)
    for _vehicle in range(3):
        message = SketchMessage()
        message.ParseFromString(base64.b64decode(beat.sketches["entropy"]))
        merged.merge(DDSketchProto.from_proto(message))
    assert merged.count == 3 * 221
    driven.statistics.begin_stretch()
    assert heartbeat(driven, store.counters(), disk=tmp_path).sketches == {}


def test_a_threshold_without_a_number_and_a_disk_that_is_gone_do_not_end_the_frame_path(
    driven: Any, store: Any, tmp_path: Path
) -> None:
    for value in (float("nan"), float("inf")):
        driven.selector.triggers[0]._threshold = value
        beat = decode(Telemetry, encode(heartbeat(driven, store.counters(), disk=tmp_path / "gone")))
        assert beat.thresholds == {} and beat.disk_free_bytes == 0


def test_a_sketch_answers_within_its_accuracy(driven: Any) -> None:
    driven.statistics.begin_stretch()
    values = np.random.default_rng(0).gamma(2.0, 1.0, 5000)
    for value in values:
        driven.statistics.frame({"s": float(value)}, latency_s=0.001)
    for level in (0.1, 0.5, 0.99):
        assert driven.statistics.quantiles(level)["s"] == pytest.approx(np.quantile(values, level), rel=0.03)


def test_a_full_disk_is_a_problem_until_the_store_takes_samples_again(
    bundle: Any, store: Any, tmp_path: Path
) -> None:
    vehicle = make(bundle, store, tmp_path, [camera(period_s=0.01)], EVERY)
    stop = threading.Event()
    thread = threading.Thread(target=vehicle.run, args=(stop,))
    thread.start()
    try:
        assert wait_for(lambda: vehicle.statistics.spooled > 0 and health(vehicle)["ok"])
        store.full = True
        assert wait_for(lambda: "spool: no room" in str(health(vehicle)["problems"]))
        store.full = False
        assert wait_for(lambda: health(vehicle)["ok"])
    finally:
        stop.set()
        thread.join()
        vehicle.close()


def test_health_names_a_closed_privacy_stage_and_a_full_disk(
    bundle: Any, store: Any, tmp_path: Path, clip: Path
) -> None:
    vehicle = make(bundle, store, tmp_path, clip, EVERY + '[[privacy.blur]]\nmodel = "gone.onnx"\n')
    try:
        state = health(vehicle)
        assert not state["ok"] and "gone.onnx is not there" in state["problems"][0]
    finally:
        vehicle.close()


@pytest.mark.parametrize("unit", ["misfire_runtime", "misfire_fleet"])
def test_log_lines_are_json_or_plain_and_hold_their_fields(unit: str) -> None:
    for form in ("json", "plain"):
        stream = io.StringIO()
        logger = logging.getLogger(f"{unit}.test")
        with logs_to(stream, form=form):  # type: ignore[arg-type]
            logger.warning("source_lost", extra={"fields": {"source": "front", "path": Path("x")}})
        assert not logging.getLogger(unit).handlers and logging.getLogger(unit).propagate
        line = stream.getvalue()
        if form == "json":
            parsed = json.loads(line)
            assert (parsed["event"], parsed["source"], parsed["level"]) == ("source_lost", "front", "warning")
        else:
            assert "warning source_lost source=front path=x" in line
    try:
        raise ValueError("bad")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "crash", None, sys.exc_info())
    assert "ValueError: bad" in json.loads(JsonLines().format(record))["exception"]


def test_systemd_hears_ready_alive_and_stopping(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(5)
        notifier = ServiceNotifier({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "30000000"})
        assert notifier.watchdog_s == 30.0
        assert notifier.ready() and systemd.recv(99) == b"READY=1"
        assert notifier.alive("5 frames") and systemd.recv(99) == b"WATCHDOG=1\nSTATUS=5 frames"
        assert notifier.stopping() and systemd.recv(99) == b"STOPPING=1"
    assert not notifier.alive()
    assert not ServiceNotifier({}).ready()


def test_a_temperature_is_read_from_a_regular_file_and_nothing_else(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").write_text("9" * 1000)
    (tmp_path / "hot").write_text("41500\n")
    began = time.monotonic()
    for odd in (Path("/dev/zero"), tmp_path / "pipe", tmp_path, tmp_path / "huge", tmp_path / "gone"):
        assert read_temperature_c(odd) is None
    assert time.monotonic() - began < 1
    assert read_temperature_c(tmp_path / "hot") == 41.5


def test_the_ladder_is_climbed_step_by_step_and_left_when_it_is_over(tmp_path: Path) -> None:
    now = [0.0]
    heat = tmp_path / "temp"
    heat.write_text("95000\n")
    table = DegradeTable(latency_ms=50, temperature_c=90, temperature_file=heat, hold_s=10)
    ladder = DegradationLadder(table, now=lambda: now[0])
    steps = []
    for _ in range(6):
        steps.append(ladder.update(latency_ms=5, queue_fill=0.0))
        now[0] += 10
    assert steps == [1, 2, 3, 4, 4, 4] and ladder.random_only
    heat.write_text("80000\n")
    assert ladder.update(latency_ms=5, queue_fill=0.0) == 4
    heat.write_text("40000\n")
    assert ladder.update(latency_ms=45, queue_fill=0.0) == 4
    assert ladder.update(latency_ms=5, queue_fill=0.0) == 3
    assert ladder.update(latency_ms=500, queue_fill=0.0) == 3
    now[0] += 10
    assert ladder.update(latency_ms=500, queue_fill=0.0) == 4
    assert [DegradationLadder(table).step, len(STEPS)] == [0, 5]
    ladder.step = 2
    assert [ladder.scores(i) for i in range(4)] == [True, False, True, False]
    ladder.step = 4
    assert not any(ladder.scores(i) for i in range(8))


def test_a_heartbeat_says_where_the_vehicle_is_and_what_waits(driven: Any, tmp_path: Path) -> None:
    driven.context.update("lat=53.55 lon=9.99 region=hamburg")
    beat = decode(Telemetry, encode(heartbeat(driven, Counters(), disk=tmp_path, backlog=(1200, 3.5))))
    assert beat.place == Place(lat=53.55, lon=9.99, region="hamburg")
    assert (beat.pending_bytes, beat.pending_age_s, beat.degradation) == (1200, 3.5, 0)


def test_a_position_that_is_not_on_the_earth_is_none() -> None:
    assert place_of({"lat": 91.0, "lon": 3.0}) is None
    assert place_of({"lat": True, "lon": 3.0, "region": "north"}) == Place(region="north")
    assert place_of({"lat": math.nan, "lon": 0.0}) is None


def test_a_spool_says_how_much_waits_and_for_how_long(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        assert spool.backlog() == (0, 0.0)
        data = b"twelve bytes"
        at = Clock(wall=wall_time() - 60, monotonic=0, boot_id="")
        spool.add(data, make_offer(data, captured_at=at))
        size, age_s = spool.backlog()
    assert size == 12 and 60 <= age_s < 90
