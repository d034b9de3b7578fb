"""`misfire spool`: what waits can be seen, checked, uploaded and copied without a model or a camera."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from misfire_fleet.collector import Collector
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.store import Store
from misfire_runtime.commands.spool import app
from misfire_runtime.errors import ConfigError, MisfireError, SpoolError
from misfire_runtime.messages import Offer, Rejected, decode
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.spool import Spool
from misfire_runtime.spool.schema import MIGRATIONS, connect
from misfire_runtime.testing import make_offer
from misfire_runtime.uplink import Uplink
from proving_ground.faults.samples import make_payload
from proving_ground.services import Mosquitto, free_port, mosquitto


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def fill(spool: Spool, count: int) -> list[str]:
    ids = []
    for number in range(count):
        payload = make_payload("spool", number, size=3000)
        offer = make_offer(payload, number=number, priority=number % 3, vehicle="car")
        assert spool.add(payload, offer)
        ids.append(offer.id)
    return ids


def call(*arguments: Any, status: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if isinstance(done.exception, MisfireError):
        raise done.exception
    assert done.exit_code == status, (done.output, done.exception)
    return dict(json.loads(done.stdout))


def text_of(*arguments: Any) -> str:
    return CliRunner().invoke(app, [*map(str, arguments)]).stdout


def test_list_shows_what_waits_by_priority_and_trigger_and_what_became_of_the_rest(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = fill(spool, 13)
        spool.lose("disk full", 4)
        spool.settle_many([Rejected(id=sample, reason="unstorable") for sample in ids[:10]])
        found = call("list", "--spool", folder), text_of("list", "--spool", folder)
    assert found == (call("list", "--spool", folder), text_of("list", "--spool", folder)), (
        "or when it is closed"
    )
    result, text = found
    assert [(g["priority"], g["trigger"], g["samples"]) for g in result["pending"]] == [
        (2, "target-rate", 1),
        (1, "target-rate", 1),
        (0, "target-rate", 1),
    ]
    assert result["counters"]["lost"] == {"disk full": 4} and "unstorable" in result["hold"]["reason"]
    assert "13 captured = 0 stored + 3 pending" in text and "lost: disk full: 4" in text
    assert "rejected: unstorable: 10" in text and "misfire spool resume" in text
    kept = call("list", "--spool", folder, "--rejected")["rejected"]
    assert {row["id"] for row in kept} == set(ids[:10]) and kept[0]["reason"] == "unstorable"
    assert text_of("list", "--spool", folder, "--rejected").count("target-rate: unstorable") == 10


def test_verify_names_damaged_samples_and_changes_nothing(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = fill(spool, 3)
        assert call("verify", "--spool", folder) == {"ok": True, "whole": 3, "problems": []}
    file = folder / "samples" / ids[1]
    file.write_bytes(b"x" + file.read_bytes()[1:])
    (folder / "samples" / ids[2]).unlink()
    for _ in range(2):
        result = call("verify", "--spool", folder, status=1)
        assert result["whole"] == 1 and not result["ok"]
        assert {problem.split()[1].rstrip(":") for problem in result["problems"]} == set(ids[1:])
    with sqlite3.connect(folder / "spool.sqlite") as raw:
        raw.execute("UPDATE counters SET value = 7 WHERE name = 'captured'")
    raw.close()
    assert "7 captured, but 3" in call("verify", "--spool", folder, status=1)["problems"][0]


def test_export_copies_samples_with_their_offers_even_without_a_database(
    folder: Path, tmp_path: Path
) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = fill(spool, 4)
        spool.settle(ids[0], Rejected(id=ids[0], reason="r"))
    (folder / "spool.sqlite").write_bytes(b"damaged" * 1000)
    damaged = folder / "samples" / ids[1]
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    out = tmp_path / "out"
    assert call("export", out, "--spool", folder, status=1) == {"copied": 2, "damaged": [ids[1]]}
    for sample in ids[2:]:
        offer = decode(Offer, (out / f"{sample}.json").read_bytes())
        assert offer.id == sample == hashlib.sha256((out / f"{sample}.jpg").read_bytes()).hexdigest()
    assert call("export", out, "--spool", folder, "--rejected", status=1)["copied"] == 3
    assert len(list((folder / "samples").iterdir())) == 3, "nothing is taken away"


def test_drain_uploads_what_waits(folder: Path, tmp_path: Path, broker: Mosquitto) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = fill(spool, 12)
    (tmp_path / "v.toml").write_text(
        f'vehicle = "car"\n[spool]\npath = "spool"\n[broker]\nurl = "{broker.url}"\n'
    )
    with Store.open_folder(tmp_path / "fleet") as store:
        settings = CollectorSettings.model_validate({"drain_s": 0.5, "canary_s": 1.0})
        collector = Collector(store, broker=BrokerConfig(port=broker.port), fleet="north", settings=settings)
        assert collector.start(wait_s=20)
        try:
            result = call("drain", "--config", tmp_path / "v.toml", "--fleet", "north")
        finally:
            collector.close()
        assert {sample.id for sample in store.newest(50)} == set(ids)
    assert (result["counters"]["stored"], result["counters"]["pending"]) == (12, 0)


def test_drain_says_what_it_lacks_and_what_is_left(folder: Path, broker: Mosquitto) -> None:
    with pytest.raises(SpoolError, match="is no spool"):
        call("drain", "--spool", folder, "--broker", broker.url)
    with Spool(folder, reserve_bytes=0) as spool:
        ids = fill(spool, 12)
        with pytest.raises(SpoolError, match="in use by another process"):
            call("drain", "--spool", folder, "--broker", broker.url)
    with pytest.raises(ConfigError, match="broker: not set"):
        call("drain", "--spool", folder)
    with pytest.raises(ConfigError, match="--insecure"):
        call("drain", "--spool", folder, "--broker", "mqtt://broker.example.com")
    command = [sys.executable, "-m", "misfire_runtime.cli", "spool", "drain", "--spool", str(folder)]
    process = subprocess.Popen(
        [*command, "--broker", f"mqtt://127.0.0.1:{free_port()}"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = [process.stderr.readline()]
    process.terminate()
    lines += process.communicate(timeout=30)[1].splitlines()
    assert process.returncode == 1 and "connection refused" in lines[0]
    assert "12 samples are left" in lines[-1] and "connection refused" in lines[-1]
    with Spool(folder, reserve_bytes=0) as spool:
        spool.settle_many([Rejected(id=sample, reason="unstorable") for sample in ids])
    with pytest.raises(SpoolError, match=r"held: .*unstorable; `misfire spool resume`"):
        call("drain", "--spool", folder, "--broker", broker.url)


def test_resume_ends_a_hold_of_a_stopped_vehicle(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = fill(spool, 12)
        spool.settle_many([Rejected(id=sample, reason="unstorable") for sample in ids])
    assert call("resume", "--spool", folder) == {"resumed": True, "offered_again": 10}
    assert call("list", "--spool", folder)["hold"] is None
    with Spool(folder, reserve_bytes=0) as spool:
        assert spool.counters().pending == 12 and spool.counters().rejected == 0


def test_resume_asks_a_vehicle_that_runs(folder: Path, broker: Mosquitto) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        spool.settle_many([Rejected(id=sample, reason="r") for sample in fill(spool, 12)])
        uplink = Uplink(spool, fleet="f", vehicle="car", broker=BrokerConfig(port=broker.port))
        uplink.start()
        assert uplink.wait_online(20)
        assert call("resume", "--spool", folder) == {"resumed": True}
        assert spool.hold is None and spool.counters().pending == 12
        uplink.close()


def test_a_spool_of_an_older_version_is_read_without_changing_it(folder: Path) -> None:
    folder.mkdir()
    connect(folder / "spool.sqlite", migrations=MIGRATIONS[:2]).close()
    before = (folder / "spool.sqlite").read_bytes()
    assert call("list", "--spool", folder)["counters"]["captured"] == 0
    assert (folder / "spool.sqlite").read_bytes() == before
    with pytest.raises(SpoolError, match="is no spool"):
        call("list", "--spool", folder / "nowhere")


def test_reading_does_not_disturb_a_vehicle_that_captures(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        stop = threading.Event()

        def capture() -> None:
            number = 0
            while not stop.is_set():
                payload = make_payload("busy", number, size=2000)
                spool.add(payload, make_offer(payload, number=number, vehicle="car"))
                number += 1

        thread = threading.Thread(target=capture)
        thread.start()
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            books = call("list", "--spool", folder)["counters"]
            assert books["captured"] == books["pending"]
            assert call("verify", "--spool", folder)["ok"]
        stop.set()
        thread.join()


def test_no_command_needs_an_engine_or_a_video_decoder() -> None:
    code = (
        "import sys\nfrom misfire_runtime.cli import app\n"
        "try:\n    app(['spool', 'drain', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'onnxruntime', 'av'} & set(sys.modules), 'imported too much'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
