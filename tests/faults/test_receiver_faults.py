"""Rows of the fault suite that are troubles of the fleet alone: a database that takes no rows, a collector
without memory or file descriptors, clocks that are wrong.

No vehicle may delete a sample that the fleet does not hold, unless the sample itself is at fault. Each row
lets a trouble last until it is felt, ends it, and expects every sample in the fleet.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from proving_ground.faults.ground import Member, ProvingGround
from proving_ground.faults.hardship import RENEW, WAITING, Want, ask, relieve, seal, starve
from proving_ground.faults.homes import FolderHome, Home, ServerHome, StandbyHome, standby

MIB = 1024 * 1024
COUNT = 30
PROBE_S = 0.5
"""How often an open breaker lets an offer through, for tests."""


def _suffer(
    ground: ProvingGround,
    *,
    trouble: Callable[[Member], None],
    relief: Callable[[Member], None],
    felt: str,
    settings: dict[str, object] | None = None,
    **vehicle: object,
) -> None:
    """A few samples before, then `COUNT` in trouble; audits once the trouble has ended."""
    collector = ground.add_collector(settings={"probe_s": PROBE_S, **(settings or {})})
    first = ground.add_vehicle(count=5, rate=1000)
    assert ground.wait(lambda: ground.at_rest(first))
    trouble(collector)
    log = ground.folder / "processes.log"
    try:
        sufferer = ground.add_vehicle(**{"count": COUNT, "rate": 1000, **vehicle})
        assert ground.wait(lambda: felt in log.read_text()), log.read_text()[-2000:]
        time.sleep(1.0)
    finally:
        relief(collector)
    assert ground.settle()
    result = ground.audit()
    assert result.sound and result.deleted_unstored == result.rejected == 0, result
    assert result.stored == 5 + int(sufferer.config["count"]), result


# ---- a database that takes no rows


def test_a_database_that_turns_read_only(tmp_path: Path, server_home: ServerHome) -> None:
    """As a managed server does when its disk is full; connections that were made before are replaced."""
    address = str(server_home.config["database"])
    with ProvingGround(tmp_path, seed=61, home=server_home) as ground:
        _suffer(
            ground,
            trouble=lambda _: seal(address, shut=True),
            relief=lambda _: seal(address, shut=False),
            felt="read-only transaction",
        )


def test_a_database_whose_grant_is_gone(tmp_path: Path, server_home: ServerHome) -> None:
    """A table that another owner made anew: the collector may read it, and not write."""
    owner = str(server_home.config["database"])
    ask(owner, "DROP ROLE IF EXISTS clerk", "CREATE ROLE clerk LOGIN")
    server_home.open().close()
    ask(owner, "GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk")
    ask(owner, "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO clerk")
    with ProvingGround(tmp_path, seed=62, home=server_home) as ground:
        server_home.user = "clerk"
        _suffer(
            ground,
            trouble=lambda _: ask(owner, "REVOKE INSERT ON samples FROM clerk"),
            relief=lambda _: ask(owner, "GRANT INSERT ON samples TO clerk"),
            felt="permission denied",
        )
    ask(owner, "DROP OWNED BY clerk", "DROP ROLE clerk")


def test_a_database_file_that_was_moved_away(tmp_path: Path) -> None:
    """Somebody restores a backup while the collector runs: new connections meet a database without tables."""
    home = FolderHome(tmp_path / "fleet")
    file, aside = home.folder / "fleet.sqlite", home.folder / "fleet.moved"
    with ProvingGround(tmp_path, seed=63, home=home) as ground:
        _suffer(
            ground,
            trouble=lambda _: file.rename(aside) and None,
            relief=lambda _: aside.rename(file) and None,
            felt="was moved or replaced",
        )


def test_a_page_of_the_database_that_is_damaged(tmp_path: Path) -> None:
    """A page of an index is overwritten beneath the collector, and is mended in the end."""
    home = FolderHome(tmp_path / "fleet")
    file = home.folder / "fleet.sqlite"
    kept: list[tuple[int, bytes]] = []

    def damage(_: Member) -> None:
        link = sqlite3.connect(file, isolation_level=None)
        link.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = link.execute("PRAGMA page_size").fetchone()[0]
        roots = link.execute(
            "SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = 'samples'"
        )
        with file.open("r+b") as pages:
            for (root,) in roots.fetchall():
                pages.seek((root - 1) * size)
                kept.append((root, pages.read(size)))
                pages.seek((root - 1) * size)
                pages.write(b"\xff" * size)
        # Any change of the database makes other connections forget the pages that they hold.
        link.execute("UPDATE alembic_version SET version_num = version_num")
        link.close()

    def mend(_: Member) -> None:
        with file.open("r+b") as pages:
            for root, page in kept:
                pages.seek((root - 1) * len(page))
                pages.write(page)

    with ProvingGround(tmp_path, seed=64, home=home) as ground:
        _suffer(ground, trouble=damage, relief=mend, felt="malformed")


def test_a_failover_to_a_standby(tmp_path: Path, server_home: ServerHome) -> None:
    """The primary is gone; the standby answers, takes no rows for a while, and then is the primary."""
    with standby(server_home) as following:
        home = StandbyHome(server_home, following)
        with ProvingGround(tmp_path, seed=65, home=home) as ground:
            _suffer(
                ground,
                trouble=lambda _: server_home.servers.kill_database(),
                relief=lambda _: following.promote(),
                felt="read-only transaction",
            )
        server_home.servers.database.start()
        server_home.set_synchronous("")


@pytest.mark.parametrize("what", ["time-out", "killed"])
def test_a_commit_that_ends_in_the_middle(tmp_path: Path, server_home: ServerHome, what: str) -> None:
    """The statement runs out of time behind a lock, or its connection is ended there, again and again."""
    address = str(server_home.config["database"])
    server_home.open().close()
    holder, ended = psycopg.connect(address), threading.Event()

    def end_all_that_wait() -> None:
        while not ended.wait(0.2):
            ask(address, WAITING)

    killer = threading.Thread(target=end_all_that_wait)

    def hold(_: Member) -> None:
        holder.execute("LOCK TABLE samples IN SHARE MODE")
        if what == "killed":
            killer.start()
        else:
            ask(address, f'ALTER DATABASE "{server_home.name}" SET statement_timeout = 300', RENEW)

    def release(_: Member) -> None:
        ended.set()
        holder.close()

    felt = "statement timeout" if what == "time-out" else "terminating connection"
    with ProvingGround(tmp_path, seed=66, home=server_home) as ground:
        _suffer(ground, trouble=hold, relief=release, felt=felt)


def test_a_database_that_somebody_else_keeps_locked(tmp_path: Path) -> None:
    """SQLite's own time-out behind another writer, such as a backup that never ends."""
    home = FolderHome(tmp_path / "fleet", busy_timeout_ms=300)
    with ProvingGround(tmp_path, seed=67, home=home) as ground:
        holder = sqlite3.connect(home.folder / "fleet.sqlite", isolation_level=None)
        _suffer(
            ground,
            trouble=lambda _: holder.execute("BEGIN IMMEDIATE") and None,
            relief=lambda _: holder.execute("ROLLBACK") and None,
            felt="database is locked",
        )
        holder.close()


