"""A live vehicle on a real camera and a real broker: wishes, heartbeats, health, declines, reload."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rtsp_camera import RtspCamera

from misfire_runtime.config.tables import parse_config, read_config
from misfire_runtime.errors import EngineError, MisfireError, SourceError
from misfire_runtime.messages import (
    Declined,
    Desired,
    Offer,
    Rejected,
    Reply,
    Reported,
    Send,
    Stored,
    Telemetry,
    Topics,
    decode,
    encode,
)
from misfire_runtime.mqtt.client import BrokerConfig, make_client
from misfire_runtime.spool import Spool
from misfire_runtime.state.statistics import unpack_sketch
from misfire_runtime.testing import make_offer
from misfire_runtime.vehicle import session
from misfire_runtime.vehicle.pipeline import Vehicle
from misfire_runtime.vehicle.session import run_vehicle
from proving_ground.faults.samples import make_payload
from proving_ground.services import Mosquitto, free_port, mosquitto

pytestmark = pytest.mark.slow


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
        except BaseException as error:  # noqa: BLE001  (told to the test)
            self.error = error

    def ended(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()

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
    offer = decode(Offer, fleet.wait("offer", lambda payload: json.loads(payload)["trigger"]["random"]))
    assert offer.trigger.rate == 1.0
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


def test_a_wish_on_trial_survives_an_end_in_order_and_is_refused_after_ends_that_were_not(
    bundle: Any, broker: Mosquitto, tmp_path: Path, clip: Path
) -> None:
    camera, fleet = RtspCamera(clip, fps=40), Fleet(broker)
    config = parse_config(settings(bundle, tmp_path, camera, f'[broker]\nurl = "{broker.url}"\n'))
    trial = tmp_path / "spool" / "vehicle" / "trial.json"
    fleet.desire(version=1, config={"random": {"rate": 0.5}})
    running = Running(config)
    assert decode(Reported, fleet.wait("reported")).accepted
    assert json.loads(trial.read_text())["starts"] == 1
    running.end()
    kept = json.loads(trial.read_text())
    assert kept["starts"] == 0
    trial.write_text(json.dumps({**kept, "starts": 2}))
    fleet.heard.clear()
    running = Running(config)
    report = decode(Reported, fleet.wait("reported"))
    assert (report.version, report.accepted) == (1, False)
    assert "ended 2 times other than in order" in report.reason
    running.end()
    fleet.close()
    camera.close()


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


def pending_samples(folder: Path, count: int) -> list[str]:
    with Spool(folder, reserve_bytes=0) as spool:
        payloads = [make_payload("waiting", number) for number in range(count)]
        for number, payload in enumerate(payloads):
            assert spool.add(payload, make_offer(payload, number=number, vehicle="vehicle"))
        return [pending.id for pending in spool.next_offers(count)]


class Collector(Fleet):
    """Asks for every sample and stores it."""

    def __init__(self, broker: Mosquitto) -> None:
        self.got: dict[str, bytes] = {}
        super().__init__(broker, answer=self._want)

    def _want(self, offer: Offer) -> Send | Stored:
        return Send(id=offer.id, collector="c", offset=0)

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        super()._on_message(client, data, message)
        parts = message.topic.removeprefix(self.topics.base + "/").split("/")
        if parts[0] == "data":
            self.got[parts[2]] = self.got.get(parts[2], b"") + message.payload
            if hashlib.sha256(self.got[parts[2]]).hexdigest() == parts[2]:
                self.client.publish(self.topics.reply, encode(Reply(verdicts=[Stored(id=parts[2])])), qos=1)


def broken(kind: str, bundle: Any, make_bundle: Any, folder: Path) -> tuple[str, str]:
    """Configuration of a vehicle that cannot run, and what its error says."""
    if kind == "damaged bundle":
        bundle = make_bundle(folder / "damaged")
        (bundle.path / "model.onnx").write_bytes(b"damaged")
        return f'bundle = "{bundle.path}"\n[[source]]\ninput = "{folder}"\n', "model.onnx"
    return f'bundle = "{bundle.path}"\n[[source]]\ninput = "{folder}/nowhere.mp4"\n', "nowhere.mp4"


@pytest.mark.parametrize(
    "case", list(itertools.product(["damaged bundle", "missing source"], [False, True])), ids=str
)
def test_without_a_model_or_a_camera_what_waits_is_uploaded_before_the_error_ends_the_run(
    bundle: Any, make_bundle: Any, broker: Mosquitto, tmp_path: Path, case: tuple[str, bool]
) -> None:
    kind, until_empty = case
    text, complaint = broken(kind, bundle, make_bundle, tmp_path)
    waiting = pending_samples(tmp_path / "spool", 12)
    text += f'[spool]\npath = "{tmp_path / "spool"}"\n[broker]\nurl = "{broker.url}"\n'
    fleet = Collector(broker)
    with pytest.raises(MisfireError, match=complaint):
        run_vehicle(parse_config(text), until_empty=until_empty)
    fleet.close()
    assert set(fleet.got) == set(waiting)
    with Spool(tmp_path / "spool") as spool:
        assert spool.counters().stored == 12 and spool.counters().pending == 0


def test_an_engine_that_gives_up_in_mid_run_does_not_keep_what_waits(
    bundle: Any, broker: Mosquitto, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*_: object) -> None:
        raise EngineError("gave up after 10 failures in a row")

    monkeypatch.setattr(Vehicle, "run", give_up)
    waiting = pending_samples(tmp_path / "spool", 12)
    text = f'bundle = "{bundle.path}"\n[[source]]\ninput = "{clip}"\n[spool]\npath = "{tmp_path / "spool"}"\n'
    fleet = Collector(broker)
    with pytest.raises(EngineError, match="gave up"):
        run_vehicle(parse_config(text + f'[broker]\nurl = "{broker.url}"\n'))
    fleet.close()
    assert set(fleet.got) == set(waiting)


def test_a_vehicle_that_cannot_run_says_so_and_ends_when_uploads_do_not_go_forward(
    bundle: Any, make_bundle: Any, broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a service manager can try again; nobody answers its offers."""
    monkeypatch.setattr(session, "UPLOAD_GRACE_S", 4.0)
    text, complaint = broken("missing source", bundle, make_bundle, tmp_path)
    pending_samples(tmp_path / "spool", 3)
    port = free_port()
    text += f'[spool]\npath = "{tmp_path / "spool"}"\n[broker]\nurl = "{broker.url}"\n'
    text += f"[telemetry]\nport = {port}\nheartbeat_s = 1\n"
    fleet = Fleet(broker)
    statuses: list[Any] = []
    running = Running(parse_config(text), on_tick=lambda vehicle, spool: statuses.append((vehicle, spool)))
    beat = decode(Telemetry, fleet.wait("telemetry"))
    assert beat.counters.pending == 3 and beat.bundle == ""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)
    assert caught.value.code == 503 and complaint in json.loads(caught.value.read())["problems"][0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"misfire_pending 3.0" in answer.read()
    running.ended()
    assert isinstance(running.error, SourceError) and statuses
    fleet.close()


def test_the_frames_since_the_last_heartbeat_are_told_when_the_drive_ends(
    bundle: Any, broker: Mosquitto, tmp_path: Path, clip: Path
) -> None:
    fleet = Fleet(broker, answer=lambda offer: Declined(id=offer.id, reason="unwanted"))
    text = f'bundle = "{bundle.path}"\n[[source]]\ninput = "{clip}"\n[spool]\npath = "{tmp_path / "spool"}"\n'
    text += (
        f'[broker]\nurl = "{broker.url}"\n[telemetry]\nheartbeat_s = 3600\n[random]\nrate = 0.2\nseed = 1\n'
    )
    result = run_vehicle(parse_config(text), until_empty=True)

    def counted(beat: Telemetry) -> float:
        texts = list(beat.sketches.values())
        return float(unpack_sketch(texts[0], accuracy=0.01).count) if texts else 0.0

    def frames() -> int:
        beats = [decode(Telemetry, payload) for payload in fleet.heard["telemetry"]]
        return round(sum(counted(beat) for beat in beats))

    deadline = time.monotonic() + 10
    while frames() < result.report.frames and time.monotonic() < deadline:
        time.sleep(0.05)
    assert frames() == result.report.frames > 0
    fleet.close()


def test_nothing_that_waits_or_no_broker_means_that_the_error_comes_at_once(
    bundle: Any, make_bundle: Any, tmp_path: Path
) -> None:
    text, complaint = broken("missing source", bundle, make_bundle, tmp_path)
    text += f'[spool]\npath = "{tmp_path / "spool"}"\n'
    nobody = f"[broker]\nport = {free_port()}\nhost = '127.0.0.1'\n"
    began = time.monotonic()
    with pytest.raises(SourceError, match=complaint):
        run_vehicle(parse_config(text + nobody), until_empty=True)
    pending_samples(tmp_path / "spool", 1)
    with pytest.raises(SourceError, match=complaint):
        run_vehicle(parse_config(text), until_empty=True)
    assert time.monotonic() - began < 20


def test_a_hold_is_in_health_metrics_and_heartbeats_and_ends_a_run_that_waits_for_an_empty_spool(
    bundle: Any, broker: Mosquitto, tmp_path: Path, clip: Path
) -> None:
    port = free_port()
    fleet = Fleet(broker, answer=lambda offer: Rejected(id=offer.id, reason="unstorable"))
    text = f'bundle = "{bundle.path}"\n[[source]]\ninput = "{clip}"\n[spool]\npath = "{tmp_path / "spool"}"\n'
    text += f'[broker]\nurl = "{broker.url}"\n[telemetry]\nport = {port}\nheartbeat_s = 0.5\n'
    text += "[random]\nrate = 0.3\nseed = 1\n"
    camera = RtspCamera(clip, fps=40)
    live = Running(parse_config(text.replace(str(clip), camera.url)))
    beat = decode(Telemetry, fleet.wait("telemetry", lambda payload: b"unstorable" in payload))
    assert "10 samples in a row were rejected, the last: unstorable" in beat.hold
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)
    assert "uploads are held" in json.loads(caught.value.read())["problems"][0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"misfire_uploads_held 1.0" in answer.read()
    assert live.end().counters.rejected == 10
    camera.close()
    result = run_vehicle(parse_config(text), until_empty=True)
    assert result.failure is not None and "misfire spool resume" in str(result.failure)
    assert result.counters.rejected == 10 and result.counters.pending > 0
    fleet.close()
