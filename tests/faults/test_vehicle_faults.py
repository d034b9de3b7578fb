"""Rows of the fault suite that the vehicle suffers: kill -9, its disk, its clock, its name."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults.proving_ground import ProvingGround


def test_killed_fifty_times_at_random_instants_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=1) as ground:
        ground.add_collector()
        cars = [ground.add_vehicle(count=400, rate=60, protocol=p) for p in ("5", "3.1.1")]
        for number in range(50):
            car = cars[number % 2]
            time.sleep(ground.rng.uniform(0.0, 0.25))
            ground.kill(car)
            ground.revive(car)
        assert ground.settle(), (tmp_path / "processes.log").read_text()[-3000:]
        result = ground.audit()
        assert result.sound, result
        assert ground.faults["vehicle killed"] == 50
        assert result.stored == result.chosen == 800
