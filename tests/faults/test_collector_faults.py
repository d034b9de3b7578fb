"""Rows of the fault suite that the fleet makes, on SQLite and a folder and on PostgreSQL and S3: collectors
killed at every step, two at once, stores that fail (what servers themselves suffer: test_server_faults)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from proving_ground.faults.chaos_proxy import Trouble
from proving_ground.faults.collector_process import STEPS
from proving_ground.faults.ground import ProvingGround
from proving_ground.faults.homes import FolderHome, Home, ServerHome
from proving_ground.faults.small_disk import small_disk
from proving_ground.services import missing


@pytest.mark.parametrize("step", STEPS)
def test_killed_before_or_after_a_step_of_its_work(tmp_path: Path, home: Home, step: str) -> None:
    """Two vehicles one after the other make every step happen twice at least, however work is grouped."""
    with ProvingGround(tmp_path, seed=31, home=home) as ground:
        collector = ground.add_collector(die_at=step, die_after=1)
        first = ground.add_vehicle(count=20, rate=200)
        assert ground.wait(lambda: ground.at_rest(first) or not collector.alive)
        ground.add_vehicle(count=20, rate=200)
        assert ground.wait(lambda: not collector.alive), f"it never reached {step}"
        ground.revive(collector, die_at=None)
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 40, result


def test_killed_at_random_while_another_goes_on(tmp_path: Path, home: Home) -> None:
    with ProvingGround(tmp_path, seed=32, home=home) as ground:
        collectors = [ground.add_collector() for _ in range(2)]
        ground.add_vehicle(count=80, rate=20)
        for number in range(6):
            time.sleep(ground.rng.uniform(0.1, 0.5))
            ground.kill(collectors[number % 2])
            ground.revive(collectors[number % 2])
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 80, result


def test_two_collectors_that_finish_the_same_sample(tmp_path: Path, home: Home) -> None:
    """Every offer is repeated, so that both collectors ask for it; every message arrives twice."""
    with ProvingGround(tmp_path, seed=33, home=home) as ground:
        for _ in range(2):
            ground.add_collector()
        ground.add_vehicle(count=60, rate=1000, link=Trouble(repeat=1.0))
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 60, result


@pytest.mark.parametrize("what", ["down", "slow", "full"])
@pytest.mark.parametrize("part", ["blobs", "rows"])
def test_a_store_that_fails_for_a_while(tmp_path: Path, part: str, what: str) -> None:
    _with_trouble(ProvingGround(tmp_path, seed=34), part=part, what=what)


def test_an_object_store_that_refuses_every_second_blob(tmp_path: Path, server_home: ServerHome) -> None:
    """A quota of an object store cannot be brought about on demand; what it answers can."""
    _with_trouble(ProvingGround(tmp_path, seed=36, home=server_home), part="blobs", what="full")


def _with_trouble(proving_ground: ProvingGround, *, part: str, what: str) -> None:
    with proving_ground as ground:
        ground.add_collector(trouble={"part": part, "what": what, "seconds": 1.0})
        ground.add_vehicle(count=40, rate=100)
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 40, result


def test_a_disk_that_is_really_full_under_rows_and_blobs(tmp_path: Path) -> None:
    """SQLite and the folder on a small file system without a byte left, then with room again."""
    with small_disk(tmp_path / "disk", mib=8) as disk:
        if disk is None:
            missing("a small file system", "run as root where mounting is allowed")
        with ProvingGround(tmp_path, seed=35, home=FolderHome(disk.mount / "fleet")) as ground:
            ground.add_collector()
            disk.fill()
            car = ground.add_vehicle(count=40, rate=1000)
            log = tmp_path / "processes.log"
            assert ground.wait(lambda: "No space left on device" in log.read_text())
            assert ground.captured(car) > 0
            disk.free()
            assert ground.settle()
            result = ground.audit()
            assert result.sound and result.stored == 40, result
