"""A small real bundle for the vehicle's tests, and recordings to drive it with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from misfire_runtime.bundle import Bundle
from misfire_runtime.testing import MemoryStore
from proving_ground.bundles import write_bundle
from proving_ground.pictures import write_clip, write_stills

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """221 frames of H.264, 960x540, 25 per second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "drive.mp4")


@pytest.fixture(scope="session")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 14 JPEG photographs, 1280x720."""
    folder = tmp_path_factory.mktemp("stills")
    write_stills(folder)
    return folder


@pytest.fixture(scope="session")
def make_bundle() -> Any:
    """`make_bundle(path, size=64, seed=0, version="1.0.0", poison=None)` writes a bundle and opens it."""
    return write_bundle


@pytest.fixture
def store() -> MemoryStore:
    """An empty store."""
    return MemoryStore()


@pytest.fixture
def new_store() -> type[MemoryStore]:
    """Makes empty stores."""
    return MemoryStore
