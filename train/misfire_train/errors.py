"""Defines the errors of this unit, which extend the tree of misfire_runtime.errors.

MisfireError
├── DatasetError      a data set is missing, changed, malformed, or too small: names it, the place, the remedy
├── ScoreError        a score cannot be built, fitted or computed: names it, the sample, the reason
├── JudgeError        scores, losses or labels cannot be judged: names it, the place, the remedy
└── SelectionError    the pool, the budget or an option does not fit: names it, the place, the remedy

All but DatasetError are ValueErrors too. A `HoldoutWarning` reports a score that was fitted on
uninformative data.
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class DatasetError(MisfireError):
    """Is raised if a data set is missing, changed, malformed, or too small for its use."""


class ScoreError(MisfireError, ValueError):
    """Is raised if a score cannot be built, fitted or computed."""


class JudgeError(MisfireError, ValueError):
    """Is raised if scores, losses or labels cannot be judged."""


class SelectionError(MisfireError, ValueError):
    """Is raised if the pool, the budget or an option does not fit."""


class HoldoutWarning(UserWarning):
    """Is issued if the held-out set has almost no information for a score."""
