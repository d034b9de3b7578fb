"""The vehicle reads from its certificate whom it is issued to."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from misfire_runtime.mqtt.certificates import common_name, name_problem

OID = x509.NameOID


def certificate(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(OID.COMMON_NAME, "the authority")])
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=9999))
    return builder.sign(key, hashes.SHA256())


def test_the_common_name_is_the_subjects_from_pem_and_der() -> None:
    made = certificate(
        (OID.COUNTRY_NAME, "DE"), (OID.ORGANIZATION_NAME, "Bus AG"), (OID.COMMON_NAME, "bus-12")
    )
    for encoding in (Encoding.PEM, Encoding.DER):
        assert common_name(made.public_bytes(encoding)) == "bus-12"


def test_a_subject_without_a_common_name_has_none() -> None:
    assert common_name(certificate((OID.ORGANIZATION_NAME, "Bus AG")).public_bytes(Encoding.PEM)) is None
    assert common_name(certificate().public_bytes(Encoding.PEM)) is None


@given(st.binary(max_size=300))
def test_what_is_no_certificate_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        common_name(b"\x00" + data)


def test_a_certificate_of_another_vehicle_is_named_with_both_names(tmp_path: Path) -> None:
    file = tmp_path / "vehicle.pem"
    file.write_bytes(certificate((OID.COMMON_NAME, "bus-12")).public_bytes(Encoding.PEM))
    assert name_problem(file, "bus-12") is None
    problem = name_problem(file, "bus-13")
    assert problem is not None and "'bus-12'" in problem and "'bus-13'" in problem
    file.write_bytes(certificate().public_bytes(Encoding.PEM))
    assert "no common name" in str(name_problem(file, "bus-13"))
