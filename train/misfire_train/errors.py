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
    """A data set is missing, changed, malformed, or too small for what was asked."""


class ScoreError(MisfireError, ValueError):
    """A score cannot be built, fitted or computed."""


class JudgeError(MisfireError, ValueError):
    """Scores, losses or labels cannot be judged."""


class SelectionError(MisfireError, ValueError):
    """The pool, the budget or an option does not fit."""


class HoldoutWarning(UserWarning):
    """The held-out set carries almost no information for this score."""
