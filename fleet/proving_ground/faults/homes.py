"""Provides places for a fleet under test: SQLite and a folder, or PostgreSQL and S3 servers to mistreat.

    with servers(folder) as running: home = ServerHome(running, "a-test");  home = FolderHome(folder)

Both give a collector process its configuration, open the store for the audit, and say what went wrong for
real: a database killed or stopped dead, an object store killed or stopped dead, a disk with no room.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg

from misfire_fleet.store import Store
from proving_ground.faults.small_disk import SmallDisk, small_disk
from proving_ground.faults.zygote import ROOT
from proving_ground.services import (
    Postgres,
    find_program,
    free_port,
    object_store_options,
    postgres,
    stop_process,
    wait_for_port,
)

_DATABASE_MIB = 128


class Home(Protocol):
    """Provides a place for one fleet's store."""

    kind: str

    @property
    def config(self) -> dict[str, Any]:
        """Returns a collector process's configuration: database, blobs, blob_options."""
        ...

    def open(self) -> Store:
        """Opens the store, as the audit and the console see it."""
        ...


@dataclass
class FolderHome:
    """Keeps `fleet.sqlite` and `blobs/` in a folder."""

    folder: Path
    kind: str = "folder"
    busy_timeout_ms: int | None = None
    """How long a collector process waits for another writer; None: as the product does."""

    @property
    def config(self) -> dict[str, Any]:
        """Does as in Home."""
        return {
            "database": str(self.folder / "fleet.sqlite"),
            "blobs": str(self.folder / "blobs"),
            "busy_timeout_ms": self.busy_timeout_ms,
        }

    def open(self) -> Store:
        """Does as in Home."""
        return Store.open_folder(self.folder)


@dataclass
class S3:
    """Runs proving_ground.faults.s3_server as a process; `kill` and `start` keep what it had acknowledged."""

    file: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def options(self) -> dict[str, str]:
        """Returns what obstore needs to reach it."""
        return object_store_options(self.port)

    def start(self) -> None:
        """Starts and waits until it listens."""
        command = [sys.executable, "-W", "ignore", "-m", "proving_ground.faults.s3_server", str(self.port)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([*command, str(self.file)], cwd=ROOT, stdout=quiet, stderr=quiet)
        wait_for_port(self.port, timeout_s=60)

    def make_bucket(self) -> None:
        """Makes the bucket `misfire`."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/misfire", method="PUT")
        urllib.request.urlopen(request, timeout=20).close()

    def kill(self) -> None:
        """Sends SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)


@dataclass
class Servers:
    """Holds a PostgreSQL and an S3 that several homes share, one database and one prefix each."""

    database: Postgres
    blobs: S3
    disk: SmallDisk | None

    def kill_database(self) -> None:
        """Ends it without a checkpoint: every connection breaks, and its start replays the log."""
        self.database.stop()

    def freeze(self, part: str, seconds: float) -> None:
        """Stops the processes of "database" or "blobs" dead, and lets them go on."""
        assert self.blobs.process is not None
        pids = [self.blobs.process.pid] if part == "blobs" else self._database_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)

    def database_runs(self) -> bool:
        """Returns False if it ended itself, as it does when its log finds no room."""
        url = f"host=127.0.0.1 port={self.database.port} user=postgres dbname=postgres connect_timeout=2"
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            return False
        return True

    def _database_pids(self) -> list[int]:
        leader = int((self.database.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(leader)], capture_output=True, text=True, check=False
        )
        return [leader, *(int(pid) for pid in children.stdout.split())]


@contextmanager
def servers(folder: Path, *, on_small_disk: bool = False) -> Iterator[Servers]:
    """Runs real servers on free ports.

    on_small_disk: the database's files lie on one, where it can be mounted; enough for some hundred samples.
    """
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        disk = stack.enter_context(_moved(database)) if on_small_disk else None
        s3 = S3(folder / "s3.jsonl")
        s3.start()
        stack.callback(lambda: stop_process(s3.process) if s3.process else None)
        s3.make_bucket()
        yield Servers(database, s3, disk)


@contextmanager
def _moved(database: Postgres) -> Iterator[SmallDisk | None]:
    """Moves the database's files to a small disk, and stops the database before the disk goes."""
    data = database.folder / "data"
    # Stopped while its files move: they must be consistent.
    database.control("-m", "fast", "stop")
    aside = data.rename(database.folder / "aside")
    with small_disk(data, mib=_DATABASE_MIB) as disk:
        if disk is None:
            data.rmdir()
            aside.rename(data)
        else:
            subprocess.run(["cp", "-a", f"{aside}/.", str(data)], check=True)
            shutil.rmtree(aside)
        database.start()
        yield disk
        database.stop()


@dataclass
class ServerHome:
    """Holds one database and one prefix of the bucket."""

    servers: Servers
    name: str
    kind: str = "postgres"
    user: str = "postgres"
    """As whom collector processes come; the audit is the owner's."""

    def __post_init__(self) -> None:
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{self.name}"')

    @property
    def config(self) -> dict[str, Any]:
        """Does as in Home."""
        return {
            "database": self._address(self.name, user=self.user),
            "blobs": f"s3://misfire/{self.name}",
            "blob_options": self.servers.blobs.options,
        }

    def open(self) -> Store:
        """Does as in Home."""
        config = self.config
        return Store.open(self._address(self.name), config["blobs"], blob_options=config["blob_options"])

    def set_synchronous(self, names: str) -> None:
        """Sets the standbys that a commit waits for."""
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
            connection.execute(b"SELECT pg_reload_conf()")

    def drop(self) -> None:
        """Gives its database's room back."""
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{self.name}" WITH (FORCE)')

    def _address(self, database: str, *, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.servers.database.port}/{database}"


@dataclass
class Standby:
    """Holds a second PostgreSQL that follows the first and answers readers until it is promoted."""

    server: Postgres

    def promote(self) -> None:
        """Makes it the primary, which takes rows."""
        self.server.control("promote")


@contextmanager
def standby(home: ServerHome) -> Iterator[Standby]:
    """Runs a hot standby; the primary acknowledges a commit only when the standby has it on its disk."""
    primary = home.servers.database
    folder = Path(tempfile.mkdtemp(prefix="misfire-standby-"))
    if primary.user:
        shutil.chown(folder, "postgres", "postgres")
    following = Postgres(folder, free_port(), primary.user)
    program = find_program("pg_basebackup", install="apt-get install postgresql")
    source = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"]
    copy = [*primary.user, program, *source, "-D", str(folder / "data"), "-R", "-X", "stream", "-c", "fast"]
    try:
        subprocess.run(copy, check=True, capture_output=True, cwd="/")
        following.start()
        home.set_synchronous("*")
        yield Standby(following)
    finally:
        following.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class StandbyHome:
    """Names the same database at the primary, and at the standby if the primary does not answer."""

    home: ServerHome
    standby: Standby
    kind: str = "postgres"

    @property
    def config(self) -> dict[str, Any]:
        """Does as in Home."""
        ports = (self.home.servers.database.port, self.standby.server.port)
        hosts = "&".join(f"host=127.0.0.1:{port}" for port in ports)
        return {**self.home.config, "database": f"postgresql://postgres@/{self.home.name}?{hosts}"}

    def open(self) -> Store:
        """Does as in Home."""
        config = self.config
        return Store.open(config["database"], config["blobs"], blob_options=config["blob_options"])
