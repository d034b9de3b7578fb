"""Defines failure scores once, for scoring a pool in torch and for tracing into the vehicle's graph.

    from misfire_train import scores
    fit = scores.gather(probe, images, labels)
    built = scores.build(["entropy", "egl_pp"], task="classification", fit=fit)
    result = scores.compute(probe, pool, built)          # {"entropy": [N], "egl_pp": [N]}

Every score is higher if a failure is likelier. `SCORES` lists all of them with what they need; a new one
is one file with a class and `@register(...)` above it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_train.errors import HoldoutWarning, ScoreError
    from misfire_train.scores.computing import compute
    from misfire_train.scores.fitting import MAX_FIT, FitSet, gather, spread
    from misfire_train.scores.registry import SCORES, Recipe, build, names_for, register, scores_of
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "MAX_FIT": "misfire_train.scores.fitting",
            "SCORES": "misfire_train.scores.registry",
            "FitSet": "misfire_train.scores.fitting",
            "HoldoutWarning": "misfire_train.errors",
            "Recipe": "misfire_train.scores.registry",
            "ScoreError": "misfire_train.errors",
            "build": "misfire_train.scores.registry",
            "compute": "misfire_train.scores.computing",
            "gather": "misfire_train.scores.fitting",
            "names_for": "misfire_train.scores.registry",
            "register": "misfire_train.scores.registry",
            "scores_of": "misfire_train.scores.registry",
            "spread": "misfire_train.scores.fitting",
        },
    )

__all__ = [
    "MAX_FIT",
    "SCORES",
    "FitSet",
    "HoldoutWarning",
    "Recipe",
    "ScoreError",
    "build",
    "compute",
    "gather",
    "names_for",
    "register",
    "scores_of",
    "spread",
]
