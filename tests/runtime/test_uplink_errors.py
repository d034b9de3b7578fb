"""Why there is no connection is said in words, by a real broker and real certificates."""

from __future__ import annotations

import gc
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from authority import Authority

from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Connection, LinkError
from misfire_runtime.mqtt.errors import in_words
from misfire_runtime.service.logs import Throttle
from misfire_runtime.spool import Spool
from misfire_runtime.uplink import Uplink
from misfire_runtime.uplink.settings import UplinkSettings
from proving_ground.services import find_program, free_port, mosquitto

QUICK = UplinkSettings(reconnect_s=0.05, reconnect_max_s=0.1)
# paho leaves the socket of a failed TLS handshake to the garbage collector, which is to come here, not later.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def sockets_are_collected_here() -> Iterator[None]:
    yield
    gc.collect()


def problem(broker: BrokerConfig) -> str:
    """Of a connection that is opened, and used until it fails."""
    connection = Connection(broker, client_id="car-1", subscriptions=("misfire/v1/f/car/reply",))
    until = time.monotonic() + 10
    with pytest.raises(LinkError) as caught:
        connection.open()
        while time.monotonic() < until:
            connection.poll(0.1, wake=None)
    connection.close(in_order=False)
    assert "Unspecified" not in str(caught.value) and broker.url in str(caught.value)
    return str(caught.value)


def test_nobody_there() -> None:
    assert "connection refused: nothing listens" in problem(BrokerConfig(port=free_port()))


def test_a_host_that_does_not_exist() -> None:
    broker = BrokerConfig(host="nowhere.invalid", insecure=True)
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert in_words(error, broker).startswith("host nowhere.invalid not found")


def test_a_host_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker = BrokerConfig(port=silent.getsockname()[1], connect_timeout_s=0.3)
        assert "no answer within" in problem(broker)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_dies(tmp_path: Path, protocol: Any) -> None:
    with mosquitto(tmp_path / "broker") as running:
        connection = Connection(
            BrokerConfig(port=running.port, protocol=protocol), client_id="c", subscriptions=("a/b",)
        )
        connection.open()
        running.kill()
        with pytest.raises(LinkError, match="the broker closed the connection"):
            for _ in range(50):
                connection.poll(0.1, wake=None)
        connection.close(in_order=False)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_wrong_password(tmp_path: Path, protocol: Any) -> None:
    passwords = find_program("mosquitto_passwd", install="apt-get install mosquitto")
    file = tmp_path / "passwords"
    subprocess.run([passwords, "-b", "-c", str(file), "car", "right"], check=True)
    options = f"password_file {file}\nuser root"
    folder = tmp_path / "broker"
    with mosquitto(folder, options=options) as running:
        config = running.config.read_text().replace("allow_anonymous true", "allow_anonymous false")
        running.stop()
        running.config.write_text(config)
        running.start()
        broker = BrokerConfig(port=running.port, protocol=protocol, username="car", password="hunter2x")
        said = problem(broker)
        assert "refuses the connection" in said and "password is wrong" in said and "hunter2x" not in said


Made = tuple[str, dict[str, Any]]


def _expired_server(authority: Authority) -> Made:
    return authority.listener(days=-3), {"ca_file": authority.ca_file}


def _other_name(authority: Authority) -> Made:
    return authority.listener(address="10.9.8.7"), {"ca_file": authority.ca_file}


def _untrusted(authority: Authority) -> Made:
    return authority.listener(), {"ca_file": Authority(authority.ca_file.parent / "other").ca_file}


def _no_certificate(authority: Authority) -> Made:
    return authority.listener() + "\nrequire_certificate true", {"ca_file": authority.ca_file}


def _expired_client(authority: Authority) -> Made:
    cert_file, key_file = authority.issue("car", days=-3)
    files = {"ca_file": authority.ca_file, "cert_file": cert_file, "key_file": key_file}
    return authority.listener() + "\nrequire_certificate true", files


def _plain_broker(authority: Authority) -> Made:
    return "", {"ca_file": authority.ca_file}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_expired_server, "the broker's certificate has expired"),
        (_other_name, "the broker's certificate is not for 127.0.0.1"),
        (_untrusted, "not signed by an authority that ca.crt trusts"),
        (_no_certificate, "set cert_file and key_file"),
        (_expired_client, "expired on"),
        (_plain_broker, "does it speak TLS on port"),
    ],
)
def test_trouble_with_certificates(tmp_path: Path, make: Callable[[Authority], Made], words: str) -> None:
    options, files = make(Authority(tmp_path / "authority"))
    with mosquitto(tmp_path / "broker", options=options) as running:
        broker = BrokerConfig.from_url(f"mqtts://127.0.0.1:{running.port}", **files)
        assert words in problem(broker)


