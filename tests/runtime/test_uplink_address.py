"""The broker's address: mistakes are named, secrets stay out of texts."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from misfire_fleet.commands.collect import collect
from misfire_runtime.commands.run import broker_options, overlay
from misfire_runtime.config.tables import VehicleConfig, parse_config
from misfire_runtime.errors import ConfigError
from misfire_runtime.mqtt.client import BrokerConfig, make_client
from misfire_runtime.vehicle.session import broker_config

collect_app = typer.Typer()
collect_app.command()(collect)


@pytest.mark.parametrize(
    ("url", "options", "complaint"),
    [
        ("http://broker", {}, "expected mqtt://"),
        ("mqtt://", {}, "expected mqtt://"),
        ("mqtt://h:99999", {}, "expected mqtt://"),
        ("mqtt://h:0", {}, "port: .*greater than 0"),
        ("mqtt://h/path", {}, "expected mqtt://"),
        ("mqtt://h", {"protocol": "4"}, "protocol"),
        ("mqtt://h", {"ca_file": "x.pem"}, "need tls"),
        ("mqtt://h", {"colour": "red"}, "colour: unknown key"),
        ("mqtt://127.0.0.1:1883?retain=1", {}, "expected mqtt://"),
    ],
)
def test_a_wrong_address_is_a_clear_error(url: str, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        BrokerConfig.from_url(url, **options)


def test_a_missing_certificate_is_a_clear_error(tmp_path: Path) -> None:
    address = BrokerConfig.from_url("mqtts://h", ca_file=tmp_path / "absent.pem")
    with pytest.raises(ConfigError, match="absent"):
        make_client(address, client_id="x")


def test_credentials_in_the_address_are_kept_out_of_texts() -> None:
    address = BrokerConfig.from_url("mqtts://user:se%20cret@broker.example:1234")
    assert (address.username, address.password, address.port) == ("user", "se cret", 1234)
    assert "cret" not in address.url + repr(address)


SECRET = "hunter2x"


@pytest.mark.parametrize(
    "url",
    [
        f"mqtt://car:p@{SECRET}:w#rd@h:1",
        f"mqtt://car:{SECRET}#x@h:1",
        f"mqtt://car:{SECRET}/x@h",
        f"mqtt://car:{SECRET}",
        f"mqtt://car:12{SECRET}",
        f"mqtt://car:{SECRET}@h:99999",
        f"mqtt://car:{SECRET}@h/path",
        f"mqtt://car:a://{SECRET}@[::1",
        f"ftp://car:{SECRET}@h",
        f"car:{SECRET}@broker.example.com",
        f"mqtt://car:{SECRET}@h?x=1",
    ],
)
@pytest.mark.parametrize("options", [{}, {"keepalive_s": "often"}])
def test_no_error_shows_a_password_however_the_address_is_wrong(url: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        BrokerConfig.from_url(url, **options)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown.replace(repr(url), "")


@pytest.mark.parametrize(
    "table",
    [
        {"host": "127.0.0.1", "password": [SECRET]},
        {"host": "127.0.0.1", "password": SECRET, "port": "x"},
        {"url": "mqtt://127.0.0.1", "password": {"is": SECRET}},
    ],
)
def test_no_error_in_a_table_shows_a_password(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"password|port") as caught:
        BrokerConfig.from_table(table)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ConfigError) as caught:
        parse_config(f'broker = "mqtt://car:{SECRET}@h"')
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "[::1]"])
def test_plain_mqtt_stays_on_this_machine(host: str) -> None:
    assert not BrokerConfig.from_url(f"mqtt://{host}:1883").tls


@pytest.mark.parametrize("host", ["broker.example.com", "10.0.0.7", "[fe80::1]", "localhost.example.com"])
def test_plain_mqtt_to_another_machine_needs_to_be_allowed(host: str) -> None:
    with pytest.raises(ConfigError, match=r"mqtts://.*--insecure.*insecure = true"):
        BrokerConfig.from_url(f"mqtt://{host}:1883")
    assert BrokerConfig.from_url(f"mqtt://{host}:1883", insecure=True).url == f"mqtt://{host}:1883"
    assert BrokerConfig.from_url(f"mqtts://{host}").tls
    with pytest.raises(ConfigError, match="insecure"):
        BrokerConfig.from_table({"host": host.strip("[]")})


def test_the_option_allows_it_for_a_vehicle_and_a_collector(tmp_path: Path) -> None:
    said = CliRunner().invoke(
        collect_app, ["--broker", "mqtt://broker.example.com", "--fleet-dir", str(tmp_path)]
    )
    assert "--insecure" in str(said.exception)
    config = overlay(VehicleConfig(), {"broker": broker_options("mqtt://h", "5", insecure=True)})
    assert broker_config(config) == BrokerConfig(host="h", insecure=True)
