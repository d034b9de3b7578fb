"""Version 0.1.0 and this one work together: vehicle with collector both ways, and what it left on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from proving_ground.bundles import write_bundle
from proving_ground.pictures import write_stills
from proving_ground.services import Mosquitto, missing, stop_process

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RELEASED = "593fabd"
"""The commit of version 0.1.0."""
UNITS = ("runtime", "train", "export", "fleet")
COUNT = 6

Collect = Callable[..., AbstractContextManager[Path]]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `misfire` is version 0.1.0, taken from the history of this repository."""
    folder = tmp_path_factory.mktemp("released")
    done = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "-o", str(folder / "code.tar"), RELEASED, *UNITS],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        missing("version 0.1.0", f"test in a clone whose history holds commit {RELEASED}")
    with tarfile.open(folder / "code.tar") as archive:
        archive.extractall(folder, filter="data")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(folder / unit) for unit in UNITS)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "small").path


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stills")
    write_stills(folder, count=COUNT)
    return folder


def misfire(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "misfire_runtime.cli", *arguments]


@pytest.fixture
def collect(broker: Mosquitto, tmp_path: Path) -> Iterator[Collect]:
    """`with collect(environment) as folder`: a collector of that version while the block lasts."""

    @contextmanager
    def start(environment: dict[str, str] | None = None) -> Iterator[Path]:
        folder, log = tmp_path / "fleet", tmp_path / "collector.log"
        options = ["--broker", broker.url, "--fleet", tmp_path.name[:60], "--fleet-dir", str(folder)]
        log.unlink(missing_ok=True)
        with log.open("wb") as out:
            process = subprocess.Popen(misfire("fleet", "collect", *options), stderr=out, env=environment)
        try:
            deadline = time.monotonic() + 60
            while b"ready" not in log.read_bytes() and time.monotonic() < deadline:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield folder
        finally:
            stop_process(process)

    yield start


@pytest.fixture
def drive(broker: Mosquitto, bundle: Path, stills: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a vehicle of some version over the stills, every frame chosen; returns what it printed."""

    def run(environment: dict[str, str] | None = None, *, upload: bool = True) -> dict[str, Any]:
        options = ["--bundle", str(bundle), "--source", str(stills), "--spool", str(tmp_path / "spool")]
        options += ["--provider", "cpu", "--random-rate", "1", "--vehicle", "bus-1", "--json"]
        if upload:
            options += ["--broker", broker.url, "--fleet", tmp_path.name[:60], "--until-empty"]
        done = subprocess.run(
            misfire("run", *options),
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return run


def stored(folder: Path) -> int:
    return sum(len(path.name) == 64 for path in (folder / "blobs").rglob("*") if path.is_file())


def test_the_released_version_is_another_one(released: dict[str, str]) -> None:
    where = "import misfire_fleet, misfire_runtime; print(misfire_fleet.__file__, misfire_runtime.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", where], env=released, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(released["PYTHONPATH"].split("/runtime")[0]) for path in done.stdout.split())


def test_a_released_vehicle_uploads_to_this_collector(
    released: dict[str, str], collect: Collect, drive: Callable[..., dict[str, Any]]
) -> None:
    with collect() as folder:
        result = drive(released)
        assert result["counters"]["stored"] == COUNT and result["counters"]["pending"] == 0
        assert stored(folder) == COUNT


def test_this_vehicle_uploads_to_a_released_collector(
    released: dict[str, str], collect: Collect, drive: Callable[..., dict[str, Any]]
) -> None:
    with collect(released) as folder:
        result = drive()
        assert result["counters"]["stored"] == COUNT and result["counters"]["pending"] == 0
        assert stored(folder) == COUNT


def test_a_spool_and_a_fleet_that_a_released_version_left_are_continued(
    released: dict[str, str], collect: Collect, drive: Callable[..., dict[str, Any]]
) -> None:
    kept = drive(released, upload=False)
    assert kept["counters"]["pending"] == COUNT
    with collect(released):
        pass
    with collect() as folder:
        result = drive()
        assert result["counters"]["pending"] == 0
        assert stored(folder) == COUNT == result["counters"]["stored"]
