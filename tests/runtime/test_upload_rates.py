"""A bundle that triggers on one score at 1 % and on another at 10 %, and the loss that a score stands for."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misfire_runtime.bundle import MANIFEST, Bundle, LossTable, Manifest, RateScore, write_manifest
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import BundleError
from misfire_runtime.testing import FakeEngine, ListSource, MemoryStore, make_bundle
from misfire_runtime.vehicle.pipeline import Vehicle

CHOICES = (
    RateScore(upload_rate=0.01, score="entropy", reason="trigger on the free score entropy"),
    RateScore(upload_rate=0.1, score="head", reason="trigger on head"),
)


def bundle_with(folder: Path, **fields: Any) -> Bundle:
    made = make_bundle(folder, scores=("msp", "entropy", "head"))
    write_manifest(folder, made.manifest.model_copy(update=fields))
    return Bundle.open(folder)


@pytest.mark.parametrize(
    ("rate", "score"),
    [(0.001, "entropy"), (0.01, "entropy"), (0.03, "entropy"), (0.04, "head"), (0.5, "head")],
)
def test_the_choice_of_the_nearest_rate_triggers(tmp_path: Path, rate: float, score: str) -> None:
    manifest = bundle_with(tmp_path / "b", scores_by_rate=CHOICES).manifest
    assert manifest.score_at(rate) == score
    assert manifest.rates_text == "1 %: entropy; 10 %: head"


def test_a_manifest_of_an_earlier_version_loads_and_triggers_on_its_default(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "b")
    values = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
    for name in ("scores_by_rate", "upload_rate"):
        del values[name]
    for score in values["scores"]:
        del score["calibration"]["expected_loss"]
    old = Manifest.model_validate(values)
    assert old.score_at(0.01) == old.default_score == "msp"
    assert old.rates_text == ""
    scorer = Scorer(bundle, FakeEngine({"msp": 0.5, "entropy": 0.5, "head": 0.5}))
    assert scorer.score(np.zeros((8, 8, 3), np.uint8)).expected_loss("msp") is None


def test_a_choice_of_a_score_that_is_not_there_is_refused(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "b", scores=("msp",))
    write_manifest(made.path, made.manifest.model_copy(update={"scores_by_rate": CHOICES}))
    with pytest.raises(BundleError, match="no score 'entropy'"):
        Bundle.open(made.path)


def drive(folder: Path, bundle: Bundle, text: str = "") -> list[Any]:
    """Frames on which entropy is high in the first half and the head in the second."""
    engine = FakeEngine(
        lambda _image: {
            "msp": 0.0,
            "entropy": 0.999 if engine.calls <= 500 and engine.calls % 50 == 0 else 0.0,
            "head": 0.999 if engine.calls > 500 and engine.calls % 50 == 0 else 0.0,
        }
    )
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(1000)]
    store = MemoryStore()
    vehicle = Vehicle(
        parse_config(text + "[random]\nrate = 0.0\n"),
        scorer=Scorer(bundle, engine),
        store=store,
        sources=[ListSource(pictures, rate=10)],
        state_dir=folder / "state",
    )
    vehicle.run(threading.Event())
    vehicle.close()
    return store.offers


def test_triggers_look_at_the_score_of_their_own_rate(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "b", scores_by_rate=CHOICES)
    # The default trigger takes 2 %, so it looks at what the bundle names for 1 %.
    reasons = {offer.trigger.reason.split()[0] for offer in drive(tmp_path / "default", bundle)}
    assert reasons == {"entropy"}
    tenth = '[triggers.t]\nkind = "percentile"\nlevel = 0.9\n'
    assert {offer.trigger.reason.split()[0] for offer in drive(tmp_path / "tenth", bundle, tenth)} == {"head"}
    named = '[triggers.t]\nkind = "percentile"\nscore = "entropy"\nlevel = 0.9\n'
    assert {o.trigger.reason.split()[0] for o in drive(tmp_path / "named", bundle, named)} == {"entropy"}


def test_a_bundle_that_was_made_for_a_rate_sets_the_default_trigger(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "b", scores_by_rate=CHOICES, upload_rate=0.1)
    assert {o.trigger.reason.split()[0] for o in drive(tmp_path / "own", bundle)} == {"head"}
    config = '[triggers.t]\nkind = "target-rate"\nrate = 0.01\n'
    assert {o.trigger.reason.split()[0] for o in drive(tmp_path / "configured", bundle, config)} == {
        "entropy"
    }


def test_a_score_stands_for_the_loss_that_such_frames_had(tmp_path: Path) -> None:
    table = LossTable(scores=(0.0, 1.0), losses=(0.1, 10.0))
    made = make_bundle(tmp_path / "b", scores=("msp",))
    score = made.manifest.scores[0]
    calibration = score.calibration.model_copy(update={"expected_loss": table})
    scores = (score.model_copy(update={"calibration": calibration}),)
    write_manifest(made.path, made.manifest.model_copy(update={"scores": scores}))
    scorer = Scorer(Bundle.open(made.path), FakeEngine({"msp": 0.5}))
    scored = scorer.score(np.zeros((8, 8, 3), np.uint8))
    assert scored.expected_loss("msp") == pytest.approx(1.0)
    assert scored.expected_loss("entropy") is None
    assert [table.expected(value) for value in (-1.0, 0.0, 1.0, 2.0)] == pytest.approx([0.1, 0.1, 10.0, 10.0])


@pytest.mark.parametrize(
    ("scores", "losses", "why"),
    [((0.0, 0.0), (1.0, 2.0), "rise"), ((0.0, 1.0), (2.0, 1.0), "fall"), ((0.0,), (1.0, 2.0), "same length")],
)
def test_a_table_that_is_no_curve_is_refused(scores: Any, losses: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        LossTable(scores=scores, losses=losses)
