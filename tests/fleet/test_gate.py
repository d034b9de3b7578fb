"""The gate of a candidate: real bundles on stored pictures, by ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fleet import gates

from misfire_fleet.candidates import judge_candidate
from misfire_fleet.candidates.rules import Rules
from misfire_fleet.store import Store
from misfire_fleet.store.curated import candidates
from misfire_runtime.bundle import Bundle

pytestmark = pytest.mark.slow
QUICK = Rules(replicates=200)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gates.incumbent(tmp_path_factory.mktemp("old") / "bundle")


@pytest.fixture(scope="module")
def filled(old: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "fleet"
    with Store.open_folder(folder) as store:
        gates.fill(store, old, count=400)
        gates.freeze(store)
    return folder


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Iterator[Store]:
    with Store.open_folder(Path(shutil.copytree(filled, tmp_path / "fleet"))) as opened:
        yield opened


def test_the_same_network_passes_and_a_damaged_one_does_not(
    store: Store, old: Bundle, tmp_path: Path
) -> None:
    same = gates.changed(old, tmp_path / "same", version="2.0.0")
    verdict = judge_candidate(same.path, old.path, store=store, snapshot="exam", rules=QUICK)
    assert verdict.passed and not verdict.reasons
    task = verdict.checks[0].measures[0]
    assert task.candidate == task.incumbent and task.difference is not None
    # Not one frame differs, and still the interval is not a point.
    assert -0.02 < task.difference.low < 0 < task.difference.high
    worse = gates.changed(old, tmp_path / "worse", version="2.1.0", noise=3.0)
    failed = judge_candidate(worse.path, old.path, store=store, snapshot="exam", rules=QUICK)
    assert not failed.passed and failed.reasons[0].startswith("task: worse: accuracy")
    recorded = candidates.verdicts(store.database)
    assert [(each.candidate, each.passed) for each in recorded] == [
        ("small@2.1.0", False),
        ("small@2.0.0", True),
    ]
    assert recorded[0].summary["reasons"] == failed.reasons
