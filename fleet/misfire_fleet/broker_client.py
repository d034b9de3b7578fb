"""How the fleet's programs reach their broker: an address with credentials, and a paho client made of it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import BaseModel, ConfigDict, Field

from misfire_runtime.errors import ConfigError

_PORTS = {"mqtt": 1883, "mqtts": 8883}


class BrokerConfig(BaseModel):
    """Where the broker is and how to enter it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=1883, gt=0, lt=65536)
    protocol: Literal["5", "3.1.1"] = "5"
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


def make_client(broker: BrokerConfig, *, client_id: str) -> paho.Client:
    """A client with a clean session that is not yet connected."""
    version = paho.MQTTv5 if broker.protocol == "5" else paho.MQTTv311
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=version,
        clean_session=None if broker.protocol == "5" else True,
    )
    client.reconnect_delay_set(1, 30)
    if broker.username is not None:
        client.username_pw_set(broker.username, broker.password)
    if broker.tls:
        context = ssl.create_default_context(cafile=None if broker.ca_file is None else str(broker.ca_file))
        if broker.cert_file is not None:
            context.load_cert_chain(broker.cert_file, broker.key_file)
        client.tls_set_context(context)
    return client


def parse_broker(
    url: str,
    *,
    protocol: str = "5",
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
) -> BrokerConfig:
    """`mqtt[s]://[USER:PASSWORD@]HOST[:PORT]` to an address. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ConfigError(f"--broker {url!r}: expected mqtt://HOST:PORT or mqtts://HOST:PORT")
    if protocol not in {"5", "3.1.1"}:
        raise ConfigError(f"--protocol {protocol!r}: expected 5 or 3.1.1")
    try:
        return BrokerConfig(
            host=parts.hostname,
            port=parts.port or _PORTS[parts.scheme],
            protocol="5" if protocol == "5" else "3.1.1",
            username=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
            tls=parts.scheme == "mqtts",
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
        )
    except ValueError as error:
        raise ConfigError(f"--broker {url!r}: {error}") from error
