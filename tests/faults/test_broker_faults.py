"""Rows of the fault suite that the broker makes: killed, forgetful, narrow, and two clients with one name."""

from __future__ import annotations

import time
from pathlib import Path

from proving_ground.faults.ground import ProvingGround


def test_a_broker_killed_again_and_again(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=11) as ground:
        ground.add_collector()
        for protocol in ("5", "3.1.1"):
            ground.add_vehicle(count=60, rate=30, protocol=protocol)
        for _ in range(4):
            time.sleep(0.4)
            ground.restart_broker(down_s=0.2)
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 120, result


def test_a_broker_that_drops_what_it_has_acknowledged(tmp_path: Path) -> None:
    """Mosquitto's own way: beyond its queue it acknowledges, and throws away."""
    narrow = "max_queued_messages 2\nmax_inflight_messages 1"
    with ProvingGround(tmp_path, seed=12, broker_options=narrow) as ground:
        ground.add_collector()
        ground.add_vehicle(count=80, rate=1000, size=[30_000, 60_000])
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 80, result


def test_a_broker_that_takes_small_packets_only(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=13, broker_options="max_packet_size 4000") as ground:
        ground.add_collector()
        ground.add_vehicle(count=5, rate=1000, size=[20_000, 40_000])
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 5, result


def test_two_vehicles_that_share_a_client_id(tmp_path: Path) -> None:
    """They throw each other out for as long as both live; when one is gone, the other delivers."""
    with ProvingGround(tmp_path, seed=14) as ground:
        ground.add_collector()
        cars = [ground.add_vehicle(count=20, rate=100) for _ in range(2)]
        for car in cars:
            ground.kill(car)
            ground.revive(car, broker={**car.config["broker"], "client_id": "the-same"})
        time.sleep(2.0)
        ground.kill(cars[0])
        assert ground.wait(lambda: ground.at_rest(cars[1]))
        ground.revive(cars[0], broker={**cars[0].config["broker"], "client_id": "another"})
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 40, result