# ---- a collector that lacks something


def _starving(want: Want) -> dict[str, Callable[[Member], None]]:
    def with_pid(call: Callable[[int, Want], None]) -> Callable[[Member], None]:
        def run(collector: Member) -> None:
            assert collector.child is not None
            call(collector.child.pid, want)

        return run

    return {"trouble": with_pid(starve), "relief": with_pid(relieve)}


def test_a_collector_without_memory(tmp_path: Path, home: Home) -> None:
    with ProvingGround(tmp_path, seed=68, home=home) as ground:
        _suffer(
            ground,
            **_starving("memory"),
            felt="no_memory",
            # glibc reserves 64 MiB of address space for each thread's heap. A smaller sample can fit into
            # what is already reserved, so the collector would not feel the limit.
            count=2,
            size=[72_000_000, 74_000_000],
            settings={"max_sample_bytes": 80 * MIB},
        )


def test_a_collector_without_file_descriptors(tmp_path: Path, home: Home) -> None:
    """A pool keeps its connections to a database server, so these are ended: new ones need descriptors."""
    starving = _starving("descriptors")

    def trouble(collector: Member) -> None:
        starving["trouble"](collector)
        if isinstance(home, ServerHome):
            ask(str(home.config["database"]), RENEW)

    with ProvingGround(tmp_path, seed=69, home=home) as ground:
        _suffer(
            ground,
            trouble=trouble,
            relief=starving["relief"],
            felt="oo many open files",
        )


# ---- clocks


@pytest.mark.parametrize("years", [-56, -2, 30])
@pytest.mark.parametrize("whose", ["vehicle", "collector"])
def test_a_clock_that_is_years_off(tmp_path: Path, home: Home, whose: str, years: int) -> None:
    """56 years ago is 1970, where a clock without a battery begins."""
    offset = {"clock_offset_s": years * 365.25 * 86400}
    with ProvingGround(tmp_path, seed=70, home=home) as ground:
        ground.add_collector(**(offset if whose == "collector" else {}))
        ground.add_vehicle(count=COUNT, rate=1000, **(offset if whose == "vehicle" else {}))
        assert ground.settle()
        result = ground.audit()
        assert result.sound and result.deleted_unstored == result.rejected == 0, result
        assert result.stored == COUNT, result
