"""A live vehicle on a real camera and a real broker: wishes, heartbeats, health, declines, reload."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rtsp_camera import RtspCamera

from misfire_runtime.config import parse_config, read_config
from misfire_runtime.messages import (
    Declined,
    Desired,
    Offer,
    Reply,
    Reported,
    Telemetry,
    Topics,
    decode,
    encode,
)
from misfire_runtime.session import run_vehicle
from misfire_runtime.spool import Spool
from misfire_runtime.uplink import BrokerConfig, make_client
from services import Mosquitto, free_port, mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path / "broker") as running:
        yield running


class Fleet:
    """The fleet's end of the wire, by hand: hears everything, answers offers with `answer`."""

    def __init__(self, broker: Mosquitto, *, answer: Callable[[Offer], Any] | None = None) -> None:
        self.topics = Topics("default", "vehicle")
        self.heard: dict[str, list[bytes]] = defaultdict(list)
        self._answer = answer
        self.client = make_client(BrokerConfig.from_url(broker.url), client_id="fleet")
        self.client.on_message = self._on_message
        self.client.connect("127.0.0.1", broker.port)
        self.client.subscribe(f"{self.topics.base}/#", qos=1)
        self.client.loop_start()

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        kind = message.topic.removeprefix(self.topics.base + "/").split("/")[0]
        self.heard[kind].append(message.payload)
        if kind == "offer" and self._answer is not None:
            verdict = self._answer(decode(Offer, message.payload))
            self.client.publish(self.topics.reply, encode(Reply(verdicts=[verdict])), qos=1)

    def desire(self, **desired: Any) -> None:
        self.client.publish(self.topics.desired, encode(Desired(**desired)), qos=1, retain=True)

    def wait(self, kind: str, holds: Callable[[bytes], bool] = lambda _payload: True) -> bytes:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            for payload in list(self.heard[kind]):
                if holds(payload):
                    return payload
            time.sleep(0.05)
        pytest.fail(f"no such {kind}; heard {self.heard[kind][-3:]}")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Running:
    """`run_vehicle` on a thread."""

    def __init__(self, config: Any, **options: Any) -> None:
        self.stop = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(config, options))
        self._thread.start()

    def _run(self, config: Any, options: dict[str, Any]) -> None:
        try:
            self.result = run_vehicle(config, stop=self.stop, **options)
        except BaseException as error:
            self.error = error
            raise

    def end(self) -> Any:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive() and self.error is None
        return self.result


def settings(bundle: Any, folder: Path, camera: RtspCamera, more: str) -> str:
    return (
        f'bundle = "{bundle.path}"\n[[source]]\ninput = "{camera.url}"\n'
        f'[spool]\npath = "{folder / "spool"}"\n{more}'
    )


def test_a_live_vehicle_obeys_reports_beats_and_ends_in_order(
    bundle: Any, broker: Mosquitto, tmp_path: Path, clip: Path
) -> None:
    camera, port = RtspCamera(clip, fps=40), free_port()
    fleet = Fleet(broker)
    text = settings(bundle, tmp_path, camera, f'[broker]\nurl = "{broker.url}"\n')
    text += f"[telemetry]\nport = {port}\nheartbeat_s = 1\n[random]\nrate = 0.0\n"
    config = parse_config(text)
    running = Running(config)
    fleet.wait("state", lambda payload: json.loads(payload)["online"])
    fleet.wait("telemetry", lambda payload: json.loads(payload)["counters"]["frames"] > 5)
    fleet.desire(version=1, config={"random": {"rate": 1.0}, "limits": {"samples_per_day": 3}})
    report = decode(Reported, fleet.wait("reported"))
    assert (report.version, report.accepted, report.bundle) == (1, True, "small@1.0.0")
    offer = decode(Offer, fleet.wait("offer"))
    assert offer.trigger.random and offer.trigger.rate == 1.0
    fleet.desire(version=2, config={"privacy": {}})
    refused = decode(Reported, fleet.wait("reported", lambda payload: b'"version":2' in payload))
    assert not refused.accepted and "cannot set privacy" in refused.reason
    beat = decode(Telemetry, fleet.wait("telemetry", lambda payload: json.loads(payload)["sketches"] != {}))
    assert set(beat.sketches) == {"entropy", "msp"}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        assert json.loads(answer.read())["ok"]
    result = running.end()
    assert not result.report.finished and result.report.frames > 10
    assert result.counters.pending == result.counters.captured > 0
    fleet.wait("state", lambda payload: not json.loads(payload)["online"])
    fleet.close()
    camera.close()
    with Spool(tmp_path / "spool") as spool:
        assert spool.counters().frames == result.report.frames


def test_a_declined_sample_gives_its_budget_back(
    bundle: Any, broker: Mosquitto, tmp_path: Path, clip: Path
) -> None:
    camera = RtspCamera(clip, fps=40)
    fleet = Fleet(broker, answer=lambda offer: Declined(id=offer.id, reason="seen before"))
    more = (
        f'[broker]\nurl = "{broker.url}"\n[random]\nrate = 0.0\n[limits]\nsamples_per_day = 2\n'
        '[triggers.all]\nkind = "threshold"\nabove = -1e9\n'
    )
    running = Running(parse_config(settings(bundle, tmp_path, camera, more)))
    deadline = time.monotonic() + 40
    while len(fleet.heard["offer"]) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    result = running.end()
    assert result.counters.captured >= 8 and result.counters.declined >= 6
    fleet.close()
    camera.close()


def test_a_file_is_reloaded_on_change_and_context_reaches_the_offers(
    bundle: Any, broker: Mosquitto, tmp_path: Path, clip: Path
) -> None:
    camera, port = RtspCamera(clip, fps=40), free_port()
    fleet = Fleet(broker)
    file = tmp_path / "v.toml"

    def write(version: int, rate: float) -> None:
        more = (
            f'[broker]\nurl = "{broker.url}"\n[context]\nudp = "127.0.0.1:{port}"\n[random]\nrate = {rate}\n'
        )
        file.write_text(f"version = {version}\n" + settings(bundle, tmp_path, camera, more))

    write(1, 0.0)
    running = Running(read_config(file), file=file)
    fleet.wait("state")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        write(2, 1.0)
        deadline = time.monotonic() + 40
        while not fleet.heard["offer"] and time.monotonic() < deadline:
            sender.sendto(b"speed=22.5", ("127.0.0.1", port))
            time.sleep(0.1)
        fleet.wait("offer", lambda payload: decode(Offer, payload).context == {"speed": 22.5})
    running.end()
    fleet.close()
    camera.close()
