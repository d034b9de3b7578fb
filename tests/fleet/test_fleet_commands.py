"""`misfire fleet ...` as a person or a supervisor runs it: processes, signals, exit codes, errors."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fleet.conftest import CollectorMaker, eventually

from misfire_fleet.simulate.samples import Picture, SampleFactory, read_pictures
from misfire_fleet.simulate.simulator import FleetSimulator
from misfire_fleet.simulate.vehicle import Faults, Plan
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_runtime.messages import Stored
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import make_offer
from proving_ground.client import FLEET, Vehicle
from proving_ground.detectors import lamps, write_detection_bundle
from proving_ground.services import Mosquitto, free_port

pytestmark = pytest.mark.slow

VehicleMaker = Callable[..., Vehicle]
Numbered = Callable[[int], bytes]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "misfire_runtime.cli", "fleet", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def fleet_dir(tmp_path: Path) -> Path:
    return tmp_path / "fleet"


@pytest.fixture
def collect(fleet_dir: Path, broker: Mosquitto) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `misfire fleet collect` and waits until it is healthy."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        port = free_port()
        arguments = ["--broker", broker.url, "--fleet", FLEET, "--fleet-dir", str(fleet_dir)]
        process = subprocess.Popen(
            command("collect", *arguments, "--metrics-port", str(port), *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        process.metrics = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
        assert eventually(lambda: healthy(port), timeout_s=60)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def test_sigterm_lets_a_running_transfer_complete_and_the_account_is_printed(
    collect: Callable[..., subprocess.Popen[str]], vehicle: VehicleMaker, fleet_dir: Path, jpeg: Numbered
) -> None:
    process = collect()
    car = vehicle()
    assert isinstance(car.upload(jpeg(1)), Stored)
    text = httpx.get(f"{process.metrics}/metrics").text  # type: ignore[attr-defined]
    assert 'misfire_verdicts_total{cause="stored",verdict="stored"} 1.0' in text
    car.offer(make_offer(jpeg(2)))
    send = car.hear_send()
    process.send_signal(signal.SIGTERM)
    car.send(jpeg(2), send)
    assert isinstance(car.hear(), Stored)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["verdicts"] == {"send": 2, "stored": 2}
    with Store.open_folder(fleet_dir) as store:
        assert store.totals().samples == 2


def test_kill_9_in_mid_transfer_costs_nothing_once_the_vehicle_offers_again(
    collect: Callable[..., subprocess.Popen[str]], vehicle: VehicleMaker, fleet_dir: Path, jpeg: Numbered
) -> None:
    process = collect()
    car = vehicle()
    assert isinstance(car.upload(jpeg(1)), Stored)
    car.offer(make_offer(jpeg(2)))
    send = car.hear_send()
    car.send(jpeg(2)[:50_000], send)
    process.kill()
    process.wait(10)
    collect()
    assert isinstance(car.upload(jpeg(2)), Stored)
    assert isinstance(car.upload(jpeg(1)), Stored)
    with Store.open_folder(fleet_dir) as store:
        assert {store.read_blob(row.id) for row in store.newest()} == {jpeg(1), jpeg(2)}


def test_a_broker_that_is_away_is_waited_for_and_reported(fleet_dir: Path) -> None:
    port = free_port()
    nowhere = f"mqtt://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        command(
            *("collect", "--broker", nowhere, "--fleet-dir", str(fleet_dir), "--json"),
            *("--metrics-port", str(port)),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def answered() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 503
        except httpx.HTTPError:
            return False

    try:
        assert eventually(answered, timeout_s=60)
        assert "broker does not deliver" in httpx.get(f"http://127.0.0.1:{port}/healthz").text
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0
        lines = [json.loads(line) for line in err.splitlines() if line.startswith(b"{")]
        lost = [line for line in lines if line["event"] == "broker_lost"]
        assert lost and lost[0]["level"] == "warning" and "127.0.0.1" in lost[0]["problem"]
    finally:
        process.kill()
        process.communicate()


def test_serve_says_where_it_is_and_who_may_come_in(fleet_dir: Path) -> None:
    process = subprocess.Popen(
        command("serve", "--fleet-dir", str(fleet_dir), "--port", "0", "--allowed-host", "console.example"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removeprefix("console at ")
        assert "be the first" in process.stdout.readline()
        link = process.stdout.readline().strip()
        assert link.startswith(f"{address}welcome#")
        assert eventually(lambda: _answers(address), timeout_s=60)
        body = {"link": link.partition("#")[2], "name": "root", "password": "correct horse battery"}
        cookies = dict(httpx.post(f"{address}api/welcome", json=body, timeout=30).cookies)
        page = httpx.get(f"{address}uploads", cookies=cookies)
        assert "No uploads yet" in page.text
        for host, status in (("console.example", 200), ("other.example", 400)):
            answer = httpx.get(f"{address}uploads", headers={"Host": host}, cookies=cookies)
            assert answer.status_code == status
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}healthz").status_code == 200
    except httpx.HTTPError:
        return False


def test_stored_samples_are_counted_held_deleted_and_audited_from_the_command_line(
    fleet_dir: Path, jpeg: Numbered
) -> None:
    with Store.open_folder(fleet_dir) as store:
        store.add_many(
            [
                NewSample(make_offer(jpeg(n), vehicle=f"car-{n % 2}"), jpeg(n), 1280, 720, "c")
                for n in range(4)
            ]
        )
    where = ("--fleet-dir", str(fleet_dir))
    assert json.loads(run("status", *where, "--json").stdout)["samples"] == 4
    assert run("hold", "case-7", "--vehicle", "car-1", "--reason", "accident", *where).returncode == 0
    planned = json.loads(
        run("delete", "--from", "2001-01-01", "--reason", "asked", "--dry-run", *where, "--json").stdout
    )
    assert (planned["deleted"], planned["held"], planned["dry_run"]) == (2, 2, True)
    done = json.loads(run("delete", "--from", "2001-01-01", "--reason", "asked", *where, "--json").stdout)
    assert (done["deleted"], done["blobs_removed"]) == (2, 2)
    assert "case-7: open; accident" in run("holds", *where).stdout
    assert run("release", "case-7", *where).returncode == 0
    kept = json.loads(run("retention", "--max-bytes", "0", *where, "--json").stdout)
    assert kept["deleted"] == 2
    actions = [entry["action"] for entry in json.loads(run("audit", *where, "--json").stdout)["audit"]]
    assert actions == ["retention", "release", "delete", "hold"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("delete", "--reason", "oops"), "name a sample, a vehicle or a time"),
        (("delete", "--from", "yesterday", "--reason", "x"), "--from 'yesterday': expected a time"),
        (("release", "nothing"), "no open hold"),
        (("collect", "--broker", "http://x"), "expected mqtt://HOST:PORT"),
        (("status", "--database", "mysql://x/y"), "expected sqlite:///PATH or postgresql"),
        (("simulate", "--images", "/nowhere"), "no JPEG or PNG"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_1(
    fleet_dir: Path, arguments: tuple[str, ...], message: str
) -> None:
    Store.open_folder(fleet_dir).close()
    where = () if arguments[0] == "simulate" else ("--fleet-dir", str(fleet_dir))
    done = run(*arguments, *where)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_version_of_mqtt_that_does_not_exist_is_an_error_that_names_those_that_do() -> None:
    done = run("collect", "--protocol", "4")
    assert done.returncode == 2
    assert "--protocol" in done.stderr
    assert "'5', '3.1.1'" in done.stderr


def test_simulated_vehicles_settle_everything_they_capture_in_spite_of_faults(
    start_collector: CollectorMaker, store: Store, address: BrokerConfig, jpeg: Numbered
) -> None:
    start_collector(stall_s=0.5)
    plan = Plan(
        fleet=FLEET,
        vehicles=20,
        rate=40.0,
        duration_s=3.0,
        reoffer_s=1.0,
        drain_s=60.0,
        seed=7,
        faults=Faults(drop=0.03, repeat=0.05, reorder=0.05, corrupt=0.01, reconnect_per_s=0.03),
    )
    samples = SampleFactory([Picture(jpeg(0), "image/jpeg")], manifest=None, seed=7)
    simulator = FleetSimulator(address, plan, samples=samples)
    counts = simulator.run(threading.Event())
    assert counts.faults > 0
    assert counts.captured > 50
    assert simulator.pending == 0
    assert counts.captured == counts.stored + counts.declined + counts.rejected + counts.evicted
    rows = store.newest(500)
    assert len(rows) >= counts.stored
    assert all(store.read_blob(row.id) == samples.bytes_of(row.offer.frame) for row in rows)


def test_simulate_prints_its_account(
    start_collector: CollectorMaker, broker: Mosquitto, tmp_path: Path, photo: bytes
) -> None:
    start_collector()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(photo)
    options = ("--vehicles", "5", "--rate", "20", "--seconds", "2", "--fleet", FLEET, "--json")
    done = run("simulate", "--broker", broker.url, "--images", str(tmp_path / "images"), *options)
    account = json.loads(done.stdout)
    assert account["stored"] == account["captured"] > 0
    assert account["p99_s"] > 0


def test_every_minted_sample_is_another_file_with_the_same_pixels(photo: bytes, tmp_path: Path) -> None:
    import numpy as np

    from misfire_runtime.preprocess import decode_image, encode_png

    (tmp_path / "b.png").write_bytes(encode_png(decode_image(photo)[:40, :60]))
    (tmp_path / "a.jpeg").write_bytes(photo)
    samples = SampleFactory(read_pictures(tmp_path), manifest=None, seed=3)
    offers = [samples.offer(number, vehicle="car-1", monotonic=time.monotonic()) for number in range(20)]
    assert len({offer.id for offer in offers}) == 20
    for number in (2, 3):
        assert np.array_equal(
            decode_image(samples.bytes_of(number)), decode_image(samples.bytes_of(number + 2))
        )


def test_simulated_detectors_offer_boxes_inside_of_their_pictures(tmp_path: Path) -> None:
    manifest = write_detection_bundle(tmp_path / "bundle").manifest
    pictures = [Picture(encode_png(lamps(width=w, height=60)), "image/png") for w in (80, 120)]
    samples = SampleFactory(pictures, manifest=manifest, seed=3)
    for number in range(12):
        prediction = samples.offer(number, vehicle="car-1", monotonic=0.0).prediction
        width, height = (80, 120)[number % 2], 60
        assert prediction["size"] == [width, height]
        boxes: Any = prediction["boxes"]
        scores = [box["score"] for box in boxes]
        assert scores == sorted(scores, reverse=True)
        for box in boxes:
            x0, y0, x1, y1 = box["box"]
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def test_few_heaps_are_kept_where_the_c_library_can_be_told() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from misfire_fleet.collector.malloc import limit_heaps as h; print(h())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    glibc = platform.libc_ver()[0] == "glibc"
    assert told == str(glibc)


@pytest.mark.parametrize("command", ["status", "check", "holds", "audit"])
def test_a_folder_without_a_database_is_an_error_not_an_empty_fleet(tmp_path: Path, command: str) -> None:
    result = run(command, "--fleet-dir", str(tmp_path / "flete"))
    assert result.returncode == 1 and "no such database; name the fleet's folder" in result.stderr
    assert not (tmp_path / "flete").exists()
