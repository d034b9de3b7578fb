"""What the judge raises on purpose.

JudgeError              scores, losses or labels cannot be judged: says which, where, and what to do
└── TooFewFailuresError  there are too few held-out errors for any statement: says how many are needed
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class JudgeError(MisfireError, ValueError):
    """Scores, losses or labels cannot be judged."""


class TooFewFailuresError(JudgeError):
    """Too few held-out errors; `needed` says how many would do."""

    def __init__(self, text: str, *, needed: int) -> None:
        super().__init__(text)
        self.needed = needed
