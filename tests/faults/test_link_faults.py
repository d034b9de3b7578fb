"""Rows of the fault suite that the network makes: links cut, half-open, slow, gone; messages of every kind
lost although acknowledged, repeated, overtaken, spoiled."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proving_ground.faults.chaos_proxy import Trouble
from proving_ground.faults.ground import ProvingGround
from proving_ground.faults.zygote import ROOT
from proving_ground.services import find_program, missing, need_root


@pytest.mark.parametrize("trouble", ["lose", "repeat", "reorder", "spoil"])
def test_messages_of_every_kind(tmp_path: Path, trouble: str) -> None:
    with ProvingGround(tmp_path, seed=21) as ground:
        ground.add_collector()
        car = ground.add_vehicle(
            count=40,
            rate=1000,
            protocol="5" if trouble in ("lose", "spoil") else "3.1.1",
            link=Trouble(**{trouble: 0.2}),
        )
        assert ground.settle()
        faults = dict(car.proxy.faults)
        result = ground.audit()
        assert result.sound and result.stored == 40, result
        kinds = {name.split()[1] for name in faults}
        assert kinds == ({"data"} if trouble == "spoil" else {"offer", "data", "reply"}), faults


def test_links_cut_again_and_again_on_both_sides(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=22) as ground:
        collector = ground.add_collector()
        car = ground.add_vehicle(count=80, rate=40)
        for number in range(20):
            time.sleep(0.12)
            ground.cut(collector if number % 7 == 3 else car)
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 80, result


@pytest.mark.parametrize("side", ["vehicle", "collector"])
def test_a_half_open_connection_is_noticed_and_made_anew(tmp_path: Path, side: str) -> None:
    with ProvingGround(tmp_path, seed=23) as ground:
        collector = ground.add_collector()
        car = ground.add_vehicle(count=40, rate=20)
        assert ground.wait(lambda: ground.captured(car) > 5)
        member = car if side == "vehicle" else collector
        before = member.proxy.connections
        member.proxy.trouble.half_open = True
        assert ground.wait(lambda: member.proxy.connections > before), "nobody noticed"
        member.proxy.trouble.half_open = False
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 40, result


def test_a_slow_and_late_link(tmp_path: Path) -> None:
    with ProvingGround(tmp_path, seed=24) as ground:
        ground.add_collector()
        slow = Trouble(delay_s=0.1, bytes_per_s=200_000)
        ground.add_vehicle(count=10, rate=1000, size=[20_000, 40_000], link=slow)
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 10, result


def test_a_network_that_is_gone_for_seconds(tmp_path: Path) -> None:
    """In a network namespace of its own: the interface goes down under all connections, and up again."""
    unshare = shutil.which("unshare")
    if unshare is None or shutil.which("ip") is None:
        missing("unshare and ip", "apt-get install util-linux iproute2")
    need_root("a network namespace")
    find_program("mosquitto", install="apt-get install mosquitto")  # asked here: the child may not skip
    inside = f"ip link set lo up && exec {sys.executable} -m tests.faults.outage {tmp_path}"
    done = subprocess.run(
        [str(unshare), "-n", "sh", "-c", inside],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "Operation not permitted" in done.stderr:
        missing("a network namespace", "run where it is allowed (CAP_SYS_ADMIN)")
    assert done.returncode == 0, done.stdout + done.stderr
