"""Failure scores: defined once, for scoring a pool in torch and for tracing into the vehicle's graph.

    from misfire_train import scores
    fit = scores.gather(probe, images, labels)
    built = scores.build(["entropy", "egl_pp"], task="classification", fit=fit)
    result = scores.compute(probe, pool, built)          # {"entropy": [N], "egl_pp": [N]}

Every score is higher where a failure is likelier. `SCORES` lists all of them with what they need.
"""

from __future__ import annotations

from misfire_train.errors import HoldoutWarning, ScoreError
from misfire_train.scores.computing import compute
from misfire_train.scores.fitting import MAX_FIT, FitSet, gather, spread
from misfire_train.scores.registry import SCORES, ScoreInfo, build, names_for, scores_of

__all__ = [
    "MAX_FIT",
    "SCORES",
    "FitSet",
    "HoldoutWarning",
    "ScoreError",
    "ScoreInfo",
    "build",
    "compute",
    "gather",
    "names_for",
    "scores_of",
    "spread",
]
