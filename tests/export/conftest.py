"""One small run, trained on the real bundled digits, that the export tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from misfire_export.sources.module import RECIPE
from misfire_runtime.bundle import Bundle
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.fit import train_run
from misfire_train.heads import RECIPES
from misfire_train.runs import Run, run_splits
from misfire_train.train_config import parse_train_config

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]
torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def stated_strength() -> Iterator[None]:
    """Spares the heads of these tests the ten fits that choose a strength; tests/train tests the choice."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(RECIPES, RECIPE, replace(RECIPES[RECIPE], strength=1.0, columns="all"))
        yield


@pytest.fixture
def chosen_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the test that sees a head's strength chosen on the way into a bundle."""
    monkeypatch.setitem(RECIPES, RECIPE, replace(RECIPES[RECIPE], strength=None, columns=None))


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs: bad enough to have failures, good enough to have successes."""
    table = {
        "dataset": "digits",
        "seed": 3,
        "training": {"epochs": 2},
        "head": {"strength": 1.0, "columns": "all"},
    }
    config = parse_train_config(table)
    out = tmp_path_factory.mktemp("runs") / "digits"
    return train_run(config, out=out)


@pytest.fixture(scope="session")
def digits_parts(digits_run: Run, digits: Dataset) -> dict[str, Examples]:
    return run_splits(digits_run, digits)


@pytest.fixture(scope="session")
def digits_bundle(
    digits_run: Run, digits_parts: dict[str, Examples], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    from misfire_export.options import Options
    from misfire_export.sources.frames import Frames
    from misfire_export.sources.run import export_run

    out = tmp_path_factory.mktemp("bundles") / "digits"
    frames = Frames(digits_parts["calibration"])
    return export_run(digits_run, frames, out=out, options=Options("digits", "1.0.0"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "bundle"
