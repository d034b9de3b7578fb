"""Rows of the fault suite that the fleet makes: collectors killed at every step, two at once, bad stores."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.faults.chaos_proxy import Trouble
from tests.faults.collector_process import STEPS
from tests.faults.proving_ground import ProvingGround


@pytest.mark.parametrize("step", STEPS)
def test_killed_before_or_after_a_step_of_its_work(tmp_path: Path, step: str) -> None:
    with ProvingGround(tmp_path, seed=31) as ground:
        collector = ground.add_collector(die_at=step, die_after=2)
        ground.add_vehicle(count=40, rate=100)
        until = time.monotonic() + 30
        while collector.alive and time.monotonic() < until:
            time.sleep(0.02)
        assert not collector.alive, f"it never reached {step}"
        ground.revive(collector, die_at=None)
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 40, result


def test_killed_at_random_while_another_goes_on(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=32) as ground:
        collectors = [ground.add_collector() for _ in range(2)]
        ground.add_vehicle(count=80, rate=20)
        for number in range(6):
            time.sleep(ground.rng.uniform(0.1, 0.5))
            ground.kill(collectors[number % 2])
            ground.revive(collectors[number % 2])
        assert ground.settle(timeout_s=90)
        result = ground.audit()
        assert result.sound and result.stored == 80, result


def test_two_collectors_that_finish_the_same_sample(tmp_path: Path) -> None:
    """Every offer is repeated, so that both collectors ask for it; every message arrives twice."""
    with ProvingGround(tmp_path, seed=33) as ground:
        for _ in range(2):
            ground.add_collector()
        car = ground.add_vehicle(count=60, rate=1000)
        car.proxy.trouble = Trouble(repeat=1.0)
        assert ground.settle(timeout_s=90)
        result = ground.audit()
        assert result.sound and result.stored == 60, result


@pytest.mark.parametrize("what", ["down", "slow", "full"])
@pytest.mark.parametrize("part", ["blobs", "rows"])
def test_a_store_that_fails_for_a_while(tmp_path: Path, part: str, what: str) -> None:
    with ProvingGround(tmp_path, seed=34) as ground:
        ground.add_collector(trouble={"part": part, "what": what, "seconds": 2.0})
        ground.add_vehicle(count=40, rate=100)
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 40, result
