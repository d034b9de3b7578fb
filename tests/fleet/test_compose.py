"""The shipped broker configuration in a real Mosquitto: what an honest and a stolen certificate may do."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
import yaml
from tests.fleet.conftest import CollectorMaker, eventually

from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.commands.collect import read_settings
from misfire_runtime.messages import MAX_CHUNK_BYTES, MAX_JSON_BYTES, Stored, Topics, encode
from misfire_runtime.mqtt.client import BrokerConfig, make_client
from misfire_runtime.testing import make_offer
from proving_ground.client import FLEET, Vehicle
from proving_ground.hardened import FLEET_DIR, Hardened, hardened
from proving_ground.services import find_program

pytestmark = pytest.mark.slow

SECRET = "a-group-that-no-vehicle-knows"


@pytest.fixture
def broker_as_shipped(tmp_path: Path) -> Iterator[Hardened]:
    with hardened(tmp_path / "mosquitto", fleet=FLEET) as running:
        yield running


class Client:
    """A client that does as it pleases, and keeps what it is given."""

    def __init__(self, broker: BrokerConfig, *topics: str, name: str = "anybody") -> None:
        self.got: list[tuple[str, bytes]] = []
        self.losses = 0
        self._wanted = [(topic, 1) for topic in topics]
        self._ready: queue.Queue[bool] = queue.Queue()
        self.client = make_client(broker, client_id=name)
        self.client.on_message = self._take
        self.client.on_connect = self._connected
        self.client.on_subscribe = lambda *_: self._ready.put(True)
        self.client.on_disconnect = self._lost
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()
        assert self._ready.get(timeout=10)

    def _take(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self.got.append((message.topic, bytes(message.payload)))

    def _connected(self, client: paho.Client, *_: Any) -> None:
        if self._wanted:
            client.subscribe(self._wanted)
        else:
            self._ready.put(True)

    def _lost(self, *_: Any) -> None:
        self.losses += 1

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=0, retain=retain)

    def topics(self) -> set[str]:
        return {topic for topic, _ in self.got}

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


ClientMaker = Callable[..., Client]


@pytest.fixture
def client() -> Iterator[ClientMaker]:
    made: list[Client] = []

    def connect(broker: BrokerConfig, *topics: str, name: str = "anybody") -> Client:
        made.append(Client(broker, *topics, name=name))
        return made[-1]

    yield connect
    for each in made:
        each.close()


@pytest.fixture
def honest(broker_as_shipped: Hardened) -> Iterator[Vehicle]:
    vehicle = Vehicle(broker_as_shipped.vehicle("car-1"), "car-1")
    vehicle.connect()
    yield vehicle
    vehicle.close()


def test_vehicles_with_certificates_upload_and_cannot_speak_for_each_other(
    broker_as_shipped: Hardened,
    start_collector: CollectorMaker,
    client: ClientMaker,
    honest: Vehicle,
    photo: bytes,
) -> None:
    collector = start_collector(broker=broker_as_shipped.server(), group=SECRET, shared="always")
    assert collector.link.shared
    liar = client(broker_as_shipped.vehicle("car-2"))
    liar.publish(honest.topics.offer, encode(make_offer(photo, vehicle="car-1")))
    assert honest.silent(for_s=1.0)
    assert isinstance(honest.upload(photo), Stored)


@pytest.mark.parametrize("name", ["car-2", "collector", "operator", "_canary"])
def test_a_stolen_certificate_hears_nothing_and_writes_only_below_its_own_name(
    broker_as_shipped: Hardened, client: ClientMaker, name: str
) -> None:
    everything = (
        "misfire/v1/+/+/offer",
        "misfire/v1/+/+/reply",
        "misfire/v1/+/+/desired",
        "misfire/v1/+/+/state",
    )
    collector = client(
        broker_as_shipped.server(), "misfire/v1/+/+/offer", "misfire/v1/+/+/state", "misfire/v1/+/+/data/#"
    )
    operator = client(broker_as_shipped.server("operator"), name="operator-5d1f")
    honest = client(broker_as_shipped.vehicle("car-1"), f"misfire/v1/{FLEET}/car-1/reply")
    thief = client(broker_as_shipped.vehicle(name), "#", "$SYS/#", *everything)
    other = Topics(FLEET, "car-1")
    for topic in (
        other.offer,
        other.state,
        other.reply,
        other.reported,
        other.desired,
        other.data("c", "0" * 64, 0),
    ):
        thief.publish(topic, b"forged", retain=True)
    own = Topics(FLEET, name)
    for topic in (
        own.desired,
        own.reply,
        own.base + "/data/deep/er/and/deeper",
        own.base + "/data/x",
        own.base,
    ):
        thief.publish(topic, b"forged", retain=True)
    thief.publish(f"misfire/v1/another-fleet/{name}/offer", b"forged")
    honest.publish(other.offer, b"honest")
    collector.publish(other.reply, b"a verdict")
    operator.publish(other.desired, b"a wish", retain=True)
    assert eventually(lambda: other.reply in honest.topics() and other.offer in collector.topics())
    time.sleep(0.3)
    assert [payload for _, payload in collector.got] == [b"honest"]
    assert [payload for _, payload in honest.got] == [b"a verdict"]
    assert thief.topics() == set()
    again = client(broker_as_shipped.vehicle("car-1"), other.state, other.desired)
    assert eventually(lambda: again.got == [(other.desired, b"a wish")])


def test_a_stolen_certificate_that_joins_the_usual_group_swallows_no_offers(
    broker_as_shipped: Hardened,
    start_collector: CollectorMaker,
    client: ClientMaker,
    honest: Vehicle,
    jpeg: Callable[[int], bytes],
) -> None:
    start_collector(broker=broker_as_shipped.server(), group=SECRET, shared="always")
    usual = CollectorSettings().group
    for number in range(5):
        client(broker_as_shipped.vehicle(f"stolen-{number}"), f"$share/{usual}/misfire/v1/{FLEET}/+/offer")
    for number in range(6):
        honest.offer(make_offer(jpeg(number), vehicle="car-1"))
    for _ in range(6):
        assert honest.hear(timeout_s=3.0).verdict == "send"


def test_a_second_connection_with_a_certificate_ends_the_first(
    broker_as_shipped: Hardened, client: ClientMaker
) -> None:
    stolen, other = broker_as_shipped.vehicle("car-2"), broker_as_shipped.vehicle("car-1")
    first = client(stolen, name="one")
    bystander = client(other, name="car-2")  # another vehicle's client id does not end its connection
    client(stolen, name="two")
    assert eventually(lambda: first.losses > 0)
    assert bystander.losses == 0


def test_the_largest_messages_pass_and_larger_ones_do_not(
    broker_as_shipped: Hardened, client: ClientMaker
) -> None:
    name = "v" * 64
    topics = Topics(FLEET, name)
    chunk, heartbeat = topics.data("c" * 64, "0" * 64, 10**11), topics.telemetry
    collector = client(broker_as_shipped.server(), "misfire/v1/+/+/data/#", "misfire/v1/+/+/telemetry")
    vehicle = client(broker_as_shipped.vehicle(name))
    vehicle.publish(chunk, bytes(MAX_CHUNK_BYTES))
    vehicle.publish(heartbeat, bytes(MAX_JSON_BYTES))
    assert eventually(lambda: collector.topics() == {chunk, heartbeat})
    assert vehicle.losses == 0
    vehicle.publish(chunk, bytes(136 * 1024))
    assert eventually(lambda: vehicle.losses > 0)
    assert len(collector.got) == 2


def test_a_vehicle_hears_its_own_state_and_wish_and_the_operator_what_became_of_it(
    broker_as_shipped: Hardened, client: ClientMaker
) -> None:
    topics = Topics(FLEET, "car-1")
    operator = client(broker_as_shipped.server("operator"), topics.reported, topics.state)
    vehicle = client(broker_as_shipped.vehicle("car-1"), topics.state, topics.desired)
    vehicle.publish(topics.state, b"born", retain=True)
    operator.publish(topics.desired, b"a wish", retain=True)
    assert eventually(lambda: vehicle.topics() == {topics.state, topics.desired})
    vehicle.publish(topics.reported, b"accepted", retain=True)
    assert eventually(lambda: operator.topics() == {topics.state, topics.reported})


def test_a_revoked_certificate_stays_outside(tmp_path: Path, client: ClientMaker) -> None:
    with hardened(tmp_path / "mosquitto", fleet=FLEET, crl_of="car-2") as broker:
        client(broker.vehicle("car-1"))
        assert not _enters(broker.vehicle("car-2"))


def test_nobody_enters_without_a_certificate_or_a_password(broker_as_shipped: Hardened) -> None:
    assert _enters(broker_as_shipped.server())
    assert not _enters(broker_as_shipped.server().model_copy(update={"password": "guessed"}))
    bare = broker_as_shipped.vehicle("car-1")
    assert _enters(bare)
    assert not _enters(bare.model_copy(update={"cert_file": None, "key_file": None}))


def _enters(broker: BrokerConfig) -> bool:
    """True where the broker accepts the connection."""
    answers: queue.Queue[bool] = queue.Queue()
    client = make_client(broker, client_id="stranger")
    client.on_connect = lambda _c, _d, _f, reason, _p: answers.put(not reason.is_failure)
    client.on_disconnect = lambda *_: answers.put(False)
    try:
        client.connect(broker.host, broker.port)
        client.loop_start()
        return answers.get(timeout=10)
    except OSError:
        return False  # TLS 1.2 refuses in the handshake, TLS 1.3 right after it
    finally:
        client.disconnect()
        client.loop_stop()


def test_the_documented_commands_make_certificates_that_openssl_accepts(tmp_path: Path) -> None:
    for program in ("openssl", "mosquitto_passwd"):
        find_program(program, install="apt-get install openssl mosquitto")
    docs = (FLEET_DIR.parent / "docs" / "fleet.md").read_text()
    blocks = [block.split("```")[0] for block in docs.split("```sh\n")[1:]]
    commands = next(block for block in blocks if "openssl req" in block)
    passwords = {"MISFIRE_MQTT_PASSWORD": "one", "MISFIRE_OPERATOR_PASSWORD": "two"}
    subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, env={**os.environ, **passwords}, check=True)
    secrets = tmp_path / "fleet" / "mosquitto" / "secrets"
    assert {file.name for file in secrets.iterdir()} == {"ca.crt", "broker.crt", "broker.key", "passwords"}
    for name in ("broker.example", "car-1", "car-2"):
        verify = ["openssl", "verify", "-CAfile", "ca/ca.crt", "-verify_hostname", name, f"ca/{name}.crt"]
        subprocess.run(verify, cwd=tmp_path, check=True, capture_output=True)


def test_the_group_is_read_from_the_settings_and_overridden_by_the_option(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text('group = "of-the-file"\n')
    assert read_settings(None).group == "collectors"
    assert read_settings(file).group == "of-the-file"
    assert read_settings(file, group=SECRET).group == SECRET


def test_the_compose_file_names_files_and_commands_that_exist() -> None:
    services = yaml.safe_load((FLEET_DIR / "compose.yaml").read_text())["services"]
    assert set(services) == {"mosquitto", "postgres", "collector", "console"}
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./") and not source.endswith("secrets"):
                assert (FLEET_DIR / source).is_file()
    for name in ("collector", "console"):
        command = [sys.executable, "-m", "misfire_runtime.cli", *services[name]["command"][:2], "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for option in services[name]["command"][2:]:
            assert not option.startswith("--") or option in text
    assert read_settings(FLEET_DIR / "collector.toml").shared == "always"
