"""`misfire fleet offer-again` reaches a vehicle that holds its samples back, and says if it cannot."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from misfire_fleet.commands.app import app
from misfire_runtime.errors import ConfigError, MisfireError
from misfire_runtime.messages import Rejected
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.spool import Spool
from misfire_runtime.testing import make_offer
from misfire_runtime.uplink import Uplink
from proving_ground.faults.samples import make_payload
from proving_ground.services import Mosquitto

pytestmark = pytest.mark.slow


def call(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["offer-again", *arguments])
    if isinstance(done.exception, MisfireError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_vehicle_that_holds_its_samples_back_offers_them_again(
    broker: Mosquitto, address: BrokerConfig, tmp_path: Path
) -> None:
    with Spool(tmp_path / "spool", reserve_bytes=0) as spool:
        for number in range(12):
            payload = make_payload("again", number)
            spool.add(payload, make_offer(payload, number=number, vehicle="held-back"))
        spool.settle_many([Rejected(id=pending.id, reason="ill") for pending in spool.next_offers(12)])
        with pytest.raises(ConfigError, match="held-back is not connected"):
            call("held-back", "--broker", broker.url, "--fleet", "north")
        uplink = Uplink(spool, fleet="north", vehicle="held-back", broker=address)
        uplink.start()
        assert uplink.wait_online(20) and spool.hold is not None
        assert "told to offer again" in call("held-back", "--broker", broker.url, "--fleet", "north")
        until = time.monotonic() + 10
        while spool.hold is not None and time.monotonic() < until:
            time.sleep(0.05)
        assert spool.hold is None and spool.counters().pending == 12
        uplink.close()
    with pytest.raises(ConfigError, match="is not connected"):
        call("held-back", "--broker", broker.url, "--fleet", "north")
