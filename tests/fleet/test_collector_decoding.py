"""A collector whose decoders die, lack memory, or have much to do: no sample is lost, none waits for long."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fleet.conftest import CollectorMaker
from tests.fleet.decoding_processes import costly, processes, signalled

from misfire_fleet.collector.turns import Turns
from misfire_fleet.decoding.headers import MIB
from misfire_fleet.store import Store
from misfire_runtime.messages import Busy, Stored
from misfire_runtime.testing import make_offer
from proving_ground.client import Vehicle
from proving_ground.foreign_bytes import encoded, many_scans, numbered

pytestmark = pytest.mark.slow

VehicleMaker = Callable[..., Vehicle]


def test_a_decoder_that_is_killed_makes_busy_and_the_next_attempt_works(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store
) -> None:
    before = set(processes())
    start_collector()
    car = vehicle()
    with signalled(signal.SIGKILL, spare=before) as hit:
        assert isinstance(car.upload(costly()), Busy)
    assert hit
    assert isinstance(car.upload(costly()), Stored)
    assert store.totals().rejected == 0


def test_a_decoder_without_memory_makes_busy_and_the_next_attempt_works(
    start_collector: CollectorMaker, vehicle: VehicleMaker
) -> None:
    before = set(processes())
    start_collector()
    car = vehicle()
    assert isinstance(car.upload(encoded(".jpg")), Stored)
    (pid,) = set(processes()) - before
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    little = pages * resource.getpagesize() + 40 * MIB
    resource.prlimit(pid, resource.RLIMIT_AS, (little, little))
    data = encoded(".png", width=4000, height=2000)
    assert isinstance(car.upload(data, media_type="image/png"), Busy)
    assert isinstance(car.upload(data, media_type="image/png"), Stored)


def test_one_vehicle_s_costly_pictures_do_not_hold_up_another_s(
    start_collector: CollectorMaker, vehicle: VehicleMaker
) -> None:
    start_collector()
    busy, other = vehicle("busy"), vehicle("other")
    assert isinstance(other.upload(encoded(".jpg")), Stored)
    picture, pictures = many_scans(20, side=3000), {}
    for number in range(24):
        data = numbered(picture, number)
        offer = make_offer(data, vehicle="busy")
        pictures[offer.id] = data
        busy.offer(offer)
    for _ in pictures:
        verdict = busy.hear_send()
        busy.send(pictures[verdict.id], verdict)
    assert isinstance(other.upload(numbered(encoded(".jpg"), 1)), Stored)
    assert busy.verdicts.qsize() < len(pictures) - 8
    assert all(isinstance(busy.hear(timeout_s=60), Stored) for _ in pictures)


def test_vehicles_have_turns_and_each_keeps_its_order() -> None:
    turns: Turns[str] = Turns()
    for number in range(3):
        turns.put("many", f"many {number}")
    turns.put("few", "few 0")
    turns.close()
    taken = []
    while (work := turns.take()) is not None:
        taken.append(work)
    assert taken == ["many 0", "few 0", "many 1", "many 2"]
