"""Defines the errors of this unit, which extend the tree of misfire_runtime.errors.

MisfireError
├── DatasetError      a data set is missing, changed, malformed, or too small: says which, where, what to do
├── ScoreError        a score cannot be built, fitted or computed: says which, for which sample, and why
├── JudgeError        scores, losses or labels cannot be judged: says which, where, and what to do
└── SelectionError    the pool, the budget or an option does not fit: says which, where, and what to do

All but DatasetError are ValueErrors too. A `HoldoutWarning` says that a score was fitted on data that tells
it little.
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
