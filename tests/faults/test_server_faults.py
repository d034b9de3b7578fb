"""Rows of the fault suite that real servers make: PostgreSQL and S3 killed and restarted, standing still,
without room. Nothing here is pretended: the processes are killed and stopped, the disk is full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import obstore
import pytest

from proving_ground.faults.ground import ProvingGround
from proving_ground.faults.homes import ServerHome, Servers
from proving_ground.services import missing


def _down_and_up(servers: Servers, part: str) -> tuple[Callable[[], None], Callable[[], None]]:
    if part == "database":
        return servers.kill_database, servers.database.start
    return servers.blobs.kill, servers.blobs.start


def test_the_stand_in_for_s3_remembers_what_came_in_parts(running: Servers) -> None:
    """A blob of several parts, whose upload ids are random, must not keep it from coming back."""
    blob = bytes(range(256)) * (48 * 1024)
    bucket = obstore.store.from_url(
        "s3://misfire",
        config=running.blobs.options,
        client_options={"allow_http": True},  # type: ignore[arg-type]
    )
    obstore.put(bucket, "in-parts", blob, chunk_size=5 * 1024**2, use_multipart=True)
    running.blobs.kill()
    running.blobs.start()
    assert bytes(obstore.get(bucket, "in-parts").bytes()) == blob


@pytest.mark.parametrize("part", ["database", "blobs"])
def test_a_server_killed_and_restarted(tmp_path: Path, server_home: ServerHome, part: str) -> None:
    """A group fails while it is away; what was acknowledged before and after is there in the end."""
    down, up = _down_and_up(server_home.servers, part)
    with ProvingGround(tmp_path, seed=41, home=server_home) as ground:
        ground.add_collector()
        first = ground.add_vehicle(count=20, rate=1000)
        assert ground.wait(lambda: ground.at_rest(first))
        down()
        try:
            ground.add_vehicle(count=20, rate=1000)
            log = tmp_path / "processes.log"
            felt = "offers_put_off" if part == "database" else "store_unavailable"
            assert ground.wait(lambda: felt in log.read_text())
        finally:
            up()
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 40, result


@pytest.mark.parametrize("part", ["database", "blobs"])
def test_a_server_that_stands_still(tmp_path: Path, server_home: ServerHome, part: str) -> None:
    """It takes connections and answers nothing for a while: not down, only endlessly slow."""
    with ProvingGround(tmp_path, seed=42, home=server_home) as ground:
        ground.add_collector()
        car = ground.add_vehicle(count=60, rate=30)
        assert ground.wait(lambda: ground.captured(car) > 5)
        server_home.servers.freeze(part, 1.5)
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 60, result


def test_a_database_whose_disk_is_full(tmp_path: Path, server_home: ServerHome) -> None:
    """Not a page can be added, then there is room again; where it ended itself for it, it is started."""
    servers = server_home.servers
    if servers.disk is None:
        missing("a small file system", "run as root where mounting is allowed")
    with ProvingGround(tmp_path, seed=43, home=server_home) as ground:
        ground.add_collector()
        log = tmp_path / "processes.log"
        servers.disk.fill()
        try:
            ground.add_vehicle(count=60, rate=1000, size=[3000, 4000])
            assert ground.wait(lambda: "No space left on device" in log.read_text())
        finally:
            servers.disk.free()
        if not servers.database_runs():
            servers.database.stop()
            servers.database.start()
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.stored == 60, result
