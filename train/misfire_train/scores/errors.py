"""What the scores raise on purpose.

MisfireError
└── ScoreError       a score cannot be built, fitted or computed: says which, for which sample, and why

A `HoldoutWarning` says that a score was fitted on data that tells it little.
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class ScoreError(MisfireError, ValueError):
    """A score cannot be built, fitted or computed."""


class HoldoutWarning(UserWarning):
    """The held-out set carries almost no information for this score."""
