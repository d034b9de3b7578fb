"""Runs the shipped broker configuration in a real Mosquitto: certificates, passwords, and two listeners."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from misfire_runtime.mqtt.client import BrokerConfig
from proving_ground.services import find_program, free_port, stop_process, wait_for_port

FLEET_DIR = Path(__file__).resolve().parents[1]
DAY = datetime.timedelta(days=1)
PASSWORDS = {"collector": "a password", "operator": "another password"}


@dataclass
class Authority:
    """Holds a certificate authority in a folder, as docs/fleet.md makes one with openssl."""

    folder: Path

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fleet")])
        self._write("ca", self._signed(self._name, self._key, ca=True), self._key)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Makes certificate and key of a common name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._write(name, self._signed(subject, key, ca=False), key)

    def revoke(self, certificate: Path) -> Path:
        """Makes a list of revoked certificates with this one."""
        now = datetime.datetime.now(datetime.timezone.utc)
        serial = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name).last_update(now - DAY)
        signed = (
            builder.next_update(now + DAY).add_revoked_certificate(entry).sign(self._key, hashes.SHA256())
        )
        file = self.folder / "ca.crl"
        file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return file

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
    """Holds the running broker and how to connect to it."""

    inside_port: int
    tls_port: int
    authority: Authority
    process: subprocess.Popen[bytes]

    def server(self, user: str = "collector") -> BrokerConfig:
        """Enters from inside with a password."""
        return BrokerConfig(port=self.inside_port, username=user, password=PASSWORDS[user])

    def vehicle(self, name: str) -> BrokerConfig:
        """Enters over TLS with a certificate of this name."""
        folder = self.authority.folder
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        if not certificate.exists():
            self.authority.issue(name)
        return BrokerConfig(
            port=self.tls_port,
            tls=True,
            ca_file=self.authority.folder / "ca.crt",
            cert_file=certificate,
            key_file=key,
        )


def shipped_config(folder: Path, *, inside_port: int, tls_port: int) -> str:
    """Returns mosquitto.conf with this folder for the container's, and these ports on loopback."""
    text = (FLEET_DIR / "mosquitto" / "mosquitto.conf").read_text().replace("/mosquitto/", f"{folder}/")
    text = text.replace("listener 8883", f"listener {tls_port} 127.0.0.1")
    # Started as root, Mosquitto changes to another user, who may not read the test's folder.
    return "user root\n" + text.replace("listener 1883", f"listener {inside_port} 127.0.0.1")


@contextmanager
def hardened(folder: Path, *, fleet: str, crl_of: str | None = None) -> Iterator[Hardened]:
    """Runs a Mosquitto as shipped, with certificates and passwords of its own, for one fleet.

    crl_of: a vehicle whose certificate is revoked before the broker starts.
    """
    program = find_program("mosquitto", install="apt-get install mosquitto")
    for name in ("secrets", "config"):
        (folder / name).mkdir(parents=True)
    authority = Authority(folder / "secrets")
    authority.issue("broker")
    passwords = find_program("mosquitto_passwd", install="apt-get install mosquitto")
    file = folder / "secrets" / "passwords"
    file.touch()
    for user, password in PASSWORDS.items():
        subprocess.run([passwords, "-b", str(file), user, password], check=True)
    for name in ("acl.vehicles", "acl.servers"):
        rules = (FLEET_DIR / "mosquitto" / name).read_text()
        (folder / "config" / name).write_text(rules.replace("/default/", f"/{fleet}/"))
    inside, outside = free_port(), free_port()
    text = shipped_config(folder, inside_port=inside, tls_port=outside)
    if crl_of is not None:
        authority.revoke(authority.issue(crl_of)[0])
        text = text.replace("# crlfile", "crlfile")
    config = folder / "mosquitto.conf"
    config.write_text(text)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=log)
    try:
        for port in (inside, outside):
            wait_for_port(port)
        yield Hardened(inside, outside, authority, process)
    finally:
        stop_process(process)
