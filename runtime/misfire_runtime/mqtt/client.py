"""Configures the connection to the broker (address, protocol, TLS, credentials), and makes a paho client."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from misfire_runtime.choices import MqttVersion
from misfire_runtime.errors import ConfigError
from misfire_runtime.toml import explain

MAX_HANDED = 8
"""Maximum number of messages in paho, whose own queue is in memory and unbounded."""


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:/?#\[\]]*)(:\d+(?=/?$))?")
"""A host, and a port of digits at the end: the part of an address that cannot hold a password."""
_EXPECTED = (
    "expected mqtt://HOST:PORT or mqtts://HOST:PORT; a password with : / ? # @ in it belongs in password_file"
)


class BrokerConfig(BaseModel):
    """Configures a broker. `mqtts://` (port 8883) means TLS; put a password into `password_file`.

    With plain MQTT to another machine, everybody on the network path can read pictures and password, and
    forge verdicts that delete samples; it requires `insecure`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Field(gt=0, lt=65536)] = 1883
    protocol: MqttVersion = "5"
    tls: bool = False
    ca_file: Path | None = None
    """Trusted authorities; None uses those of the system."""
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password: str | None = Field(default=None, repr=False)
    password_file: Path | None = None
    client_id: str | None = None
    """For brokers that require the client id of a certificate. Default: made from vehicle and boot."""
    insecure: bool = False
    """Allows plain MQTT to another machine."""
    keepalive_s: Annotated[int, Field(ge=2, le=3600)] = 30
    connect_timeout_s: Annotated[float, Field(gt=0, le=300)] = 5.0

    @model_validator(mode="after")
    def _certificates_need_tls(self) -> BrokerConfig:
        if (self.ca_file or self.cert_file or self.key_file) and not self.tls:
            raise ValueError("ca_file, cert_file and key_file need tls = true (or an mqtts:// address)")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file needs cert_file")
        return self

    @model_validator(mode="after")
    def _plain_stays_here(self) -> BrokerConfig:
        if not (self.tls or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"plain MQTT to {self.host} is not encrypted; use mqtts://, or allow it on a network you "
                "trust: --insecure, or `insecure = true` in [broker]"
            )
        return self

    @classmethod
    def from_url(cls, url: str, **options: object) -> BrokerConfig:
        """Parses `mqtt[s]://[user[:password]@]host[:port]`.

        Args:
            url: the address.
            options: further fields.

        Raises:
            ConfigError: the address or a field is invalid. The message never contains a password or a part of
                it: an address is shown without what precedes its last `@`, and causes that quote it are
                    removed.
        """
        # First: from here on, every error may quote it.
        shown = _without_credentials(url)
        try:
            parts = urlsplit(url if "://" in url else f"mqtt://{url}")
            scheme, host, port, path = parts.scheme, parts.hostname, parts.port, parts.path
        except ValueError:
            raise ConfigError(f"broker {shown!r}: {_EXPECTED}") from None
        if (
            scheme not in ("mqtt", "mqtts")
            or not host
            or path not in ("", "/")
            or parts.query
            or parts.fragment
        ):
            raise ConfigError(f"broker {shown!r}: {_EXPECTED}")
        tls = scheme == "mqtts"
        # The ports that IANA registered for MQTT.
        usual = 8883 if tls else 1883
        fields: dict[str, object] = {"host": host, "port": usual if port is None else port, "tls": tls}
        if parts.username:
            fields["username"] = unquote(parts.username)
        if parts.password:
            fields["password"] = unquote(parts.password)
        return cls._checked({**fields, **options}, f"broker {shown!r}")

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> BrokerConfig | None:
        """Parses the `[broker]` table of a configuration: a `url`, or host and port, and other fields.

        Returns:
            None if the table names no broker.

        Raises:
            ConfigError: a value is invalid; the message never contains the password.
        """
        options = dict(table)
        url = options.pop("url", None)
        if url is not None:
            return cls.from_url(str(url), **options)
        return cls._checked(options, "broker") if "host" in options else None

    @classmethod
    def _checked(cls, fields: Mapping[str, object], where: str) -> BrokerConfig:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            problem = explain(error, file=where, most=1, show_input=False)
        raise ConfigError(problem)  # outside of `except`: the cause would quote a password

    @property
    def url(self) -> str:
        """Returns the address without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"


def _without_credentials(url: str) -> str:
    """Returns the part of an address, however malformed, that cannot contain a password."""
    scheme, found, rest = url.partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        scheme, found, rest = "", "", url
    # The last @: a password may have one that was not escaped.
    place = rest.rpartition("@")[2]
    match = _PLACE.match(place)
    shown = match.group() if match else ""
    return f"{scheme}{found}{shown}" + ("..." if shown != place else "")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Names below localhost are loopback by definition (RFC 6761); other names are not resolved.
        return host == "localhost" or host.endswith(".localhost")


def make_client(
    broker: BrokerConfig, *, client_id: str, kind: type[paho.Client] = paho.Client
) -> paho.Client:
    """Returns a client with a clean session, not yet connected.

    Args:
        broker: the broker's configuration.
        client_id: used if the configuration has none.
        kind: class of the client.

    Raises:
        ConfigError: a certificate, key or password file cannot be used.
    """
    v5 = broker.protocol == "5"
    client = kind(
        CallbackAPIVersion.VERSION2,
        client_id=broker.client_id or client_id,
        protocol=paho.MQTTv5 if v5 else paho.MQTTv311,
        # paho refuses `clean_session` with MQTT 5, which has a flag of the connect call instead.
        clean_session=None if v5 else True,
    )
    # Above MAX_HANDED, so that paho sends every message at once and never queues one.
    client.max_inflight_messages_set(MAX_HANDED * 2)
    client.connect_timeout = broker.connect_timeout_s
    client.on_socket_open = lambda _client, _data, opened: _send_at_once(opened)
    if broker.username is not None:
        client.username_pw_set(broker.username, _password(broker))
    if broker.tls:
        client.tls_set_context(_context(broker))
    return client


def _send_at_once(opened: Any) -> None:
    """Switches Nagle's algorithm off, which delays a small message until the previous one is acknowledged."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def acknowledge_at_once(opened: Any) -> None:
    """Sends the pending TCP acknowledgement at once, if the system supports it (Linux).

    A broker that does not switch Nagle's algorithm off (Mosquitto does so only with set_tcp_nodelay) waits
    for it before its next small message, and systems delay acknowledgements by 40 ms. The setting lasts until
    the next read.
    """
    quick = getattr(socket, "TCP_QUICKACK", None)
    if quick is not None and opened is not None:
        with contextlib.suppress(OSError):
            opened.setsockopt(socket.IPPROTO_TCP, quick, 1)


def _password(broker: BrokerConfig) -> str | None:
    if broker.password_file is None:
        return broker.password
    try:
        # Editors end a file with a line break, which is not part of the password.
        return broker.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"password file {broker.password_file}: {error}") from error


def _context(broker: BrokerConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=broker.ca_file)
        if broker.cert_file is not None:
            context.load_cert_chain(broker.cert_file, broker.key_file)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(f) for f in (broker.ca_file, broker.cert_file, broker.key_file) if f)
        raise ConfigError(f"TLS to {broker.url} with {files or 'the system authorities'}: {error}") from error
    # TLS 1.0 and 1.1 are deprecated (RFC 8996).
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
