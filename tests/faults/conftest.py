"""The homes of a fleet: a test that asks for `home` runs on SQLite and a folder, and on real servers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from proving_ground.faults.homes import FolderHome, Home, ServerHome, Servers, servers


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A PostgreSQL and an S3 for the whole session; whoever breaks them mends them."""
    with servers(tmp_path_factory.mktemp("servers"), on_small_disk=True) as found:
        yield found


@pytest.fixture
def server_home(running: Servers) -> Iterator[ServerHome]:
    """A fresh database and a fresh prefix."""
    found = ServerHome(running, f"fleet-{secrets.token_hex(4)}")
    yield found
    found.drop()


@pytest.fixture(params=["folder", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A fresh home of either kind."""
    if request.param == "folder":
        return FolderHome(tmp_path / "fleet")
    return request.getfixturevalue("server_home")  # type: ignore[no-any-return]
