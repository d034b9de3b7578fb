"""Reads a certificate's expiry and common name without a cryptography library (a vehicle has none).

Certificate ::= SEQ { tbs SEQ { [0] version?, serial, algorithm, issuer, validity SEQ { from, until },
subject SEQ OF SET OF SEQ { attribute, value }, ... (RFC 5280, section 4.1). PEM or DER. Signatures are not
verified here; TLS does that.
"""

from __future__ import annotations

import ssl
from datetime import datetime, timezone
from pathlib import Path

# DER tags (X.690); BMP strings are two bytes per character.
_SEQUENCE, _SET, _VERSION, _UTC_TIME, _GENERALIZED, _BMP = 0x30, 0x31, 0xA0, 0x17, 0x18, 0x1E
_COMMON_NAME = bytes.fromhex("550403")
"""Object identifier 2.5.4.3."""
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def not_after(data: bytes) -> float:
    """Returns the end of validity of the first certificate, in seconds since 1970. Raises ValueError."""
    return validity(data)[1]


def validity(data: bytes) -> tuple[float, float]:
    """Returns start and end of validity of the first certificate, in seconds since 1970.

    Args:
        data: a certificate, or several, in PEM or DER.

    Raises:
        ValueError: it is not a certificate.
    """
    der = _der(data)
    try:
        at, _end = _expect(der, _validity_at(der), _SEQUENCE)
        first = _element(der, at)
        second = _element(der, first[2])
    except IndexError as error:
        raise ValueError("not a certificate: it ends too early") from error
    since, until = (_time(tag, der[start:end].decode("ascii")) for start, tag, end in (first, second))
    return since, until


def common_name(data: bytes) -> str | None:
    """Returns the common name of the first certificate; None if it has none. Raises ValueError."""
    der = _der(data)
    try:
        at, end = _expect(der, _element(der, _validity_at(der))[2], _SEQUENCE)
        while at < end:
            attributes, at = _expect(der, at, _SET)
            kind, _ = _expect(der, attributes, _SEQUENCE)
            start, _tag, stop = _element(der, kind)
            if der[start:stop] == _COMMON_NAME:
                start, tag, stop = _element(der, stop)
                return der[start:stop].decode("utf-16-be" if tag == _BMP else "utf-8", errors="replace")
    except IndexError as error:
        raise ValueError("not a certificate: it ends too early") from error
    return None


def name_problem(cert_file: Path, vehicle: str) -> str | None:
    """Returns a sentence if a vehicle's client certificate has another common name; None if it fits.

    A broker that uses the certificate's name (`use_identity_as_username`) allows a client only the topics of
    that name.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a certificate.
    """
    name = common_name(cert_file.read_bytes())
    if name == vehicle:
        return None
    issued = "has no common name" if name is None else f"is issued to {name!r}"
    return (
        f"{cert_file.name} {issued}, but this vehicle is {vehicle!r}: a broker that takes the name from the "
        "certificate refuses its topics; set `vehicle` to that name, or issue a certificate for this vehicle"
    )


def _validity_at(der: bytes) -> int:
    """Returns the offset of the element `validity`, which the subject follows."""
    certificate = _expect(der, 0, _SEQUENCE)
    at, _end = _expect(der, certificate[0], _SEQUENCE)
    # The version is optional: certificates of version 1 leave it out.
    if der[at] == _VERSION:
        at = _element(der, at)[2]
    for _field in ("serial", "algorithm", "issuer"):
        at = _element(der, at)[2]
    return at


def _der(data: bytes) -> bytes:
    # latin-1 decodes any byte, and so DER as well.
    text = data.decode("latin-1")
    if _BEGIN not in text:
        return data
    start = text.index(_BEGIN)
    end = text.find(_END, start)
    if end < 0:
        raise ValueError("not a certificate: its PEM has no end")
    # Only the first: a file may be a chain, and the client's own certificate comes first.
    return ssl.PEM_cert_to_DER_cert(text[start : end + len(_END)])


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Returns content start, tag, and end of the element at `at`. Raises IndexError if it is cut off."""
    tag, size, start = der[at], der[at + 1], at + 2
    # The long form: the low seven bits are the number of length bytes that follow.
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(der[start : start + count], "big")
        start += count
    if start + size > len(der):
        raise IndexError
    return start, tag, start + size


def _expect(der: bytes, at: int, tag: int) -> tuple[int, int]:
    start, found, end = _element(der, at)
    if found != tag:
        raise ValueError(f"not a certificate: expected a sequence at byte {at}")
    return start, end


def _time(tag: int, text: str) -> float:
    # UTCTime has two digits for the year: 50 to 99 are 1950 to 1999 (RFC 5280, section 4.1.2.5.1).
    if tag == _UTC_TIME:
        century = "19" if int(text[:2]) >= 50 else "20"
        text = century + text
    elif tag != _GENERALIZED:
        raise ValueError("not a certificate: its validity is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
