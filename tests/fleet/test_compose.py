"""The shipped broker configuration in a real Mosquitto: TLS, and nobody speaks for another."""

from __future__ import annotations

import datetime
import ipaddress
import queue
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.fleet.conftest import CollectorMaker, Vehicle, make_offer
from tests.services import find_program, free_port, stop_process, wait_for_port

from misfire_fleet.store import Store
from misfire_runtime.messages import Stored, encode
from misfire_runtime.uplink import BrokerConfig

FLEET_DIR = Path(__file__).resolve().parents[2] / "fleet"
DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """A certificate authority in a folder, as docs/fleet.md makes one with openssl."""

    folder: Path

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fleet")])
        self._write("ca", self._signed(self._name, self._key, ca=True), self._key)

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._write(name, self._signed(subject, key, ca=False), key)

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - DAY).not_valid_after(now + DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        return builder.add_extension(loopback, critical=False).sign(self._key, hashes.SHA256())

    def _write(
        self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> tuple[Path, Path]:
        pem = serialization.Encoding.PEM
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(pem))
        plain = serialization.NoEncryption()
        files[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        return files


@dataclass
class Hardened:
    """The running broker and how to enter it."""

    inside: BrokerConfig
    tls_port: int
    authority: Authority

    def vehicle(self, name: str) -> BrokerConfig:
        certificate, key = self.authority.issue(name)
        return BrokerConfig(
            port=self.tls_port,
            tls=True,
            ca_file=self.authority.folder / "ca.crt",
            cert_file=certificate,
            key_file=key,
        )


@pytest.fixture
def hardened(tmp_path: Path) -> Iterator[Hardened]:
    program = find_program("mosquitto", install="apt-get install mosquitto")
    passwords = find_program("mosquitto_passwd", install="apt-get install mosquitto")
    for folder in ("secrets", "config", "data"):
        (tmp_path / folder).mkdir()
    authority = Authority(tmp_path / "secrets")
    authority.issue("broker")
    subprocess.run(
        [passwords, "-b", "-c", str(tmp_path / "secrets" / "passwords"), "collector", "a password"],
        check=True,
    )
    shutil.copy(FLEET_DIR / "mosquitto" / "acl", tmp_path / "config" / "acl")
    inside, outside = free_port(), free_port()
    text = (FLEET_DIR / "mosquitto" / "mosquitto.conf").read_text()
    text = text.replace("/mosquitto/", f"{tmp_path}/").replace(
        "listener 8883", f"listener {outside} 127.0.0.1"
    )
    text = text.replace("listener 1883", f"listener {inside} 127.0.0.1")
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"user root\n{text}")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=log)
    try:
        for port in (inside, outside):
            wait_for_port(port)
        yield Hardened(
            BrokerConfig(port=inside, username="collector", password="a password"), outside, authority
        )
    finally:
        stop_process(process)


def test_vehicles_with_certificates_upload_and_cannot_speak_for_each_other(
    hardened: Hardened, start_collector: CollectorMaker, store: Store, photo: bytes
) -> None:
    collector = start_collector(broker=hardened.inside)
    assert collector.link.shared
    honest, liar = Vehicle(hardened.vehicle("car-1"), "car-1"), Vehicle(hardened.vehicle("car-2"), "car-2")
    honest.connect()
    liar.connect()
    try:
        liar.publish(honest.topics.offer, encode(make_offer(photo, vehicle="car-1")))
        assert honest.silent(for_s=1.0)
        assert isinstance(honest.upload(photo), Stored)
        assert store.totals().samples == 1
    finally:
        honest.close()
        liar.close()
        collector.close()


def test_nobody_enters_without_a_certificate_or_a_password(hardened: Hardened) -> None:
    from misfire_runtime.uplink import make_client

    answers: queue.Queue[bool] = queue.Queue()
    client = make_client(hardened.inside.model_copy(update={"password": "guessed"}), client_id="stranger")
    client.on_connect = lambda _c, _d, _f, reason, _p: answers.put(reason.is_failure)
    client.connect("127.0.0.1", hardened.inside.port)
    client.loop_start()
    assert answers.get(timeout=20)
    client.disconnect()
    client.loop_stop()
    bare = hardened.vehicle("car-1").model_copy(update={"cert_file": None, "key_file": None})
    stranger = make_client(bare, client_id="stranger")
    connected: queue.Queue[bool] = queue.Queue()
    stranger.on_connect = lambda *_: connected.put(True)
    try:
        stranger.connect("127.0.0.1", bare.port)
        stranger.loop_start()
        with pytest.raises(queue.Empty):
            connected.get(timeout=1.0)
    except OSError:
        pass  # TLS 1.2 refuses in the handshake, TLS 1.3 right after it
    finally:
        stranger.disconnect()
        stranger.loop_stop()


def test_the_compose_file_names_files_and_commands_that_exist() -> None:
    services = yaml.safe_load((FLEET_DIR / "compose.yaml").read_text())["services"]
    assert set(services) == {"mosquitto", "postgres", "collector", "console"}
    for volume in services["mosquitto"]["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("./") and not source.endswith("secrets"):
            assert (FLEET_DIR / source).is_file()
    for name in ("collector", "console"):
        import sys

        command = [sys.executable, "-m", "misfire_runtime.cli", *services[name]["command"][1:3], "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for option in services[name]["command"][3:]:
            assert not option.startswith("--") or option in text
