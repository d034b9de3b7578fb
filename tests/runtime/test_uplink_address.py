"""The broker's address: mistakes are named, secrets stay out of texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from misfire_runtime.errors import ConfigError
from misfire_runtime.uplink import BrokerConfig, make_client


@pytest.mark.parametrize(
    ("url", "options", "complaint"),
    [
        ("http://broker", {}, "expected mqtt://"),
        ("mqtt://", {}, "expected mqtt://"),
        ("mqtt://h:99999", {}, "expected mqtt://"),
        ("mqtt://h/path", {}, "expected mqtt://"),
        ("mqtt://h", {"protocol": "4"}, "protocol"),
        ("mqtt://h", {"ca_file": "x.pem"}, "need tls"),
        ("mqtt://h", {"colour": "red"}, "colour"),
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
