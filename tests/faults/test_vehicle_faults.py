"""Rows of the fault suite that the vehicle suffers: kill -9, its disk, its clock."""

from __future__ import annotations

import time
from pathlib import Path

from proving_ground.faults.ground import ProvingGround
from proving_ground.faults.small_disk import small_disk
from proving_ground.services import missing


def test_killed_fifty_times_at_random_instants_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=1) as ground:
        ground.add_collector()
        cars = [ground.add_vehicle(count=120, rate=40, protocol=p) for p in ("5", "3.1.1")]
        for number in range(50):
            car = cars[number % 2]
            time.sleep(ground.rng.uniform(0.0, 0.15))
            ground.kill(car)
            ground.revive(car)
        assert ground.settle(), (tmp_path / "processes.log").read_text()[-3000:]
        result = ground.audit()
        assert result.sound, result
        assert ground.faults["vehicle killed"] == 50
        assert result.stored == result.chosen == 240


def test_killed_in_mid_upload_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=2) as ground:
        ground.add_collector(settings={"chunk_bytes": 4096})
        slow = {"bytes_per_s": 200_000, "burst_bytes": 8192}
        car = ground.add_vehicle(count=2, rate=1000, size=[400_000, 400_000], bandwidth=slow)
        assert ground.wait(lambda: car.proxy.bytes["up"] > 200_000)
        ground.kill(car)
        ground.revive(car)
        assert ground.settle()
        assert ground.audit().stored == 2
        # Without resuming, the bytes sent before the kill would have been sent twice.
        assert car.proxy.bytes["up"] < 1_000_000


def test_a_disk_that_is_full_now_and_then_and_a_clock_that_jumps_ten_years(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=3) as ground:
        ground.add_collector()
        ground.add_vehicle(count=100, rate=200, full=0.3, jump=0.3)
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 100, result
        assert result.own_faults["disk full"] > 10 and result.own_faults["clock jump"] > 10


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The spool on a file system without a byte left: neither samples nor verdicts find room for a while."""
    with small_disk(tmp_path / "car-0" / "spool", mib=8) as disk:
        if disk is None:
            missing("a small file system", "run as root where mounting is allowed")
        with ProvingGround(tmp_path, seed=5) as ground:
            ground.add_collector()
            car = ground.add_vehicle(count=60, rate=50)
            assert ground.wait(lambda: ground.captured(car) > 5)
            disk.fill()
            assert ground.wait(lambda: "no room on the disk" in (car.folder / "journal").read_text())
            ground.kill(car)
            disk.free()
            ground.revive(car)
            assert ground.settle()
            result = ground.audit()
            assert result.sound and result.stored == 60, result


def test_a_spool_that_is_too_small_for_an_outage_evicts_with_an_account(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=4) as ground:
        spool = {"max_bytes": 60_000, "reserve_bytes": 0}
        car = ground.add_vehicle(count=60, rate=500, spool=spool)
        assert ground.wait(lambda: ground.captured(car) == 60)
        ground.add_collector()
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.evicted > 30, result
        assert result.stored + result.evicted == result.chosen == 60
