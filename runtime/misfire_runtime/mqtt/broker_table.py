"""Defines the `[broker]` table of a configuration file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field, field_validator, model_validator

from misfire_runtime.errors import ConfigError
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.tables import RelativePath


class BrokerTable(BrokerConfig):
    """Configures the broker by `url`, or by `host` and `port`; without both there is no broker.

    `connection` checks whether plain MQTT to another machine is allowed, because the command line may allow
    it.
    """

    address: str | None = Field(default=None, alias="url", repr=False)
    ca_file: RelativePath | None = None
    cert_file: RelativePath | None = None
    key_file: RelativePath | None = None
    password_file: RelativePath | None = None

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None:
            _as_value_error(BrokerConfig.from_url, url, insecure=True)
        return url

    @model_validator(mode="after")
    def _plain_stays_here(self) -> BrokerTable:
        return self

    @model_validator(mode="after")
    def _certificates_need_tls(self) -> BrokerTable:
        given = self._given()
        if "url" in given and given.keys() & {"host", "port", "tls"}:
            raise ValueError("a url already says host, port and tls; leave these out")
        _as_value_error(BrokerConfig.from_table, {**given, "insecure": True})
        return self

    def connection(self) -> BrokerConfig | None:
        """Returns the broker's configuration; None if the table names no broker.

        Raises:
            ConfigError: a value is invalid; the message never contains the password.
        """
        return BrokerConfig.from_table(self._given())

    def _given(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True, by_alias=True)


def _as_value_error(check: Callable[..., object], *arguments: object, **options: object) -> None:
    """Calls `check`; raises its ConfigError as ValueError, to which pydantic adds the key."""
    try:
        check(*arguments, **options)
    except ConfigError as error:
        raise ValueError(str(error)) from None
