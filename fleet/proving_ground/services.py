"""Starts real services: found on this machine, on free loopback ports, ended by their process id.

A service that is not installed raises MissingServiceError, which names the remedy. Tests that meet one are
skipped, or fail if MISFIRE_REQUIRE_SERVICES=1 (tests/conftest.py).
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


class MissingServiceError(Exception):
    """Reports that something that a test or benchmark runs against is not installed here."""


def missing(what: str, remedy: str) -> NoReturn:
    """Raises MissingServiceError with the remedy."""
    raise MissingServiceError(f"{what} is not here; {remedy}")


def need_root(what: str) -> None:
    """Raises MissingServiceError if this process is not root."""
    if os.geteuid() != 0:
        missing(what, "run as root")


def find_program(name: str, *, install: str) -> str:
    """Returns the path of a program, on PATH or where distributions put servers beside it."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(_server_folders()))
    if found is None:
        missing(name, install)
    return found


def _server_folders() -> list[str]:
    """Returns `sbin` and `lib/postgresql/VERSION/bin` beside each `bin`; Debian leaves them off PATH."""
    prefixes = [Path(folder).parent for folder in os.get_exec_path() if Path(folder).name == "bin"]
    found = [prefix / "sbin" for prefix in prefixes]
    for prefix in prefixes:
        # The newest version first.
        found += sorted(prefix.glob("lib/postgresql/*/bin"), reverse=True)
    return [str(folder) for folder in found]


def data_root() -> Path:
    """Returns the folder of real data sets: MISFIRE_DATA, else `../shared/data` beside the checkout.

    Raises MissingServiceError if it is not there.
    """
    named = os.environ.get("MISFIRE_DATA")
    root = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not root.is_dir():
        missing(f"the real data ({root})", "set MISFIRE_DATA to the folder that holds them")
    return root


def free_port() -> int:
    """Returns a free loopback port, which stays free while a test takes its server away and brings it back.

    It is below those that the kernel gives to outgoing connections (32768 and above on Linux), one of which
    could be made just then.
    """
    for _ in range(100):
        port = 15_000 + secrets.randbelow(15_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port found between 15000 and 30000")


def wait_for_port(port: int, *, timeout_s: float = 20.0) -> None:
    """Returns once something listens on the loopback port; raises TimeoutError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port} after {timeout_s} s")


def stop_process(process: subprocess.Popen[bytes], *, timeout_s: float = 10.0) -> None:
    """Ends a process that the test started: SIGTERM, then SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout_s)


@dataclass
class Mosquitto:
    """Holds a running broker; `kill` and `start` let a test take it away and bring it back on its port."""

    program: str
    config: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Returns the address as `--broker` takes it."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts and waits until it listens."""
        log = self.config.with_suffix(".log").open("ab")
        with log:
            self.process = subprocess.Popen([self.program, "-c", str(self.config)], stdout=log, stderr=log)
        wait_for_port(self.port)

    def kill(self) -> None:
        """Sends SIGKILL: sessions and queued messages are gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """Ends it in order."""
        if self.process is not None:
            stop_process(self.process)


@contextmanager
def mosquitto(folder: Path, *, options: str = "") -> Iterator[Mosquitto]:
    """Runs a real Mosquitto on a free port. `options` are further lines of its configuration."""
    program = find_program("mosquitto", install="apt-get install mosquitto")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"mosquitto-{port}.conf"
    # Without persistence: a kill must lose sessions and queues, as the tests expect.
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n{options}\n")
    broker = Mosquitto(program, config, port)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def chromium() -> str:
    """Returns the path of a Chromium for playwright's `executable_path`."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    missing("chromium", "apt-get install chromium")


CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@dataclass
class Postgres:
    """Holds a PostgreSQL of its own; `stop` and `start` let a test take it away and bring it back."""

    folder: Path
    port: int
    user: list[str]
    """What to put before a command so that it does not run as root, which PostgreSQL refuses."""

    @property
    def url(self) -> str:
        """Returns the URL as `--database` takes it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def control(self, *arguments: str) -> None:
        """Runs pg_ctl and waits for it."""
        program = find_program("pg_ctl", install="apt-get install postgresql")
        log = self.folder / "log"
        command = [*self.user, program, "-D", str(self.folder / "data"), "-w", "-l", str(log), *arguments]
        quiet = subprocess.DEVNULL
        done = subprocess.run(command, stdin=quiet, stdout=quiet, cwd="/", check=False)
        assert done.returncode == 0, log.read_text() if log.exists() else command

    def start(self) -> None:
        """Starts and waits until it answers."""
        options = f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self.control("-o", options, "start")

    def stop(self) -> None:
        """Ends it at once if it runs; clients lose their connections."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.control("-m", "immediate", "stop")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Runs a real PostgreSQL on a free port with an empty database, as another user if this one is root."""
    initdb = find_program("initdb", install="apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="misfire-postgres-"))
    user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        user = [find_program("runuser", install="apt-get install util-linux"), "-u", "postgres", "--"]
    server = Postgres(folder, free_port(), user)
    # No sync: the database is thrown away after the test.
    command = [*user, initdb, "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "--no-sync"]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def object_store_options(port: int) -> dict[str, str]:
    """Returns what obstore needs to reach the S3 stand-in."""
    return {
        "aws_endpoint": f"http://127.0.0.1:{port}",
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
        "aws_region": "us-east-1",
    }


@dataclass
class ObjectStore:
    """Holds a running S3 stand-in with one bucket."""

    port: int
    process: subprocess.Popen[bytes]
    url: str = "s3://misfire"

    @property
    def options(self) -> dict[str, str]:
        """Returns what obstore needs to reach it."""
        return object_store_options(self.port)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Runs moto's server as S3, on a free port, with the bucket `misfire`."""
    if importlib.util.find_spec("moto") is None:
        missing("moto", "pip install 'moto[s3,server]'")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/misfire", method="PUT")
        with urllib.request.urlopen(request, timeout=20):
            yield ObjectStore(port, process)
    finally:
        stop_process(process)
