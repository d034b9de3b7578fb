"""Rows of the fault suite for what travels beside the samples: state with its Will, telemetry, desired and
reported configuration, each lost, repeated, overtaken, stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from misfire_runtime.messages import State
from proving_ground.faults.chaos_proxy import BESIDE, Trouble
from proving_ground.faults.ground import ProvingGround


@pytest.mark.parametrize("trouble", ["lose", "repeat", "reorder"])
def test_messages_beside_the_samples(tmp_path: Path, trouble: str) -> None:
    """On both sides' links. In the end the fleet knows what is, and the vehicle runs what was wished last."""
    link = Trouble(**{trouble: 0.3}, kinds=BESIDE)
    with ProvingGround(tmp_path, seed=51) as ground:
        collector = ground.add_collector()
        collector.proxy.trouble = Trouble(**vars(link))
        car = ground.add_vehicle(count=20, rate=50, heartbeat_s=0.2, link=link)
        for version in range(1, 6):
            ground.wishes.desire("car-0", version, random={"rate": version / 10})
            assert ground.wait(lambda version=version: ground.wishes.in_force("car-0") == version)
        assert ground.settle()
        assert ground.wait(lambda: ground.online(car))
        assert ground.wait(lambda: _stored_by_telemetry(ground) == 20)
        ground.kill(car)
        assert ground.wait(lambda: not ground.online(car))
        ground.revive(car)
        assert ground.wait(lambda: ground.online(car))
        result = ground.audit()
        assert result.sound and result.stored == 20, result
        assert {name.split()[1] for name in car.proxy.faults} == set(BESIDE), car.proxy.faults


def _stored_by_telemetry(ground: ProvingGround) -> int:
    beats = [found.telemetry for found in ground.console.vehicles.summaries() if found.telemetry is not None]
    return beats[0].counters.stored if beats else -1


def test_a_vehicle_that_is_killed_is_seen_offline_and_seen_again(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=52) as ground:
        ground.add_collector()
        car = ground.add_vehicle(count=1)
        for _ in range(2):
            assert ground.wait(lambda: ground.online(car))
            ground.kill(car)
            assert ground.wait(lambda: not ground.online(car))
            ground.revive(car)
        assert ground.settle()


def test_a_will_that_comes_after_the_next_birth_is_contradicted(tmp_path: Path) -> None:
    """The old connection is half-open: the broker finds out, and speaks the Will, when the new one lives."""
    with ProvingGround(tmp_path, seed=53) as ground:
        ground.add_collector()
        car = ground.add_vehicle(count=1, keepalive_s=2)
        states = ground.wishes.states["car-0"]
        assert ground.wait(lambda: ground.online(car))
        ground.abandon_link(car)
        before = len(states)
        ground.revive(car)
        told = "birth, death, birth"
        assert ground.wait(lambda: told in ", ".join(_word(state) for state in states[before:])), states
        assert ground.settle() and ground.wait(lambda: ground.online(car))


def _word(state: State) -> str:
    return "birth" if state.online else "death"


def test_a_stale_retained_wish_does_not_turn_a_vehicle_back(tmp_path: Path) -> None:
    """Also where the broker lost its memory, and the vehicle was killed since."""
    with ProvingGround(tmp_path, seed=54) as ground:
        ground.add_collector()
        car = ground.add_vehicle(count=1)
        ground.wishes.desire("car-0", 5, random={"rate": 0.5})
        assert ground.wait(lambda: ground.wishes.in_force("car-0") == 5)
        ground.kill(car)
        ground.restart_broker()
        assert ground.wait(lambda: ground.wishes.connected)
        ground.wishes.leave("car-0", 3)
        ground.revive(car)
        assert ground.wait(lambda: "car-0" in ground.wishes.reported)
        word = ground.wishes.reported["car-0"]
        assert (word.version, word.accepted) == (5, False) and "3 is not above 5" in word.reason
        ground.wishes.desire("car-0", 6, random={"rate": 0.25})
        assert ground.wait(lambda: ground.wishes.in_force("car-0") == 6)
        assert ground.settle() and ground.audit().sound