def test_plain_mqtt_on_a_tls_port(tmp_path: Path) -> None:
    with mosquitto(tmp_path / "broker", options=Authority(tmp_path / "authority").listener()) as running:
        assert "does it speak plain MQTT on port" in problem(BrokerConfig(port=running.port))


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("5", "the broker refuses this vehicle's messages: not authorised"),
        ("3.1.1", "refuses its topics"),
    ],
)
def test_a_certificate_of_another_vehicle_is_named_at_start_and_as_the_cause(
    tmp_path: Path, protocol: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that takes the name from the certificate, and allows topics of that name only.

    Mosquitto says in MQTT 5 that it does not allow a message, and drops it in silence in 3.1.1.
    """
    authority = Authority(tmp_path / "authority")
    rules = tmp_path / "acl"
    allowed = [f"pattern write misfire/v1/+/%u/{kind}" for kind in ("offer", "state", "telemetry")]
    rules.write_text("\n".join([*allowed, "pattern read misfire/v1/+/%u/reply", ""]))
    options = f"{authority.listener()}\nrequire_certificate true\nuse_identity_as_username true"
    cert_file, key_file = authority.issue("bus-12")
    with (
        mosquitto(tmp_path / "broker", options=f"{options}\nacl_file {rules}") as running,
        Spool(tmp_path / "spool", reserve_bytes=0) as spool,
        caplog.at_level(logging.INFO, "misfire_runtime"),
    ):
        broker = BrokerConfig(
            port=running.port,
            protocol=protocol,
            tls=True,
            ca_file=authority.ca_file,
            cert_file=cert_file,
            key_file=key_file,
        )
        uplink = Uplink(spool, fleet="f", vehicle="bus-13", broker=broker, settings=QUICK)
        uplink.start()
        until = time.monotonic() + 20
        while words not in (uplink.problem or "") and time.monotonic() < until:
            time.sleep(0.05)
        said = uplink.problem or ""
        uplink.close()
        fits = Uplink(spool, fleet="f", vehicle="bus-12", broker=broker, settings=QUICK)
        fits.start()
        assert fits.wait_online(10)
        time.sleep(0.5)
        assert fits.online and fits.problem is None
        fits.close()
    assert words in said and "'bus-12'" in said and "'bus-13'" in said
    events = [record.message for record in caplog.records]
    assert events[0] == "certificate_name" and events.count("certificate_name") == 1


class HangsUp:
    """A broker of MQTT 3.1.1 that grants what is asked for, and hangs up on the first message."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection, suppress(OSError):
                    connection.recv(4096)
                    connection.sendall(b"\x20\x02\x00\x00")  # CONNACK: accepted
                    subscribe = connection.recv(4096)
                    connection.sendall(
                        b"\x90\x05" + subscribe[2:4] + b"\x01\x01\x01"
                    )  # SUBACK of three topics
                    connection.recv(4096)

    def close(self) -> None:
        self._server.close()


def test_a_broker_that_hangs_up_each_time_is_explained(tmp_path: Path) -> None:
    broker = HangsUp()
    with Spool(tmp_path / "spool", reserve_bytes=0) as spool:
        address = BrokerConfig(port=broker.port, protocol="3.1.1")
        uplink = Uplink(spool, fleet="f", vehicle="bus-13", broker=address, settings=QUICK)
        uplink.start()
        until = time.monotonic() + 20
        while "access rules" not in (uplink.problem or "") and time.monotonic() < until:
            time.sleep(0.02)
        said = uplink.problem or ""
        uplink.close()
    broker.close()
    assert "closed the connection" in said
    assert "access rules may not allow topics of misfire/v1/f/bus-13" in said


def test_a_thousand_events_are_one_line_a_minute_with_a_count(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("misfire_runtime.service.logs.time.monotonic", lambda: now[0])
    often = Throttle(logging.getLogger("misfire_runtime.test"))
    with caplog.at_level(logging.INFO, "misfire_runtime"):
        for _ in range(1000):
            often.log(logging.ERROR, "sample_lost", {"reason": "disk full"}, key="disk full")
        often.log(logging.ERROR, "sample_lost", {"reason": "queue full"}, key="queue full")
        now[0] += 61.0
        often.log(logging.ERROR, "sample_lost", {"reason": "disk full"}, key="disk full")
    fields = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert fields == [
        {"reason": "disk full"},
        {"reason": "queue full"},
        {"reason": "disk full", "left_out": 999},
    ]
