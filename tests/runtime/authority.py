"""A certificate authority in a folder, for brokers and clients of tests."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates; `ca_file` is what trusts them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca_file, _ = self.issue("ca")

    def issue(self, name: str, *, days: int = 1, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """Files of a certificate and its key. days: until it expires; negative: since it has."""
        key = self._key if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("ca"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY * (1 - min(0, days)))
            .not_valid_after(now + _DAY * days)
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(alternatives, critical=False)
        )
        if name == "ca":
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        files = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        files[0].write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files

    def listener(self, *, days: int = 1, address: str = "127.0.0.1") -> str:
        """Lines of a Mosquitto listener with a certificate of its own; it may read the test's files."""
        cert_file, key_file = self.issue("server", days=days, address=address)
        return f"cafile {self.ca_file}\ncertfile {cert_file}\nkeyfile {key_file}\nuser root"


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
