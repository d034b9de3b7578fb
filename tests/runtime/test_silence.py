"""A detector that sees nothing: the trigger for it that a bundle with the score has by default."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misfire_runtime.boxes import SILENCE
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.testing import FakeEngine, ListSource, MemoryStore, make_bundle
from misfire_runtime.vehicle.pipeline import Vehicle

RATE = 10
FOG = range(200, 400)
OWN = '[triggers.own]\nkind = "threshold"\nabove = 2.0\n'


class Blind(FakeEngine):
    """Has usual scores, and in the fog a high silence and a low default score, as it sees no box."""

    def __init__(self, *scores: str) -> None:
        self._rng = np.random.default_rng(0)
        super().__init__(lambda _image: {name: self._score(name) for name in scores})

    def _score(self, name: str) -> float:
        if self.calls - 1 in FOG:
            return 1.0 if name == SILENCE else 0.0
        return float(self._rng.uniform(0, 0.98))


def drive(folder: Path, text: str, *scores: str) -> MemoryStore:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(600)]
    store = MemoryStore()
    made = Vehicle(
        parse_config(text + "[random]\nrate = 0.0\n"),
        scorer=Scorer(make_bundle(folder / "bundle", scores=scores), Blind(*scores)),
        store=store,
        sources=[ListSource(pictures, rate=RATE)],
        state_dir=folder / "state",
    )
    assert made.run(threading.Event()).frames == 600
    made.close()
    return store


def chosen(store: MemoryStore, trigger: str) -> list[Any]:
    return [offer for offer in store.offers if offer.trigger.name == trigger]


def test_fog_is_noticed_by_default_and_floods_nothing(tmp_path: Path) -> None:
    store = drive(tmp_path, "", "expected_lrp", SILENCE)
    silent = chosen(store, SILENCE)
    # 20 seconds of fog, a frame at its beginning and one every ten seconds.
    assert [offer.frame for offer in silent] == [200, 300]
    assert all(offer.percentiles[SILENCE] == 1.0 for offer in silent)
    # The usual trigger goes on beside it, and finds nothing in the fog.
    usual = [offer.frame for offer in chosen(store, "target-rate")]
    assert usual and not any(frame in FOG for frame in usual)


@pytest.mark.parametrize(
    ("text", "scores"), [(OWN, ("expected_lrp", SILENCE)), ("", ("expected_lrp", "box_count"))]
)
def test_own_triggers_and_other_bundles_are_as_they_were(
    tmp_path: Path, text: str, scores: tuple[str, ...]
) -> None:
    assert not chosen(drive(tmp_path, text, *scores), SILENCE)
