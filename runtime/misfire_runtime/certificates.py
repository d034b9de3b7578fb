"""When a certificate expires, read from its PEM or DER without a cryptography library (a vehicle has none).

Certificate ::= SEQ { tbs SEQ { [0] version?, serial, algorithm, issuer, validity SEQ { from, until }, ...
(RFC 5280, section 4.1). Nothing is verified here: that is TLS's work.
"""

from __future__ import annotations

import ssl
from datetime import datetime, timezone

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED = 0x30, 0xA0, 0x17, 0x18
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def not_after(data: bytes) -> float:
    """End of validity of the first certificate in `data`, seconds since 1970. Raises ValueError."""
    der = _der(data)
    try:
        certificate = _expect(der, 0, _SEQUENCE)
        at, _end = _expect(der, certificate[0], _SEQUENCE)
        if der[at] == _VERSION:
            at = _element(der, at)[2]
        for _field in ("serial", "algorithm", "issuer"):
            at = _element(der, at)[2]
        at, _end = _expect(der, at, _SEQUENCE)
        at = _element(der, at)[2]
        start, tag, end = _element(der, at)
    except IndexError as error:
        raise ValueError("not a certificate: it ends too early") from error
    return _time(tag, der[start:end].decode("ascii"))


def _der(data: bytes) -> bytes:
    text = data.decode("latin-1")
    if _BEGIN not in text:
        return data
    start = text.index(_BEGIN)
    end = text.find(_END, start)
    if end < 0:
        raise ValueError("not a certificate: its PEM has no end")
    return ssl.PEM_cert_to_DER_cert(text[start : end + len(_END)])


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Start of the content, tag, and end, of the element at `at`."""
    tag, size, start = der[at], der[at + 1], at + 2
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
    if tag == _UTC_TIME:
        century = "19" if int(text[:2]) >= 50 else "20"
        text = century + text
    elif tag != _GENERALIZED:
        raise ValueError("not a certificate: its validity is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
