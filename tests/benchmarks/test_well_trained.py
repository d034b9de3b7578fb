"""The table of well-trained networks: the head is held to the best free score of each view and family."""

from __future__ import annotations

import numpy as np
from benchmarks.science.detection_table import Observed
from benchmarks.science.well_trained_table import (
    ENSEMBLES,
    FREE,
    HEAD,
    LEFT_OUT,
    markdown,
    reached,
    summarise,
)

SEEDS = (0, 1, 2)


def observed(seed: int, *, quality: float, left_out: float | None = None, failures: int = 60) -> Observed:
    """A view of 400 images in which `entropy` is the best free score; the head adds `quality` to it."""
    rng = np.random.default_rng(seed)
    failed = rng.permutation(400) < failures
    noise = rng.normal(size=400)
    scores = {name: noise + (1.0 if name == "entropy" else 0.5) * failed for name in (*FREE, *ENSEMBLES)}
    scores[HEAD] = noise + (1.0 + quality) * failed
    if left_out is not None:
        scores[LEFT_OUT] = noise + (1.0 + left_out) * failed
    return Observed(scores, failed, failed.astype(np.float64), np.arange(400))


def test_the_worst_family_decides_and_a_family_of_few_failures_does_not() -> None:
    judged = {
        "clean": [observed(seed, quality=1.0) for seed in SEEDS],
        "fog": [observed(seed, quality=1.0, left_out=1.0) for seed in SEEDS],
        "night": [observed(seed, quality=1.0, left_out=-0.4) for seed in SEEDS],
        "jpeg": [observed(seed, quality=1.0, left_out=-2.0, failures=9) for seed in SEEDS],
    }
    found = {"accuracy": [0.85] * 3, **summarise(judged, replicates=20)}
    clean = found["views"]["clean"]
    assert clean["best_free"]["auroc"] == "entropy"
    against = clean["head_against"]["entropy"]["auroc"]
    assert against["above"] and against["low"] < against["difference"] < against["high"]
    worst = found["over_families"]["left out"]
    assert worst["family"] == "night" and worst["difference"] < 0
    assert found["families"]["left out"]["night"]["below"]
    assert not found["families"]["left out"]["jpeg"]["counted"]
    assert found["over_families"]["known"]["difference"] > 0
    goals = reached({"mnist": found})["mnist"]
    assert goals["clean"] and goals["recall_at_5.0% known"] and goals["ensemble_clean"]
    assert not goals["accuracy"] and not goals["left_out_worst"]
    assert "| mnist | night |" in markdown({"mnist": found})
