"""`misfire run` as a process: real broker, real collector, signals, restarts, and what it prints."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misfire_runtime import cli
from misfire_runtime.commands.run import overlay
from misfire_runtime.config.tables import VehicleConfig, parse_config
from misfire_runtime.preprocess import encode_png
from misfire_runtime.spool import Spool
from misfire_runtime.vehicle.session import run_vehicle
from proving_ground.services import Mosquitto, mosquitto, stop_process

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def fleet_dir(broker: Mosquitto, tmp_path: Path) -> Iterator[Path]:
    """A collector that has said it is ready; its folder."""
    folder = tmp_path / "fleet"
    command = [sys.executable, "-m", "misfire_runtime.cli", "fleet", "collect", "--broker", broker.url]
    log = (tmp_path / "collector.log").open("wb+")
    process = subprocess.Popen(
        [*command, "--fleet-dir", str(folder), "--fleet", tmp_path.name[:60]], stderr=log, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 60
    while b"ready" not in (tmp_path / "collector.log").read_bytes() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    yield folder
    stop_process(process)
    log.close()


def command(bundle: Any, source: Path, spool: Path, *more: str) -> list[str]:
    base = [sys.executable, "-m", "misfire_runtime.cli", "run", "--bundle", str(bundle.path), "--json"]
    return [*base, "--source", str(source), "--spool", str(spool), "--provider", "cpu", *more]


def misfire_run(*arguments: Any, status: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False
    )
    assert done.returncode == status, done.stderr
    return dict(json.loads(done.stdout)) if done.stdout else {"error": done.stderr}


def pictures(folder: Path, count: int, *, seed: int = 0) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        image = rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)
        (folder / f"{number:05}.png").write_bytes(encode_png(image))
    return folder


def blobs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "blobs").iterdir() if path.is_file()}


def test_a_clip_is_processed_whole_and_its_uploads_arrive_byte_for_byte(
    bundle: Any, broker: Mosquitto, fleet_dir: Path, tmp_path: Path, clip: Path
) -> None:
    options = ("--broker", broker.url, "--fleet", tmp_path.name[:60], "--random-rate", "0.1")
    kept = misfire_run(bundle, clip, tmp_path / "s", "--random-rate", "0.1", "--seed", "4")
    assert kept["frames"] == 221 and kept["counters"]["pending"] == kept["spooled"] > 10
    spooled = {path.name: path for path in (tmp_path / "s" / "samples").iterdir()}
    assert len(spooled) == kept["spooled"]
    sent = misfire_run(bundle, clip, tmp_path / "s", "--seed", "4", "--until-empty", *options)
    assert sent["frames"] == 221 and sent["empty"] and sent["counters"]["pending"] == 0
    assert sent["duplicates"] > 0
    arrived = blobs(fleet_dir)
    assert set(arrived) >= set(spooled) and len(arrived) == sent["counters"]["stored"]
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in arrived.items())


def test_images_arrive_as_the_files_they_were(
    bundle: Any, broker: Mosquitto, fleet_dir: Path, tmp_path: Path, stills: Path
) -> None:
    options = ("--broker", broker.url, "--fleet", tmp_path.name[:60], "--random-rate", "1", "--until-empty")
    options = (*options, "--protocol", "3.1.1")
    result = misfire_run(bundle, stills, tmp_path / "s", *options)
    originals = {path.read_bytes() for path in stills.iterdir()}
    assert set(blobs(fleet_dir).values()) == originals
    assert result["counters"]["stored"] == len(originals)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_order_and_the_next_goes_on(bundle: Any, tmp_path: Path, number: int) -> None:
    folder = pictures(tmp_path / "in", 300)
    process = subprocess.Popen(
        command(bundle, folder, tmp_path / "s", "--random-rate", "1"), stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    samples = tmp_path / "s" / "samples"
    deadline = time.monotonic() + 60
    while (not samples.is_dir() or len(list(samples.iterdir())) < 30) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    first = json.loads(out)
    assert process.returncode == 0 and not first["finished"]
    assert 30 <= first["frames"] < 300
    assert first["counters"]["captured"] == first["frames"] == len(list(samples.iterdir()))
    assert list((tmp_path / "s" / "tmp").iterdir()) == []
    second = misfire_run(bundle, folder, tmp_path / "s", "--random-rate", "1")
    assert second["finished"] and first["frames"] + second["frames"] == 300
    assert second["counters"]["captured"] == second["counters"]["frames"] == 300


def test_after_kill_9_every_sample_arrives_once(
    bundle: Any, broker: Mosquitto, fleet_dir: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "in", 150)
    more = ("--random-rate", "1", "--broker", broker.url, "--fleet", tmp_path.name[:60], "--until-empty")
    for _attempt in range(2):
        process = subprocess.Popen(
            command(bundle, folder, tmp_path / "s", *more), stderr=subprocess.DEVNULL, env=ENVIRONMENT
        )
        time.sleep(2.0)
        process.kill()
        process.wait(10)
    result = misfire_run(bundle, folder, tmp_path / "s", *more)
    books = result["counters"]
    assert books["stored"] == books["captured"] == 150 and books["pending"] == 0
    assert {hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()} == set(blobs(fleet_dir))


def test_without_a_broker_samples_wait_and_until_empty_waits_for_it(bundle: Any, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{closed.getsockname()[1]}"
        folder = pictures(tmp_path / "in", 20)
        result = misfire_run(bundle, folder, tmp_path / "s", "--random-rate", "1", "--broker", url)
        assert result["counters"]["pending"] == 20 and not result["empty"]
        log = tmp_path / "run.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                command(bundle, folder, tmp_path / "s", "--broker", url, "--until-empty"),
                stdout=subprocess.PIPE,
                stderr=errors,
                env=ENVIRONMENT,
            )
        deadline = time.monotonic() + 60
        while b"uplink_down" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        # Twenty small frames are through long before; what is left to do is to wait.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and not json.loads(out)["empty"]


def test_one_line_says_what_is_wrong(
    bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["misfire", "run", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        lines = capsys.readouterr().err.strip().splitlines()
        return lines[-1]

    spool = ("--spool", str(tmp_path / "s"))
    good = ("--bundle", str(bundle.path))
    assert "bundle: not set; give --bundle" in error(*spool)
    assert "is this a bundle?" in error("--bundle", str(tmp_path), "--source", "x", *spool)
    assert "source: not set" in error(*good, *spool)
    assert "nowhere.mp4: no such file" in error(*good, *spool, "--source", "nowhere.mp4")
    assert "broker 'ftp://x'" in error(*good, *spool, "--source", str(tmp_path / "in"), "--broker", "ftp://x")
    (tmp_path / "v.toml").write_text("[random]\nrate = 3\n")
    assert "v.toml:2: random.rate" in error("--config", str(tmp_path / "v.toml"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"junk")
    said = error(*good, *spool, "--source", str(tmp_path / "in"))
    assert "nothing could be read: a.png" in said


def test_a_full_disk_is_one_clear_line_and_nothing_is_half_written(bundle: Any, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 5)
    (tmp_path / "v.toml").write_text(
        f'bundle = "{bundle.path}"\n[[source]]\ninput = "in"\n[random]\nrate = 1.0\n'
        "[spool]\npath = 's'\nreserve_bytes = 9_000_000_000_000_000\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "misfire_runtime.cli", "run", "--config", str(tmp_path / "v.toml")],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
        check=False,
    )
    assert folder.is_dir() and done.returncode == 1
    assert "lost: 5 by disk full" in done.stdout
    assert "no room for sample" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "s" / "samples").iterdir()) == []
    with Spool(tmp_path / "s") as spool:
        assert spool.counters().captured == 0 and spool.counters().frames == 5


def test_two_runs_do_not_share_a_spool(bundle: Any, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 2)
    with Spool(tmp_path / "s"):
        assert "in use by another process" in misfire_run(bundle, folder, tmp_path / "s", status=1)["error"]


def test_options_stand_above_the_file() -> None:
    config = parse_config(
        'vehicle = "a"\n[triggers.n]\nkind = "percentile"\nlevel = 0.9\n[spool]\nqueue = 7\n'
    )
    fresh = overlay(config, {"rate": 0.1, "vehicle": None, "fleet": "north", "spool": {"path": Path("x")}})
    assert set(fresh.triggers) == {"n", "target-rate"} and fresh.triggers["target-rate"].rate == 0.1
    assert (fresh.vehicle, fresh.fleet, fresh.spool.queue, fresh.spool.path) == ("a", "north", 7, Path("x"))
    alone = overlay(VehicleConfig(), {"rate": 0.3})
    assert list(alone.triggers) == ["target-rate"]


def test_a_thread_can_run_a_vehicle(bundle: Any, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 30)
    config = overlay(
        VehicleConfig(),
        {
            "bundle": bundle.path,
            "source": [{"input": str(folder)}],
            "spool": {"path": tmp_path / "s"},
            "random": {"rate": 1.0},
        },
    )
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run_vehicle(config)))
    thread.start()
    thread.join(60)
    assert results[0].report.frames == 30 and results[0].counters.pending == 30
    assert json.loads(json.dumps(results[0].as_dict()))["counters"]["captured"] == 30


def test_several_cameras_run_in_one_process(bundle: Any, tmp_path: Path) -> None:
    # Of equal pictures only the first would be kept, and either camera may be first.
    for seed, camera in enumerate(("left", "right")):
        pictures(tmp_path / camera, 10, seed=seed)
    (tmp_path / "left" / "00003.png").write_bytes(b"broken")
    text = "".join(
        f'[[source]]\nname = "{name}"\ninput = "{tmp_path / name}"\n' for name in ("left", "right")
    )
    config = parse_config(text + "[random]\nrate = 1.0\n")
    config = overlay(config, {"bundle": bundle.path, "spool": {"path": tmp_path / "s"}})
    result = run_vehicle(config)
    assert result.report.frames == 19 and result.report.unreadable == 1
    with Spool(tmp_path / "s") as spool:
        offers = [json.loads(item.offer) for item in spool.next_offers(100)]
    assert sorted(offer["source"].split("/")[0] for offer in offers) == ["left"] * 9 + ["right"] * 10
