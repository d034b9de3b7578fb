"""Explains why there is no connection to the broker, and what to do about it.

An exception of the socket, TLS or DNS, or a reason code of MQTT 5 --> one sentence. With MQTT 3.1.1, a broker
that disconnects gives no reason; then at least the certificate's dates are checked.
"""

from __future__ import annotations

import socket
import ssl
from datetime import datetime, timezone
from typing import Any

from misfire_runtime import clock
from misfire_runtime.mqtt.certificates import not_after
from misfire_runtime.mqtt.client import BrokerConfig

_EXPIRED, _NOT_YET, _UNTRUSTED, _WRONG_NAME = (10,), (9,), (2, 7, 18, 19, 20, 21), (62, 64)
"""Codes of OpenSSL's X509_verify_cert_error_string."""
_ALERTS = {
    "CERTIFICATE_REQUIRED": "the broker requires a client certificate: set cert_file and key_file",
    "CERTIFICATE_EXPIRED": "the broker says that this client's certificate has expired: renew it",
    "CERTIFICATE_REVOKED": "the broker says that this client's certificate is revoked",
    "UNKNOWN_CA": "the broker does not trust the authority that signed this client's certificate",
    "BAD_CERTIFICATE": "the broker does not accept this client's certificate",
    "CERTIFICATE_UNKNOWN": "the broker does not accept this client's certificate",
    "UNSUPPORTED_CERTIFICATE": "the broker does not accept this kind of client certificate",
    "HANDSHAKE_FAILURE": "the TLS handshake failed: the broker may require a client certificate",
    "WRONG_VERSION_NUMBER": "what answers does not speak TLS: use the broker's TLS port, or mqtt://",
    "PROTOCOL_VERSION": "the broker offers no TLS version above 1.1",
}
_REASONS = {
    0x84: "it does not speak this version of MQTT: set protocol to 3.1.1, or to 5",
    0x85: "it does not accept the client id",
    0x86: "the user name or the password is wrong",
    0x87: "not authorised: the user name or password is wrong, or its access rules do not allow this client",
    0x88: "it is not available now",
    0x89: "it is busy",
    0x8A: "this client is banned",
    0x8B: "it shuts down",
    0x8D: "it heard nothing from this client within the keep-alive time",
    0x8E: "another client took over the session: two clients use the same client id",
    0x95: "a message was larger than it takes",
    0x97: "a quota is used up",
    0x98: "an administrator ended the connection",
    0x9C: "another server is to be used",
    0x9D: "the server has moved",
    0x9F: "connections come too fast",
}


def in_words(error: BaseException, broker: BrokerConfig, *, answered: bool = False) -> str:
    """Returns a sentence for an error of the connection, without address and password.

    Args:
        error: the exception.
        broker: the broker's configuration.
        answered: whether the broker had answered on this connection.
    """
    # Before SSLError, of which it is a subclass.
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, broker)
    if isinstance(error, ssl.SSLError):
        return _tls_failed(error, broker) + own_certificate(broker)
    known: tuple[tuple[type[OSError], str], ...] = (
        (socket.gaierror, f"host {broker.host} not found: check the name, and whether this machine has DNS"),
        # Before ConnectionError, of which it is a subclass; the first match counts.
        (ConnectionRefusedError, f"connection refused: nothing listens on port {broker.port} there"),
        (TimeoutError, f"no answer within {broker.connect_timeout_s:g} s"),
        (ConnectionError, closed(broker, answered=answered)),
    )
    for kind, words in known:
        if isinstance(error, kind):
            return words
    return str(getattr(error, "strerror", None) or error) + own_certificate(broker)


def closed(broker: BrokerConfig, *, answered: bool) -> str:
    """Returns a sentence for a connection that ended without a reason; `answered` as in `in_words`."""
    hint = ""
    if not answered:
        speech = "TLS" if broker.tls else "plain MQTT"
        hint = f" before it answered; does it speak {speech} on port {broker.port}?"
    return f"the broker closed the connection{hint}{own_certificate(broker)}"


def reason_in_words(reason: Any) -> str:
    """Returns a sentence for a failure's reason code (paho's ReasonCode)."""
    return _REASONS.get(getattr(reason, "value", -1), str(reason))


def own_certificate(broker: BrokerConfig) -> str:
    """Returns a clause to append if the client's own certificate has expired; else an empty text."""
    if broker.cert_file is None:
        return ""
    try:
        until = not_after(broker.cert_file.read_bytes())
    except (OSError, ValueError):
        return ""
    if until > clock.wall_time():
        return ""
    date = datetime.fromtimestamp(until, timezone.utc).date().isoformat()
    return f"; {broker.cert_file.name} expired on {date}: renew it"


def _unverified(error: ssl.SSLCertVerificationError, broker: BrokerConfig) -> str:
    code = error.verify_code
    if code in _EXPIRED:
        return "the broker's certificate has expired, or this machine's clock is wrong"
    if code in _NOT_YET:
        return "the broker's certificate is not valid yet: check this machine's clock"
    if code in _WRONG_NAME:
        return f"the broker's certificate is not for {broker.host}: use the name that it is issued to"
    if code in _UNTRUSTED:
        trusted = broker.ca_file.name if broker.ca_file is not None else "this system"
        return f"the broker's certificate is not signed by an authority that {trusted} trusts: check ca_file"
    return f"the broker's certificate does not verify: {error.verify_message}"


def _tls_failed(error: ssl.SSLError, broker: BrokerConfig) -> str:
    # The alert's name is in `reason` with underscores, or only in the text, with spaces.
    text = f"{error.reason or ''} {error}".upper().replace(" ", "_")
    for name, words in _ALERTS.items():
        if name in text:
            return words
    # Closed without an alert, so the cause can only be guessed.
    if "EOF" in text:
        hint = "" if broker.cert_file else "; if it requires a client certificate, set cert_file and key_file"
        return f"the broker closed the connection during the TLS handshake{hint}"
    return f"TLS failed: {error.reason or error}"
