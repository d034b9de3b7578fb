"""A detector that sees nothing: its default trigger, and the comparison with the last minutes."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misfire_runtime.boxes import SILENCE, BoxRule
from misfire_runtime.bundle import Bundle, OutputSpec
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.temporal.drop import LEARNING_S, WINDOW_S, BoxDrop
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


def detections(*scores: float) -> Any:
    boxes = np.zeros((1, 8, 6), np.float32)
    boxes[0, : len(scores), 2:4] = 10.0
    boxes[0, : len(scores), 4] = scores
    return boxes


def test_a_drop_is_what_is_seen_less_than_in_the_last_minutes() -> None:
    drop = BoxDrop(threshold=0.3)
    values = []
    for frame in range(1000):
        # From second 80 on half of the boxes are left, from 90 on none.
        scores = (0.9, 0.8, 0.2) if frame < 800 else (0.85,) if frame < 900 else ()
        values.append(drop.see("front", detections(*scores), frame / 10))
    learned = next(number for number, value in enumerate(values) if value is not None)
    # Nothing is usual before a minute and the seconds that are compared with it.
    assert LEARNING_S * 10 <= learned <= (LEARNING_S + 4) * 10
    assert all(value == pytest.approx(0.0, abs=1e-6) for value in values[learned:800])
    assert values[890] == pytest.approx(0.5)
    assert values[940] == 1.0
    # Other sources have minutes of their own.
    assert drop.see("rear", detections(0.9), 100.0) is None


def test_minutes_end_at_a_jump_back_and_never_grow() -> None:
    drop = BoxDrop(threshold=0.3)
    for second in range(3 * WINDOW_S):
        drop.see("front", detections(0.9), float(second))
    assert drop.see("front", detections(), 3.0 * WINDOW_S) is not None
    assert len(drop._sources["front"]._means) == WINDOW_S
    assert drop.see("front", detections(0.9), 0.0) is None
    assert drop.see("front", None, 1.0) is None and drop.see("front", detections(0.9), None) is None


def test_an_empty_road_has_nothing_to_drop_from() -> None:
    drop = BoxDrop(threshold=0.3)
    values = [drop.see("front", detections(), float(second)) for second in range(100)]
    assert values[-1] == 0.0


class Fading(FakeEngine):
    """Sees two cars until frame 900, then none."""

    def __init__(self) -> None:
        super().__init__({"entropy": 0.25})

    def infer(self, image: Any, **inputs: Any) -> Any:
        found = super().infer(image, **inputs)
        return {**found, "detections": detections(*((0.9, 0.9) if self.calls <= 900 else ()))}


def detector(folder: Path) -> Bundle:
    bundle = make_bundle(folder)
    outputs = [output for output in bundle.manifest.outputs if output.kind != "logits"]
    boxes = OutputSpec(name="detections", kind="boxes", shape=(-1, 8, 6))
    update = {"outputs": (boxes, *outputs), "detection": BoxRule(), "task": "detection"}
    return replace(bundle, manifest=bundle.manifest.model_copy(update=update))


def test_a_rule_can_name_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(1000)]
    store = MemoryStore()
    text = '[triggers.gone]\nkind = "rule"\nwhen = "box_drop > 0.9"\ncool_down_s = 60\n[random]\nrate = 0.0\n'
    made = Vehicle(
        parse_config(text),
        scorer=Scorer(detector(tmp_path / "bundle"), Fading()),
        store=store,
        sources=[ListSource(pictures, rate=RATE)],
        state_dir=tmp_path / "state",
    )
    made.run(threading.Event())
    made.close()
    (offer,) = store.offers
    # Three seconds after the last box.
    assert 920 <= offer.frame <= 930 and offer.scores["box_drop"] > 0.9
    assert offer.percentiles["box_drop"] > 0.9
